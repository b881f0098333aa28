import importlib
import itertools
import warnings

import numpy as np
import pytest
import timm
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch.autograd import forward_ad

import harness.models  # noqa: F401
from harness.methods import METHODS, Training, comixup, kind_of, puzzlemix
from harness.methods.base import MethodConfig


def make(name, model, **kwargs):
    return METHODS[name](Training(MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), 5))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_shapes_and_the_sum_of_targets(model, images, name):
    x, y = images
    mix = make(name, model, label_smoothing=0.1)
    for seed in range(6):
        random_seed(seed)
        mixed, targets = mix(x.clone(), y)
        assert mixed.shape == x.shape
        assert mixed.isfinite().all()
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        assert targets.min() >= 0.1 / 5 - 1e-6
        model(mixed)


# What a mixed pixel lies between: the two images' pixels in its place; all of their pixels, for
# methods that move parts of an image; all pixels of the batch; or 0, the mean colour. RandAugment
# makes other pixels, and hyperbolic lines are no straight ones.
HULL = {
    "none": "place",
    "cutout": "zero",
    "keep-cutout": "zero",
    "keep-cutout-early": "zero",
    "resizemix": "pair",
    "smoothmix": "place",
    "recursivemix": "pair",
    "catchupmix": "place",
    "guidedmixup-sr": "batch",
    "guidedmixup-ap": "batch",
    "rmix": "place",
    "sage-spectral-maps": "pair",
    "mixup": "place",
    "cutmix": "place",
    "mixup-cutmix": "place",
    "manifold": "place",
    "saliencymix": "place",
    "puzzlemix": "pair",
    "comixup": "batch",
    "sage": "pair",
    "sage-no-rearrangement": "place",
    "sage-random-translation": "pair",
    "sage-eval-saliency": "pair",
    "sage-other-maps": "pair",
    "sage-noise-maps": "pair",
    "sage-centre-map": "pair",
}


@pytest.mark.parametrize(
    "name", sorted(METHODS.keys() - {"keep-randaugment", "keep-randaugment-early", "hypmix"})
)
def test_a_mixed_pixel_lies_between_those_it_is_made_of(model, images, name):
    x, y = images
    x = x + 10 * torch.arange(8.0).view(8, 1, 1, 1)  # so that the images' ranges are apart
    dims = {"place": (), "zero": (), "pair": (2, 3), "batch": (0, 2, 3)}[HULL[name]]
    other = torch.zeros_like(x) if HULL[name] == "zero" else x.flip(0)
    low, high = torch.minimum(x, other), torch.maximum(x, other)
    if dims:
        low, high = low.amin(dim=dims, keepdim=True), high.amax(dim=dims, keepdim=True)
    mix = make(name, model)
    for seed in range(6):
        random_seed(seed)
        mixed, _ = mix(x.clone(), y)
        assert (mixed >= low - 1e-4).all()
        assert (mixed <= high + 1e-4).all()


# At which weights a method gives an image back: all of its own at 1, all of its partner's at 0. A
# region that is cut around a place is clipped at the border, a random translation leaves some of
# image 1 out, Co-Mixup draws no weight, and SAGE scales it by lambda_max.
ENDS = {
    "mixup": (1, 0),
    "cutmix": (1,),
    "mixup-cutmix": (1,),
    "manifold": (1,),
    "saliencymix": (1,),
    "puzzlemix": (1, 0),
    "sage-no-rearrangement": (0,),
}


@pytest.mark.parametrize(("name", "lam"), [(n, lam) for n, ends in ENDS.items() for lam in ends])
def test_at_the_ends_of_the_weight_an_image_comes_back(model, images, monkeypatch, name, lam):
    x, y = images
    monkeypatch.setattr(np.random, "beta", lambda *_, **__: float(lam))
    mix = make(name, model)
    for seed in range(4):
        random_seed(seed)
        mixed, targets = mix(x.clone(), y)
        image, target = (x, y) if lam else (x.flip(0), y.flip(0))
        torch.testing.assert_close(mixed, image)
        torch.testing.assert_close(targets, torch.eye(5)[target])


@pytest.mark.parametrize("name", METHODS)
def test_the_batch_given_is_left_alone_but_by_timms_own_class(model, images, name):
    x, y = images
    mix = make(name, model)
    for seed in range(4):
        random_seed(seed)
        given, labels = x.clone(), y.clone()
        mix(given, labels)
        assert torch.equal(labels, y)
        if name not in ("mixup", "cutmix", "mixup-cutmix"):
            assert torch.equal(given, x)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_bits_for_the_same_seed(model, images, name):
    x, y = images
    results = []
    for _ in range(2):
        random_seed(3)
        mix = make(name, model)
        mixed, targets = mix(x.clone(), y)
        results.append((mixed, targets, model.eval()(mixed)))
        model.train()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in METHODS if kind_of(name) == "images"])
def test_a_label_weighs_what_is_left_of_its_image(model, images, name):
    """The mix's derivative in the direction of a class's images is the weight of their pixels."""
    x, _ = images
    windows = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) ** 4
    x = x * 3 * windows.repeat_interleave(8, 2).repeat_interleave(8, 3)  # something stands out
    y = torch.arange(8) % 2  # an image and its partner are of two classes
    mix = make(name, model)
    weights = []
    for seed in range(20):
        random_seed(seed)
        with forward_ad.dual_level(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own first use
            marked = forward_ad.make_dual(
                x.clone(), (y == 0).float().view(-1, 1, 1, 1).expand_as(x)
            )
            mixed, targets = mix(marked, y)
            kept = forward_ad.unpack_dual(mixed).tangent
        torch.testing.assert_close(kept.mean(dim=(1, 2, 3)), targets[:, 0], rtol=0, atol=1e-5)
        weights.append(targets[::2, 0])
    assert (torch.stack(weights).std() > 0.05) == (name != "none")


class TestManifold:
    def test_mixes_the_hidden_layer_that_was_drawn(self, model, images):
        """By hand: the stages before, the mix, the stages after."""
        x, y = images
        model.eval()  # batch norm aside; the hook is for training, so it is told so below
        seen = set()
        for seed in range(12):
            random_seed(seed)
            layer, lam = np.random.randint(3), np.random.beta(2.0, 2.0)
            random_seed(seed)
            mix = make("manifold", model)
            inputs, targets = mix(x.clone(), y)
            for stage in mix.layers:
                stage.training = True
            hidden = model.stem(x if layer else lam * x + (1 - lam) * x.flip(0))
            for index, stage in enumerate(model.stages, start=1):
                hidden = stage.forward(hidden)
                if index == layer:
                    hidden = lam * hidden + (1 - lam) * hidden.flip(0)
            expected = model.head(model.norm(hidden))
            torch.testing.assert_close(model(inputs), expected)
            model.eval()
            assert not any(stage._forward_hooks for stage in model.stages)
            one_hot = torch.eye(5)[y]
            torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.flip(0))
            seen.add(layer)
        assert seen == {0, 1, 2}

    def test_validation_is_not_mixed_and_an_unused_hook_goes(self, model, images):
        x, y = images
        clean = model.eval()(x)
        mix = make("manifold", model)
        for seed in range(10):
            random_seed(seed)
            mix(x, y)
            assert sum(len(stage._forward_hooks) for stage in model.stages) <= 1
            assert torch.equal(model(x), clean)

    @pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "regnety_002"])
    def test_finds_the_stages_of_timms_models(self, name):
        layers = make("manifold", timm.create_model(name)).layers
        assert len(layers) == 2

    def test_a_model_without_stages_is_refused(self, small_net):
        with pytest.raises(
            ValueError, match="the method needs a timm model whose feature_info names 2 stages"
        ):
            make("manifold", small_net())


class TestSaliencyMix:
    def test_pastes_the_region_around_the_peak_and_weighs_it_by_its_area(self):
        x = torch.zeros(6, 3, 32, 32)
        x[-1, :, 20:23, 8:11] = 1.0  # the first image's partner, with one bright spot
        x += torch.arange(6.0).view(6, 1, 1, 1) * 1e-3
        y = torch.arange(6) % 5
        mix = make("saliencymix", torch.nn.Identity())
        mixes = 0
        for seed in range(40):
            random_seed(seed)
            mixed, targets = mix(x, y)
            pasted = (mixed[1] == x[4]).all(dim=0)
            changed = (mixed[1] != x[1]).any(dim=0)
            if not changed.any():
                expected = torch.eye(5)[y]
                torch.testing.assert_close(targets, expected)
                continue
            mixes += 1
            assert torch.equal(pasted, changed)
            rows, columns = torch.where(changed)
            box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
            assert rows.min() <= 22
            assert rows.max() >= 19
            assert columns.min() <= 11
            assert columns.max() >= 7
            weight = 1 - changed.float().mean()
            one_hot = torch.eye(5)[y]
            expected = weight * one_hot + (1 - weight) * one_hot.flip(0)
            torch.testing.assert_close(targets, expected)
        assert 10 <= mixes <= 30


class TestPuzzleMix:
    def energy(self, shares, s0, s1, x0, x1, lam):
        """The paper's energy of one labelling by 0, 1/2 and 1 (Eq. 2 to 4), block by block.

        The pictures' differences at a border are those of whole labels, for halves the quadratic
        form through them; it does not reward two labels that differ.
        """
        blocks = len(shares)
        step = x0.shape[1] // blocks
        label_smoothness = 1.2 / 16 / blocks
        total = 0.0
        for i, j in itertools.product(range(blocks), repeat=2):
            z = shares[i, j]
            total += s0[i, j] * z + s1[i, j] * (1 - z)
            binomial = {0.0: lam**2, 0.5: 2 * lam * (1 - lam), 1.0: (1 - lam) ** 2}
            total -= 0.2 / blocks**2 * np.log(binomial[z])
            rows, columns = (slice(k * step, (k + 1) * step) for k in (i, j))
            for di, dj in ((1, 0), (0, 1)):
                if i + di >= blocks or j + dj >= blocks:
                    continue
                last, first = (i + 1) * step - 1, (j + 1) * step - 1
                at = (slice(None), last, columns) if di else (slice(None), rows, first)
                past = (slice(None), last + 1, columns) if di else (slice(None), rows, first + 1)
                (d00, d01), (d10, d11) = (
                    [label_smoothness * 0.5 * np.abs(a[at] - b[past]).mean() for b in (x0, x1)]
                    for a in (x0, x1)
                )
                y = shares[i + di, j + dj]
                apart = (d01 + d10 - d00 - d11) / 2
                total += d00 + z * (d10 - d00 - apart) + y * (d01 - d00 - apart)
                total += max(label_smoothness + apart, 0) * (z - y) ** 2
        return total

    @pytest.mark.parametrize("lam", [0.1, 0.5, 0.8])
    def test_the_graph_cut_reaches_the_best_of_all_labellings(self, model, lam):
        """Flat patches of so much contrast that their borders count as much as the rest."""
        generator = torch.Generator().manual_seed(0)
        pixels = 20 * torch.rand(32, 3, 4, 4, generator=generator)
        saliency = 1 + torch.rand(32, 2, 2, generator=generator)
        pixels, saliency = (
            v.repeat_interleave(32 // v.shape[-1], -1).repeat_interleave(32 // v.shape[-1], -2)
            for v in (pixels, saliency)
        )
        found = make("puzzlemix", model).shares(saliency, pixels, 2, lam).double().numpy()
        pooled = saliency.unfold(1, 16, 16).unfold(2, 16, 16).sum(dim=(3, 4))
        own = (pooled / pooled.sum(dim=(1, 2), keepdim=True)).double().numpy()
        pixels = pixels.double().numpy()
        for pair in range(32):
            parts = own[pair], own[31 - pair], pixels[pair], pixels[31 - pair], lam
            best = min(
                self.energy(np.array(labels).reshape(2, 2), *parts)
                for labels in itertools.product((0.0, 0.5, 1.0), repeat=4)
            )
            assert self.energy(found[pair], *parts) <= best + 2e-3

    @pytest.mark.parametrize("levels", [3, 1000])
    def test_patches_move_as_algorithm_1_says(self, levels):
        """Patch by patch, on three by three of them; few levels of saliency make ties."""
        generator = torch.Generator().manual_seed(0)
        saliency = torch.randint(levels, (6, 3, 3), generator=generator) / levels
        share = (torch.rand(6, 3, 3, generator=generator) > 0.5).float()
        x = torch.arange(6 * 81.0).view(6, 1, 9, 9)
        moved = puzzlemix.move(x, share, saliency)
        places = list(itertools.product(range(3), repeat=2))
        for image, kept, worth, found in zip(x, share, saliency, moved, strict=True):
            cost = np.array(
                [
                    [
                        np.float32(0.8) * np.float32(((i - k) ** 2 + (j - m) ** 2) / 4)
                        - np.float32(worth[i, j]) * np.float32(kept[k, m] > 0)
                        for k, m in places
                    ]
                    for i, j in places
                ]
            )
            while True:
                wanted = cost.argmin(axis=1)
                takes = {}
                for patch, place in enumerate(wanted):
                    if place not in takes or cost[patch, place] < cost[takes[place], place]:
                        takes[place] = patch
                lost = [patch for patch, place in enumerate(wanted) if takes[place] != patch]
                if not lost:
                    break
                cost[lost, wanted[lost]] += 1
            assert sorted(takes) == list(range(9))  # the patches are rearranged, none is lost
            pieces = image.unfold(1, 3, 3).unfold(2, 3, 3).reshape(9, 9)
            expected = pieces[[takes[place] for place in range(9)]]
            assert torch.equal(found.unfold(1, 3, 3).unfold(2, 3, 3).reshape(9, 9), expected)

    def test_without_saliency_nothing_moves(self):
        x = torch.randn(1, 3, 16, 16)
        assert torch.equal(puzzlemix.move(x, torch.ones(1, 4, 4), torch.zeros(1, 4, 4)), x)

    def test_a_salient_patch_moves_next_door_to_where_it_is_kept(self):
        x = torch.arange(16.0).view(1, 1, 4, 4)
        share, saliency = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
        share[0, 1, 1], saliency[0, 1, 1] = 0, 1.0  # the only salient patch would be covered
        moved = puzzlemix.move(x, share, saliency)
        row, column = (int(v) for v in torch.where(moved[0, 0] == 5.0))
        assert abs(row - 1) + abs(column - 1) == 1

    def test_leaves_the_network_as_it_was_frozen_parts_too(self, model, images):
        model.stages[0].eval()  # as one freezes batch norm
        modes = [module.training for module in model.modules()]
        before = {k: v.clone() for k, v in model.state_dict().items()}
        make("puzzlemix", model)(*images)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_odd_images_are_refused(self, model, batch):
        with pytest.raises(ValueError, match="needs images of even height and width, got 31x32"):
            make("puzzlemix", model)(*batch(height=31, width=32))


class TestCoMixup:
    @pytest.fixture
    def mix(self, model):
        return make("comixup", model)

    def energy(self, shares, cost):
        """The paper's Eq. 1 with tau = 0 and without compatibilities, mix by mix, block by block.

        With tau = 0 the supermodular term is a sum over pairs of mixes, and nothing is left out.
        """
        mixes, blocks, _ = shares.shape
        side = int(blocks**0.5)
        total = 0.0
        for z in shares:
            grid = z.reshape(side, side, -1)
            total += (z * cost).sum()
            for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
                total += 0.32 / blocks * ((one - other) ** 2).sum() / 2
        for one, other in itertools.permutations(range(mixes), 2):
            total += 1.0 / blocks * shares[one].sum(axis=0) @ shares[other].sum(axis=0)
        return total

    @pytest.mark.parametrize("seed", range(5))
    def test_comes_close_to_the_best_of_all_assignments(self, mix, monkeypatch, seed):
        """Two images, two mixes, two by two blocks: all 256 assignments of whole blocks."""
        monkeypatch.setattr(comixup, "_BLOCKS", 2)
        monkeypatch.setattr(comixup, "_THRESHOLD", 0.0)
        random = np.random.default_rng(seed)
        cost = -random.dirichlet(np.full(4, 0.5), 2).T
        energies = [
            self.energy(np.eye(2)[np.array(labels).reshape(2, 4)], cost)
            for labels in itertools.product((0, 1), repeat=8)
        ]
        random_seed(seed)
        shares = mix.assign(cost, np.eye(2))
        found = self.energy(shares, cost)
        # Halves can only be better; a descent from a random start may end beside the best.
        assert found <= np.quantile(energies, 0.05)

    def test_pixels_and_targets_follow_the_same_shares(self, mix):
        """Images of one value each: the mean pixel of a mix is its targets' mean value."""
        x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 32, 32) / 8
        saliency = torch.full((8, 32, 32), 0.1)
        for index in range(8):  # each image has an object in a corner of its own
            top, left = 16 * (index % 2), 16 * (index // 2 % 2)
            saliency[index, top : top + 16, left : left + 16] = 1
        random_seed(0)
        mixed, targets = mix.mix_group(x, torch.eye(8), saliency)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(8.0) / 8)
        assert ((targets > 0).sum(dim=1) > 1).any()
        corners = mixed[:, 0].unflatten(1, (2, 16)).unflatten(3, (2, 16)) * 8  # [8, 2, 16, 2, 16]
        whose = torch.arange(2)[:, None, None, None] + 2 * torch.arange(2)[:, None]
        assert (corners % 4 == whose).float().mean() > 0.5  # one in four by chance
        shares = torch.tensor([v for v in mixed.unique().tolist() if v not in x.unique()])
        torch.testing.assert_close(shares * 16, (shares * 16).round())  # halves of two images

    def test_shows_more_saliency_than_chance_and_uses_every_image(self, mix):
        random = np.random.default_rng(0)
        cost = -random.dirichlet(np.full(16, 0.3), 20).T
        random_seed(0)
        shares = mix.assign(cost, np.eye(20))
        np.testing.assert_allclose(shares.sum(axis=2), 1)
        shown = -(shares * cost).sum(axis=(1, 2))
        assert shown.mean() > 1.5  # a single image shows 1
        assert shares.sum(axis=(0, 1)).min() > 0

    def test_mixes_within_groups_of_twenty(self, model, batch):
        x, y = batch(count=50, height=16, width=16)
        x = x * 0.01 + torch.arange(50.0).view(50, 1, 1, 1)
        random_seed(0)
        mixed, _ = make("comixup", model)(x, y)
        for first, last in ((0, 20), (20, 40), (40, 50)):
            part = mixed[first:last]
            assert part.min() > first - 0.5
            assert part.max() < last - 0.5

    def test_the_step_takes_the_mean_of_the_clean_and_the_mixed_loss(self, model, images):
        x, y = images
        loss_fn = SoftTargetCrossEntropy()
        random_seed(0)
        mixed, targets = make("comixup", model)(x, y)
        loss_fn(model(mixed), targets).backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        (loss_fn(model(x), torch.eye(5)[y]) / 2 + loss_fn(model(mixed), targets) / 2).backward()
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)

    def test_tiny_images_are_refused(self, model, batch):
        with pytest.raises(ValueError, match="comixup needs images of at least 4x4, got 3x8"):
            make("comixup", model)(*batch(height=3, width=8))


class TestSageAblations:
    def test_no_rearrangement_covers_the_whole_image(self, model, images):
        """Nothing of image 0 is left bare: every pixel of the mix has some of both."""
        x, y = images
        x = torch.stack([torch.full_like(x[0], float(i)) for i in range(8)]) + 0.01 * x
        for seed in range(5):
            random_seed(seed)
            mixed, _ = make("sage-no-rearrangement", model)(x.clone(), y)
            assert (mixed != x).all()

    def test_random_translation_moves_the_whole_batch_alike(self, model, images):
        x, y = images
        x = torch.stack([torch.full_like(x[0], float(i)) for i in range(8)]) + 0.01 * x
        shapes = set()
        for seed in range(5):
            random_seed(seed)
            mixed, _ = make("sage-random-translation", model)(x.clone(), y)
            bare = (mixed == x).all(dim=1)
            assert (bare == bare[0]).all()
            shapes.add(int(bare[0].sum()))
        assert len(shapes) > 2

    def test_eval_saliency_is_that_of_the_network_in_evaluation_mode(self, model, images):
        x, y = images
        model(5 * torch.randn(8, 3, 32, 32))  # running statistics unlike the batch's
        results = []
        for name, training in (("sage-eval-saliency", True), ("sage", False), ("sage", True)):
            model.train(training)
            random_seed(1)
            results.append(make(name, model)(x.clone(), y)[0])
            assert all(module.training == training for module in model.modules())
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])


def test_none_changes_nothing(model, images):
    x, y = images
    mixed, targets = make("none", model, label_smoothing=0.1)(x, y)
    assert mixed is x
    assert torch.equal(targets, mixup_target(y, 5, 1.0, 0.1))


@pytest.mark.parametrize(
    ("name", "module"), [("saliencymix", "cv2"), ("puzzlemix", "gco"), ("comixup", "gco")]
)
def test_what_is_not_installed_is_named_with_its_extra(model, monkeypatch, name, module):
    def not_there(wanted):
        raise ModuleNotFoundError(f"No module named {wanted!r}")

    monkeypatch.setattr(importlib, "import_module", not_there)
    text = rf"{name} needs {module}, which is not installed: pip install 'sage-timm\[peers\]'"
    with pytest.raises(ImportError, match=text):
        make(name, model)


def test_the_controls_maps_know_nothing_of_the_image(model, images):
    """Each control's map is a saliency map, but not that of the image that it stands for."""
    x, y = images
    targets = mixup_target(y, 5, 1.0)
    own = make("sage", model).sage.saliency(x, targets)
    for name in ("sage-other-maps", "sage-noise-maps", "sage-centre-map"):
        torch.manual_seed(0)
        maps = make(name, model).sage.saliency(x, targets)
        torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), torch.ones(8))
        assert (maps - own).abs().amax(dim=(1, 2, 3)).min() > 1e-4
        if name == "sage-other-maps":  # each is that of just one other image
            distance = (maps[:, None] - own[None]).abs().amax(dim=(2, 3, 4))
            assert sorted(distance.argmin(dim=1).tolist()) == list(range(8))
            assert distance.min(dim=1).values.max() < 1e-6
        if name == "sage-centre-map":
            place = torch.arange(32.0) - 15.5
            expected = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 8.0**2))
            torch.testing.assert_close(maps[3, 0], expected / expected.sum())
