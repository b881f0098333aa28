"""Methods that cut, paste or blend in, against loops, float64 formulas and counts of many draws."""

import itertools

import numpy as np
import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import nn

import harness.models  # noqa: F401
from harness.methods import METHODS, Training, keepaugment, loss_of, module_of
from harness.methods.base import MethodConfig
from harness.methods.cutout import squares

ERRORS = 5  # standard errors that a figure of many draws may be off


def make(name, model=None, **kwargs):
    model = nn.Identity() if model is None else model
    return METHODS[name](Training(MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), 5))


def smoothed(y, smoothing=0.1):
    """Gives one-hot targets of 5 classes, smoothed, in float64."""
    targets = torch.full((len(y), 5), smoothing / 5, dtype=torch.float64)
    for row, label in zip(targets, y, strict=True):
        row[label] += 1 - smoothing
    return targets


def assert_targets(found, y, partner_weight=0.0):
    """Compares targets, smoothed by 0.1, with those of a batch mixed with its reverse."""
    own = smoothed(y)
    expected = (1 - partner_weight) * own + partner_weight * own.flip(0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def extent(centre, side, length):
    """Gives a clipped square's first pixel along an axis, and the one past its last."""
    first = centre - side // 2
    return max(first, 0), min(first + side, length)


def box_of(mask):
    """Gives top, bottom, left and right of a mask ``[H, W]`` that must be one full box."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert mask[top:bottom, left:right].all()
    assert mask.sum() == (bottom - top) * (right - left)
    return int(top), int(bottom), int(left), int(right)


def centres_of(masks, side):
    """Finds the centre of each clipped square in ``[B, H, W]``: rows and columns."""
    tables = [{extent(c, side, n): c for c in range(n)} for n in masks.shape[1:]]
    boxes = [box_of(mask) for mask in masks.numpy()]
    return np.array([(tables[0][box[:2]], tables[1][box[2:]]) for box in boxes]).T


def assert_counts(found, chances):
    """Compares counts of each value 0, 1, ... with its chance."""
    chances = np.asarray(chances)
    counts = np.bincount(found, minlength=len(chances))
    assert len(counts) == len(chances)
    error = np.sqrt(len(found) * chances * (1 - chances))
    assert (np.abs(counts - len(found) * chances) <= ERRORS * error).all()


def assert_independent(one, other):
    assert abs(np.corrcoef(one, other)[0, 1]) < ERRORS / len(one) ** 0.5


def assert_uniform(found, low, high):
    """Compares a sample with a uniform distribution; by chance one in 1000 is so far off."""
    found = np.sort(found)
    assert found[0] >= low
    assert found[-1] <= high
    expected = (found - low) / (high - low)
    steps = np.arange(len(found) + 1) / len(found)
    away = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert away < 1.95 / len(found) ** 0.5


class TestCutout:
    def test_the_centre_is_any_pixel_and_each_image_has_its_own(self):
        random_seed(0)
        mixed, _ = make("cutout")(torch.ones(4096, 1, 32, 32), torch.zeros(4096, dtype=torch.long))
        cut = mixed[:, 0] == 0
        rows, columns = centres_of(cut, side=16)
        for found in (rows, columns):
            assert_counts(found, np.full(32, 1 / 32))
        assert_independent(rows, columns)
        assert_independent(rows[1:], rows[:-1])
        areas = cut.sum(dim=(1, 2)).double()
        # Along an axis 8, 9, ..., 15, then 17 times 16, then 15, 14, ..., 9: a mean of 14 pixels.
        assert abs(areas.mean() - 196.0) < ERRORS * areas.std() / 64
        assert areas.min() == 64
        assert areas.max() == 256

    @pytest.mark.parametrize(("height", "width", "side"), [(12, 9, 4), (7, 10, 3)])
    def test_the_side_is_half_of_the_shorter_one_and_all_else_stays(
        self, batch, height, width, side
    ):
        x, y = batch(count=300, height=height, width=width)
        random_seed(0)
        mixed, targets = make("cutout", label_smoothing=0.1)(x, y)
        cut = (mixed == 0).all(dim=1)
        rows, columns = centres_of(cut, side)
        assert set(rows) == set(range(height))
        assert set(columns) == set(range(width))
        everywhere = cut[:, None].expand_as(x)
        assert torch.equal(mixed[~everywhere], x[~everywhere])
        assert_targets(targets, y)

    @pytest.mark.parametrize("side", [1, 2, 3, 4])
    def test_squares_are_those_of_a_loop(self, side):
        centres = list(itertools.product(range(5), range(7)))
        rows, columns = torch.tensor(centres).T
        found = squares(rows, columns, side, (5, 7))
        for (row, column), square in zip(centres, found, strict=True):
            for i, j in itertools.product(range(5), range(7)):
                away = i - row, j - column  # an even square reaches one pixel further back
                inside = all(-(side // 2) <= a <= (side - 1) // 2 for a in away)
                assert square[0, i, j] == inside


class Quadratic(nn.Module):
    """Sums of squared pixels, weighted: a label's logit has the gradient weight times pixel.

    The weights are others for each size, and shifted by a class in training mode.
    """

    def __init__(self, *sizes):
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterDict()
        for size in sizes:  # heavy-tailed, so that squares differ much
            weight = torch.randn(5, 3, size, size, generator=generator)
            coarse = torch.rand(5, 1, size // 4, size // 4, generator=generator) ** 4
            coarse = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
            self.weights[str(size)] = nn.Parameter(weight * coarse)

    def forward(self, x):
        weight = self.weights[str(x.shape[-1])]
        weight = weight.roll(1, 0) if self.training else weight
        return torch.einsum("bchw,kchw->bk", x.square() / 2, weight)

    def gradient(self, x, y):
        """Gives the gradient in evaluation mode ``[B, C, H, W]`` in float64."""
        return (self.weights[str(x.shape[-1])].detach()[y] * x).double()


def importances(gradient, side):
    """Adds the saliency of a gradient ``[C, H, W]`` up around each pixel: ``[H, W]``."""
    saliency = np.abs(gradient.numpy()).max(axis=0)
    sums = np.zeros_like(saliency)
    for row, column in np.ndindex(*saliency.shape):
        (top, bottom), (left, right) = (
            extent(centre, side, n) for centre, n in zip((row, column), saliency.shape, strict=True)
        )
        sums[row, column] = saliency[top:bottom, left:right].sum()
    return sums


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the importances of which squares are drawn, and which side of the quantile it is."""
    kept = []
    draw = keepaugment.draw

    def keep(importance, important):
        kept.append((importance, important))
        return draw(importance, important)

    monkeypatch.setattr(keepaugment, "draw", keep)
    return kept


class TestDraw:
    def test_where_most_are_equal_the_important_ones_stay_out(self):
        importance = torch.zeros(20)
        importance[:5] = 1
        torch.manual_seed(0)
        rows, columns = keepaugment.draw(importance.view(4, 5).expand(2000, 4, 5), False)
        assert ((rows * 5 + columns) >= 5).all()

    @pytest.mark.parametrize("important", [True, False])
    def test_is_uniform_over_one_side_of_the_quantile(self, important):
        """The 0.6 quantile of 20 is between the 12th and the 13th, 0.6 of 19 steps up."""
        importance = torch.randperm(20, generator=torch.Generator().manual_seed(0)).view(4, 5) + 3.0
        torch.manual_seed(0)
        rows, columns = keepaugment.draw(importance.expand(20_000, 4, 5), important)
        order = (importance[rows, columns] - 3).long().numpy()
        first, last = (12, 20) if important else (0, 12)
        chances = np.zeros(20)
        chances[first:last] = 1 / (last - first)
        assert_counts(order, chances)

    @pytest.mark.parametrize("important", [True, False])
    def test_of_equal_squares_each_may_be_drawn(self, important):
        torch.manual_seed(0)
        rows, columns = keepaugment.draw(torch.full((20_000, 4, 5), 0.1), important)
        assert_counts((rows * 5 + columns).numpy(), np.full(20, 1 / 20))

    def test_each_image_has_a_quantile_of_its_own(self):
        """Beside an image a thousand times as salient, too."""
        ramp = torch.arange(20.0).view(4, 5)
        importance = torch.stack([ramp, 1000 * ramp, ramp.flip(0, 1)])
        torch.manual_seed(0)
        for _ in range(50):
            rows, columns = keepaugment.draw(importance, important=True)
            places = rows * 5 + columns
            assert (places[:2] >= 12).all()
            assert places[2] < 8


class TestKeepAugment:
    @pytest.mark.parametrize("side", [1, 2, 3, 6, 8])
    def test_square_sums_are_those_of_a_loop(self, side):
        maps = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0))
        found = keepaugment.square_sums(maps, side)
        expected = np.stack([importances(one[None].double(), side) for one in maps])
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5)

    def test_selective_cut_cuts_below_the_quantile(self, images):
        x, y = images
        x = x.abs() + 0.1
        network = Quadratic(32)
        mix = make("keep-cutout", network, label_smoothing=0.1)
        gradient = network.gradient(x, y)
        sums = np.stack([importances(one, side=16) for one in gradient])
        limits = np.quantile(sums, 0.6, axis=(1, 2))
        places = set()
        for seed in range(30):
            random_seed(seed)
            mixed, targets = mix(x, y)
            cut = (mixed == 0).all(dim=1)
            everywhere = cut[:, None].expand_as(x)
            assert torch.equal(mixed[~everywhere], x[~everywhere])
            rows, columns = centres_of(cut, side=16)
            assert (sums[range(8), rows, columns] < limits).all()
            assert_targets(targets, y)
            places.update(zip(rows, columns, strict=True))
        assert len(places) > 100  # of 240 draws

    def test_selective_paste_gives_an_important_square_back(self, images, monkeypatch):
        """RandAugment inverts here; pixels are on no byte, and some beyond black and white."""

        class Inverted:
            def __init__(self, operations, magnitude):
                assert (operations, magnitude) == (3, 15)

            def __call__(self, image):
                assert image.dtype == torch.uint8
                assert image.shape == (3, 32, 32)
                return 255 - image

        monkeypatch.setattr(keepaugment, "RandAugment", Inverted)
        _, y = images
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(-20, 276, (8, 3, 32, 32), generator=generator)
        offset = torch.tensor([-0.3, 0.3])[values % 2]
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
            for v in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
        )
        x = (((values + offset) / 255 - mean) / std).float()
        inverted = ((255 - values.clamp(0, 255)) / 255 - mean) / std
        network = Quadratic(32)
        mix = make("keep-randaugment", network, label_smoothing=0.1)
        sums = np.stack([importances(one, side=8) for one in network.gradient(x, y)])
        limits = np.quantile(sums, 0.6, axis=(1, 2))
        places = set()
        for seed in range(30):
            random_seed(seed)
            mixed, targets = mix(x, y)
            kept = (mixed == x).all(dim=1)
            outside = ~kept[:, None].expand_as(x)
            torch.testing.assert_close(
                mixed[outside].double(), inverted[outside], rtol=0, atol=1e-5
            )
            rows, columns = centres_of(kept, side=8)
            assert (sums[range(8), rows, columns] > limits).all()
            assert_targets(targets, y)
            places.update(zip(rows, columns, strict=True))
        assert len(places) > 100  # of 240 draws

    def test_randaugment_draws_for_each_image_anew(self, images):
        """Of eight copies of an image hardly two come out alike, but of a place where all are."""
        x, y = images
        x = x[:1].expand(8, 3, 32, 32)
        random_seed(0)
        mixed, _ = make("keep-randaugment", Quadratic(32))(x, y)
        alike = (mixed[:, None] == mixed).float().mean(dim=(2, 3, 4))
        assert (alike.sum() - 8) / 56 < 0.5

    def test_the_importance_may_be_that_of_smaller_images(self, images, drawn):
        """By hand: the triangle filter from 32 to 16 pixels, and bilinear back."""
        x, y = images
        network = Quadratic(16, 32)
        shrink, grow = np.zeros((16, 32)), np.zeros((32, 16))
        for i in range(16):
            for j, weight in enumerate((1, 3, 3, 1), start=2 * i - 1):
                if 0 <= j < 32:
                    shrink[i, j] = weight
        shrink /= shrink.sum(axis=1, keepdims=True)
        for i in range(32):
            place = min(max((i + 0.5) / 2 - 0.5, 0), 15)
            low = int(place)
            grow[i, low] += 1 - (place - low)
            grow[i, min(low + 1, 15)] += place - low
        shrink, grow = torch.from_numpy(shrink), torch.from_numpy(grow)
        small = shrink @ x.double() @ shrink.T
        saliency = network.gradient(small, y).abs().amax(dim=1, keepdim=True)
        half, whole = grow @ saliency @ grow.T, network.gradient(x, y)
        for size, gradient in ((16, half), (32, whole), (48, whole)):
            make("keep-cutout", network, saliency_size=size)(x, y)
            importance, important = drawn.pop()
            assert not important
            sums = np.stack([importances(one, side=16) for one in gradient])
            np.testing.assert_allclose(importance.double().numpy(), sums, rtol=1e-4)

    def test_without_an_early_head_the_loss_is_the_trainings(self):
        mix = make("keep-cutout", Quadratic(32))
        assert module_of(mix) is None
        loss_fn = nn.Identity()
        assert loss_of(mix, loss_fn) is loss_fn


class TestEarlyHead:
    def pooled(self, features):
        return features.double().mean(dim=(2, 3))

    def logits(self, head, pooled):
        return pooled @ head.linear.weight.double().T + head.linear.bias.double()

    @pytest.mark.parametrize(("name", "side"), [("keep-cutout", 16), ("keep-randaugment", 8)])
    def test_the_importance_is_that_of_the_first_stage_alone(
        self, model, images, drawn, name, side
    ):
        x, y = images
        model(3 * x + 1)  # running statistics unlike the batch's
        mix = make(f"{name}-early", model)
        with torch.no_grad():
            mix.module.linear.weight.mul_(10)

        def refuse(*_):
            raise RuntimeError("a later stage was called")

        handle = model.stages[1].register_forward_pre_hook(refuse)
        mix(x, y)
        with pytest.raises(RuntimeError, match="a later stage was called"):
            make(name, model)(x, y)
        handle.remove()
        importance, important = drawn.pop()
        assert important == (side == 8)
        model.eval()
        leaf = x.clone().requires_grad_()
        logits = self.logits(mix.module, self.pooled(model.stages[0](model.stem(leaf))))
        logits[range(8), y].sum().backward()
        sums = np.stack([importances(one.double(), side) for one in leaf.grad])
        np.testing.assert_allclose(importance.double().numpy(), sums, rtol=1e-4, atol=1e-7)

    def test_the_loss_is_by_hand_that_of_both_heads(self, model, images):
        """A mix that reaches no pass, and a pass in evaluation mode, are of no account."""
        x, y = images
        mix = make("keep-cutout-early", model, label_smoothing=0.1)
        mix(x.flip(0), y)
        mixed, targets = mix(x, y)
        model.eval()(x.flip(0))
        assert len(model.stages[0]._forward_hooks) == 1
        seen = []
        hook = model.stages[0].register_forward_hook(lambda *args: seen.append(args[2]))
        logits = model.train()(mixed)
        hook.remove()
        assert not model.stages[0]._forward_hooks
        loss = mix.loss(logits, targets)
        pooled = self.pooled(seen[0])
        early = self.logits(mix.module, pooled)
        wanted = targets.double()
        main_loss, early_loss = (
            -(wanted * scores.double().log_softmax(dim=1)).sum(dim=1).mean()
            for scores in (logits, early)
        )
        expected = main_loss + 0.3 * early_loss
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(expected, parameters, retain_graph=True)
        loss.backward()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
        error = 0.3 * (early.softmax(dim=1) - wanted) / 8
        for parameter, gradient in (
            (mix.module.linear.weight, error.T @ pooled),
            (mix.module.linear.bias, error.sum(dim=0)),
        ):
            torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-4, atol=1e-7)
        assert len(list(mix.module.parameters())) == 2  # the network's are none of the head's

    @pytest.mark.parametrize("early", ["", "-early"])
    def test_the_network_is_left_as_it_was_frozen_parts_too(self, model, images, early):
        x, y = images
        model.stages[0].eval()
        modes = [module.training for module in model.modules()]
        state = {name: value.clone() for name, value in model.state_dict().items()}
        mix = make(f"keep-cutout{early}", model)
        mix(x, y)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        trained = [*model.parameters(), *(mix.module.parameters() if early else ())]
        assert all(parameter.requires_grad and parameter.grad is None for parameter in trained)

    @pytest.mark.parametrize(
        ("name", "stage"),
        [
            ("resnet10t", "layer1"),
            ("preactresnet8_cifar", "stages.0"),
            ("tf_efficientnet_lite0", "blocks.0"),
        ],
    )
    def test_sees_the_first_stage_of_timms_models(self, batch, name, stage):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5).eval()
        head = make("keep-cutout-early", network).module
        x, _ = batch(count=2, height=64, width=64)
        seen = []
        hook = network.get_submodule(stage).register_forward_hook(
            lambda *args: seen.append(args[2])
        )
        with torch.no_grad():
            network(x)
            hook.remove()
            found = head.early_logits(network, x)
            expected = self.logits(head, self.pooled(seen[0]))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

    def test_a_model_without_stages_is_refused(self, small_net):
        with pytest.raises(
            ValueError, match="needs a timm model whose feature_info names 1 stages"
        ):
            make("keep-cutout-early", small_net())


class TestResizeMix:
    def test_pastes_the_whole_partner_by_nearest_neighbour(self):
        """Each pixel of the batch has a value of its own, so that its copies are known."""
        height, width = 20, 32
        x = torch.arange(6 * 3 * height * width, dtype=torch.float64).view(6, 3, height, width)
        y = torch.arange(6) % 5
        mix = make("resizemix", label_smoothing=0.1)
        sizes = set()
        for seed in range(60):
            random_seed(seed)
            mixed, targets = mix(x, y)
            boxes = [box_of(mask.any(axis=0)) for mask in (mixed != x).numpy()]
            ((rows, columns),) = {
                (bottom - top, right - left) for top, bottom, left, right in boxes
            }
            assert max(rows / height, columns / width) < min(
                (rows + 1) / height, (columns + 1) / width
            )  # there is a scale that rounds down to both
            for image, partner, (top, _, left, _) in zip(mixed, x.flip(0), boxes, strict=True):
                for i, j in itertools.product(range(rows), range(columns)):
                    source = partner[:, i * height // rows, j * width // columns]
                    assert torch.equal(image[:, top + i, left + j], source)
            assert_targets(targets, y, rows * columns / (height * width))
            sizes.add((rows, columns))
            assert len(set(boxes)) > 1
        assert len(sizes) > 10

    @pytest.mark.parametrize("scale", [0.5, 0.34])
    def test_the_place_is_around_any_pixel_and_moved_inside(self, monkeypatch, scale):
        """One scale for the batch, a place for each image; a border takes all that are cut off."""
        monkeypatch.setattr(np.random, "uniform", lambda *_: scale)
        x = torch.arange(4096.0).view(-1, 1, 1, 1).expand(4096, 1, 16, 12)
        random_seed(0)
        mixed, _ = make("resizemix")(x, torch.zeros(4096, dtype=torch.long))
        boxes = np.array([box_of(mask[0]) for mask in (mixed != x).numpy()])
        for first, length in ((0, 16), (2, 12)):
            side = int(scale * length)
            assert (boxes[:, first + 1] - boxes[:, first] == side).all()
            chances = np.zeros(length - side + 1)
            for centre in range(length):
                chances[min(max(centre - side // 2, 0), length - side)] += 1 / length
            assert_counts(boxes[:, first], chances)
        assert_independent(boxes[:, 0], boxes[:, 2])
        assert_independent(boxes[1:, 0], boxes[:-1, 0])

    def test_the_scale_is_uniform_from_01_to_08(self):
        x = torch.stack([torch.zeros(1, 1000, 10), torch.ones(1, 1000, 10)])
        mix = make("resizemix")
        random_seed(0)
        rows = [mix(x, torch.tensor([0, 1]))[0][0].amax(dim=2).sum().item() for _ in range(1500)]
        assert_uniform((np.array(rows) + 0.5) / 1000, 0.1, 0.801)

    def test_the_smallest_patch_is_a_pixel(self, batch, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low, high: low)
        x, y = batch(count=4, height=4, width=4)
        mixed, targets = make("resizemix", label_smoothing=0.1)(x, y)
        assert ((mixed != x).any(dim=1).sum(dim=(1, 2)) == 1).all()
        assert_targets(targets, y, 1 / 16)


class TestSmoothMix:
    @pytest.fixture
    def mask_of(self):
        """Mixes zeros with ones: image 0 is the mask, image 1 what is left."""

        def run(height, width):
            x = torch.stack([torch.zeros(1, height, width), torch.ones(1, height, width)])
            mixed, targets = make("smoothmix", label_smoothing=0.1)(x, torch.tensor([1, 3]))
            mask = mixed[0, 0].double().numpy()
            torch.testing.assert_close(mixed[1], 1 - mixed[0])
            assert_targets(targets, torch.tensor([1, 3]), mask.mean())
            return mask

        return run

    def gaussian(self, height, width):
        """Draws and computes the mask anew, pixel by pixel in float64."""
        (row, spread_i), (column, spread_j) = (
            (np.random.randint(side), np.random.uniform(0.25, 0.5) * side)
            for side in (height, width)
        )
        mask = np.zeros((height, width))
        for i, j in np.ndindex(height, width):
            along = (i - row) ** 2 / (2 * spread_i**2), (j - column) ** 2 / (2 * spread_j**2)
            mask[i, j] = np.exp(-along[0]) * np.exp(-along[1])
        return mask

    def test_the_mask_is_the_gaussian_that_was_drawn(self, mask_of):
        for seed in range(10):
            random_seed(seed)
            found = mask_of(18, 32)
            random_seed(seed)
            np.testing.assert_allclose(found, self.gaussian(18, 32), rtol=0, atol=1e-6)

    def test_mixes_the_whole_batch_by_the_same_mask(self, images):
        x, y = images
        for seed in range(5):
            random_seed(seed)
            mixed, targets = make("smoothmix", label_smoothing=0.1)(x, y)
            random_seed(seed)
            mask = torch.from_numpy(self.gaussian(32, 32))
            expected = (1 - mask) * x.double() + mask * x.double().flip(0)
            torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-5)
            assert_targets(targets, y, mask.mean().item())

    def test_centres_and_spreads_are_uniform_and_independent(self, mask_of):
        random_seed(0)
        masks = np.stack([mask_of(32, 32) for _ in range(1500)])
        assert masks.max(axis=(1, 2)).min() == 1  # the peak is 1, on a pixel
        rows, columns = np.unravel_index(masks.reshape(1500, -1).argmax(axis=1), (32, 32))
        spreads = []
        for axis, centres in ((0, rows), (1, columns)):
            assert_counts(centres, np.full(32, 1 / 32))
            far = np.where(centres < 16, centres + 8, centres - 8)  # eight pixels away
            places = (far, columns) if axis == 0 else (rows, far)
            beside = masks[(np.arange(1500), *places)]
            spreads.append(8 / np.sqrt(-2 * np.log(beside)) / 32)
            assert_uniform(spreads[axis], 0.25 - 1e-5, 0.5 + 1e-5)  # float32's last digits
        for one, other in itertools.combinations((rows, columns, *spreads), 2):
            assert_independent(one, other)
        # The specification's figures, of a simulation of its own to two digits.
        weights = masks.mean(axis=(1, 2))
        found = np.quantile(weights, [0.05, 0.95])
        assert abs(weights.mean() - 0.42) < 0.005 + ERRORS * weights.std() / 1500**0.5
        np.testing.assert_allclose(found, [0.25, 0.61], rtol=0, atol=0.03)
