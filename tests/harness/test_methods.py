import importlib
import itertools

import numpy as np
import pytest
import timm
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed

import harness.models  # noqa: F401
from harness.methods import METHODS, comixup, puzzlemix
from harness.methods.base import MethodConfig
from harness.methods.manifold import ManifoldMixup
from harness.methods.saliencymix import SaliencyMix


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("preactresnet8_cifar", num_classes=5)


def make(name, model, **kwargs):
    return METHODS[name](MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), 5)


@pytest.fixture
def images(batch):
    return batch(count=8, height=32, width=32)


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
# methods that move parts of an image; or all pixels of the batch.
HULL = {
    "none": "place",
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


@pytest.mark.parametrize("name", METHODS)
def test_a_mixed_pixel_lies_between_those_it_is_made_of(model, images, name):
    x, y = images
    x = x + 10 * torch.arange(8.0).view(8, 1, 1, 1)  # so that the images' ranges are apart
    dims = {"place": (), "pair": (2, 3), "batch": (0, 2, 3)}[HULL[name]]
    low, high = torch.minimum(x, x.flip(0)), torch.maximum(x, x.flip(0))
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
    mix = make(name, model)
    results = []
    for _ in range(2):
        random_seed(3)
        mixed, targets = mix(x.clone(), y)
        results.append((mixed, targets, model.eval()(mixed)))
        model.train()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"none"}))
def test_a_label_weighs_what_is_left_of_its_image(model, images, name):
    """Over many draws every method mixes, and most of them half of each image on average.

    SaliencyMix leaves half of the batches alone and clips its region at the border; a translation
    by chance leaves three quarters of image 0 bare.
    """
    x, _ = images
    mix = make(name, model, lambda_max=1)
    weights = []
    for seed in range(60):
        random_seed(seed)
        weights.append(mix(x.clone(), torch.tensor([0] * 4 + [1] * 4))[1][:4, 0])
    weights = torch.stack(weights)
    mean = {"saliencymix": 0.85, "sage-random-translation": 0.875}.get(name, 0.5)
    assert weights.mean() == pytest.approx(mean, abs=0.2)
    assert weights.std() > 0.05


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
            mix = ManifoldMixup(model, 5, 2.0, 0.0)
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
        mix = ManifoldMixup(model, 5, 2.0, 0.0)
        for seed in range(10):
            random_seed(seed)
            mix(x, y)
            assert sum(len(stage._forward_hooks) for stage in model.stages) <= 1
            assert torch.equal(model(x), clean)

    @pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "regnety_002"])
    def test_finds_the_stages_of_timms_models(self, name):
        layers = ManifoldMixup(timm.create_model(name), 5, 2.0, 0.0).layers
        assert len(layers) == 2

    def test_a_model_without_stages_is_refused(self, small_net):
        with pytest.raises(ValueError, match="manifold needs a timm model whose feature_info"):
            ManifoldMixup(small_net(), 5, 2.0, 0.0)


class TestSaliencyMix:
    def test_pastes_the_region_around_the_peak_and_weighs_it_by_its_area(self):
        x = torch.zeros(6, 3, 32, 32)
        x[-1, :, 20:23, 8:11] = 1.0  # the first image's partner, with one bright spot
        x += torch.arange(6.0).view(6, 1, 1, 1) * 1e-3
        y = torch.arange(6) % 5
        mix = SaliencyMix(5, (0.0,) * 3, (1.0,) * 3, alpha=1.0, label_smoothing=0.0)
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
    def energy(self, shares, s0, s1, x0, x1, smoothness):
        """The paper's energy of one labelling by 0 and 1, block by block, without the prior."""
        blocks = len(shares)
        step = x0.shape[1] // blocks
        pictures = (x0, x1)
        total = 0.0
        for i, j in itertools.product(range(blocks), repeat=2):
            total += s0[i, j] * shares[i, j] + s1[i, j] * (1 - shares[i, j])
            for di, dj in ((1, 0), (0, 1)):
                if i + di >= blocks or j + dj >= blocks:
                    continue
                first, second = (pictures[int(shares[p])] for p in ((i, j), (i + di, j + dj)))
                if di:
                    columns = slice(j * step, (j + 1) * step)
                    a, b = first[:, (i + 1) * step - 1, columns], second[:, (i + 1) * step, columns]
                else:
                    rows = slice(i * step, (i + 1) * step)
                    a, b = first[:, rows, (j + 1) * step - 1], second[:, rows, (j + 1) * step]
                total += smoothness * (shares[i, j] - shares[i + di, j + dj]) ** 2
                total += smoothness * 0.5 * np.abs(a - b).mean()
        return total

    def test_the_energy_is_the_papers_for_every_labelling(self):
        random = np.random.default_rng(0)
        x0, x1 = random.random((2, 3, 8, 8))
        s0, s1 = random.random((2, 2, 2))
        unary, down, right = puzzlemix._energy(
            *(torch.from_numpy(v)[None] for v in (s0, s1, x0, x1)), 0.3, 0.5
        )
        unary, down, right = (v[0].numpy() for v in (unary, down, right))
        differences = []
        for labels in itertools.product((0, 1), repeat=4):
            z = np.array(labels).reshape(2, 2)
            ours = (unary * z).sum() + (down * (z[:-1] - z[1:]) ** 2).sum()
            ours += (right * (z[:, :-1] - z[:, 1:]) ** 2).sum()
            differences.append(self.energy(z, s0, s1, x0, x1, 0.3) - ours)
        np.testing.assert_allclose(differences, differences[0], atol=1e-9)

    @pytest.mark.parametrize("lam", [0.1, 0.5, 0.8])
    def test_the_graph_cut_reaches_the_best_of_all_labellings(self, model, images, lam):
        x, y = images
        pixels = (x / 6 + 0.5).clamp(0, 1)
        mix = make("puzzlemix", model)
        saliency = mix._saliency(x, y)
        found = mix._block_shares(saliency, pixels, 2, lam).double().numpy()
        own = puzzlemix._pool(saliency, 2)
        smoothness = 1.2 / 32
        unary, down, right = (
            v.double().numpy()
            for v in puzzlemix._energy(own, own.flip(0), pixels, pixels.flip(0), smoothness, 0.5)
        )
        binomial = {0.0: lam**2, 0.5: 2 * lam * (1 - lam), 1.0: (1 - lam) ** 2}

        def energy(pair, z):
            total = (unary[pair] * z).sum() + (down[pair] * (z[:-1] - z[1:]) ** 2).sum()
            total += (right[pair] * (z[:, :-1] - z[:, 1:]) ** 2).sum()
            return total - 0.2 / 4 * sum(np.log(binomial[v]) for v in z.flat)

        for pair in range(8):
            best = min(
                energy(pair, np.array(z).reshape(2, 2))
                for z in itertools.product((0.0, 0.5, 1.0), repeat=4)
            )
            assert energy(pair, found[pair]) <= best + 2e-3

    def test_moving_only_rearranges_patches(self):
        x = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
        share = (torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
        saliency = puzzlemix._pool(torch.rand(2, 16, 16), 4)
        moved = puzzlemix._move(x, share, saliency)

        def pieces(images):
            return sorted(
                tuple(p.flatten().tolist())
                for p in images.unfold(2, 4, 4)
                .unfold(3, 4, 4)
                .permute(0, 2, 3, 1, 4, 5)
                .flatten(0, 2)
            )

        assert pieces(moved) == pieces(x)

    def test_without_saliency_nothing_moves(self):
        x = torch.randn(1, 3, 16, 16)
        assert torch.equal(puzzlemix._move(x, torch.ones(1, 4, 4), torch.zeros(1, 4, 4)), x)

    def test_a_salient_patch_moves_next_door_to_where_it_is_kept(self):
        x = torch.arange(16.0).view(1, 1, 4, 4)
        share, saliency = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
        share[0, 1, 1], saliency[0, 1, 1] = 0, 1.0  # the only salient patch would be covered
        moved = puzzlemix._move(x, share, saliency)
        row, column = (int(v) for v in torch.where(moved[0, 0] == 5.0))
        assert abs(row - 1) + abs(column - 1) == 1

    @pytest.mark.parametrize("levels", [3, 1000])
    @pytest.mark.parametrize("rounds", [1, 2, 50])
    def test_places_are_given_as_algorithm_1_says(self, levels, rounds):
        """Patch by patch; few levels make ties, of which the first counts."""
        cost = torch.randint(levels, (6, 9, 9), generator=torch.Generator().manual_seed(0)) / levels
        found = puzzlemix._sources(cost.clone(), rounds)
        for own, source in zip(cost.double().numpy(), found.tolist(), strict=True):
            for _ in range(rounds):
                wanted = [int(row.argmin()) for row in own]
                takes = {}
                for patch, place in enumerate(wanted):
                    if place not in takes or own[patch, place] < own[takes[place], place]:
                        takes[place] = patch
                lost = [p for p, place in enumerate(wanted) if takes[place] != p]
                for patch in lost:
                    own[patch, wanted[patch]] += 1
            assert source == [takes.get(place, place) for place in range(9)]

    def test_leaves_the_network_in_training(self, model, images):
        before = {k: v.clone() for k, v in model.state_dict().items()}
        make("puzzlemix", model)(*images)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_leaves_frozen_parts_frozen(self, model, images):
        model.stages[0].eval()  # as one freezes batch norm
        before = [module.training for module in model.modules()]
        make("puzzlemix", model)(*images)
        assert [module.training for module in model.modules()] == before

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
        shares = mix._assign(cost, np.eye(2))
        found = self.energy(shares, cost)
        # Halves can only be better; a descent from a random start may end beside the best.
        assert found <= np.quantile(energies, 0.05)

    def test_no_swap_of_two_labels_betters_a_cut(self, mix, monkeypatch):
        """Three images and the halves of two of them, on two by two blocks; every swap tried."""
        monkeypatch.setattr(comixup, "_BLOCKS", 2)
        labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
        random = np.random.default_rng(0)
        for _ in range(10):
            cost = 0.2 * random.random((4, 3))

            def energy(choice, cost=cost):
                z = labels[np.array(choice)]
                grid = z.reshape(2, 2, 3)
                border = sum(
                    ((a - b) ** 2).sum() / 2
                    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]))
                )
                prefer = 5e-4 * sum(c == 3 for c in choice)
                return (z * cost).sum() - prefer + 0.32 / 4 * border

            found = mix._cut(cost, labels).tolist()
            for one, other in itertools.combinations(range(4), 2):
                places = [(one, other) if c in (one, other) else (c,) for c in found]
                best = min(energy(c) for c in itertools.product(*places))
                assert energy(found) <= best + 1e-4

    def test_pixels_and_targets_follow_the_same_shares(self, mix):
        """Images of one value each: the mean pixel of a mix is its targets' mean value."""
        x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 32, 32) / 8
        saliency = torch.full((8, 32, 32), 0.1)
        for index in range(8):  # each image has an object in a corner of its own
            top, left = 16 * (index % 2), 16 * (index // 2 % 2)
            saliency[index, top : top + 16, left : left + 16] = 1
        random_seed(0)
        mixed, targets = mix._mix(x, torch.eye(8), saliency)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(8.0) / 8)
        assert ((targets > 0).sum(dim=1) > 1).any()
        shares = torch.tensor([v for v in mixed.unique().tolist() if v not in x.unique()])
        torch.testing.assert_close(shares * 16, (shares * 16).round())  # halves of two images

    def test_shows_more_saliency_than_chance_and_uses_every_image(self, mix):
        random = np.random.default_rng(0)
        cost = -random.dirichlet(np.full(16, 0.3), 20).T
        random_seed(0)
        shares = mix._assign(cost, np.eye(20))
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
