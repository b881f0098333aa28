"""The methods that reach into hidden layers, against formulas in float64 and passes by hand."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from timm.layers import SelectAdaptivePool2d
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import nn

import harness.models  # noqa: F401
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.methods import METHODS, Training
from harness.methods.base import MethodConfig
from harness.methods.catchupmix import hand_on_weakest
from harness.methods.hypmix import hyperbolic_mix
from harness.run_config import RunConfig
from harness.store import load_checkpoint
from harness.train import checkpoint_path, load_model, train

CPU = torch.device("cpu")


def make(name, model, **kwargs):
    return METHODS[name](Training(MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), 5))


def hidden_hooks(model):
    """Counts the hooks that wait in a network."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_hand(model, x, layer, change):
    """Passes images through a network's parts, changing what comes to a layer; 0 is the images."""
    hidden = model.stem(change(x) if layer == 0 else x)
    for index, stage in enumerate(model.stages, start=1):
        hidden = stage.forward(hidden)  # past the hooks
        if index == layer:
            hidden = change(hidden)
    return model.head(model.norm(hidden))


def as_in_training(model):
    """Has a network's stages mix as in training, with batch norm's statistics as they are."""
    model.eval()
    for stage in model.stages:
        stage.training = True


def assert_close(logits, expected, error):
    """Compares logits by the largest of them, for those of an untrained network are small."""
    assert (logits - expected).abs().max() <= error * expected.abs().max()


def changed_box(one, other):
    """Finds the rectangle that two batches differ in; None if they are the same."""
    changed = (one != other).any(dim=1)
    assert (changed == changed[:1]).all()  # one box for all images
    rows, columns = torch.where(changed[0])
    if not len(rows):
        return None
    top, bottom = rows.min().item(), rows.max().item() + 1
    left, right = columns.min().item(), columns.max().item() + 1
    assert changed[0, top:bottom, left:right].all()
    return top, bottom, left, right


def length(rows):
    """Returns the Euclidean norm of each row."""
    return np.sqrt((rows * rows).sum(axis=-1, keepdims=True))


def rescaled(rows, new_length):
    """Gives rows another length, zero rows none."""
    old = length(rows)
    return np.divide(new_length * rows, old, out=np.zeros_like(rows), where=old > 0)


def to_ball(rows):
    return rescaled(rows, np.tanh(length(rows)))


def from_ball(points):
    return rescaled(points, np.arctanh(length(points)))


def moebius_times(factor, points):
    return rescaled(points, np.tanh(factor * np.arctanh(length(points))))


def moebius_plus(p, q):
    pq, pp, qq = ((a * b).sum(axis=-1, keepdims=True) for a, b in ((p, q), (p, p), (q, q)))
    return ((1 + 2 * pq + qq) * p + (1 - pp) * q) / (1 + 2 * pq + pp * qq)


def mixed_in_ball(one, other, lam):
    """Mixes rows by the paper's formula, each operation written out."""
    one, other = (np.asarray(rows, dtype=np.float64) for rows in (one, other))
    first, second = moebius_times(lam, to_ball(one)), moebius_times(1 - lam, to_ball(other))
    return from_ball(moebius_plus(first, second))


def hyperbolic(one, other, lam):
    """Calls the method on arrays; float32 inside."""
    return hyperbolic_mix(torch.tensor(one), torch.tensor(other), lam).numpy()


def of_lengths(shape, lengths, seed=0):
    """Draws rows of the lengths given."""
    rows = np.random.default_rng(seed).normal(size=(2, len(lengths), *shape))
    return rescaled(rows, np.array(lengths).reshape(-1, *[1] * len(shape)))


def rows_of(count, largest=1.25):
    """Draws so many batches of two rows of the same width."""
    numbers = st.floats(-largest, largest, width=32, allow_subnormal=False)
    widths = st.integers(1, 4)
    return widths.flatmap(
        lambda width: arrays.arrays(np.float64, (count, 2, width), elements=numbers)
    )


weights = st.floats(0, 1)
property_test = settings(max_examples=60, deadline=None)


class TestHypMix:
    @property_test
    @given(rows_of(2), weights)
    def test_is_the_papers_formula(self, pair, lam):
        np.testing.assert_allclose(hyperbolic(*pair, lam), mixed_in_ball(*pair, lam), atol=2e-5)

    def test_is_the_papers_formula_close_to_the_balls_border(self):
        """A row of length 5 is a point at 0.99991 of the way; float32 resolves no more."""
        one, other = of_lengths((7, 32), [0.01, 0.5, 2, 3, 4, 5])
        for lam in (0.1, 0.5, 0.8):
            expected = mixed_in_ball(one, other, lam)
            np.testing.assert_allclose(hyperbolic(one, other, lam), expected, atol=1e-3)
        straight = 0.5 * one + 0.5 * other
        assert np.abs(mixed_in_ball(one, other, 0.5) - straight).max() > 0.1

    def test_gives_the_value_that_was_worked_out_by_hand(self):
        """The first image comes first: addition in the ball does not commute."""
        one, other = np.array([0.3, -0.2, 0.5]), np.array([-0.4, 0.1, 0.25])
        expected = [-0.171259486, -0.0000458194628, 0.342770978]
        np.testing.assert_allclose(hyperbolic(one, other, 0.3), expected, atol=2e-7)
        turned = hyperbolic(other, one, 0.7)
        np.testing.assert_allclose(length(turned), length(np.array(expected)), atol=2e-7)
        assert np.abs(turned - expected).max() > 1e-3

    @property_test
    @given(rows_of(1), weights)
    def test_a_row_mixed_with_itself_stays(self, rows, lam):
        np.testing.assert_allclose(hyperbolic(rows[0], rows[0], lam), rows[0], atol=2e-5)

    @property_test
    @given(rows_of(2))
    def test_the_ends_of_the_weight_are_the_rows(self, pair):
        one, other = pair
        np.testing.assert_allclose(hyperbolic(one, other, 1.0), one, atol=2e-5)
        np.testing.assert_allclose(hyperbolic(one, other, 0.0), other, atol=2e-5)

    @property_test
    @given(rows_of(2, largest=1), weights, st.sampled_from([1.0, 0.1, 0.01]))
    def test_short_rows_are_mixed_along_a_straight_line(self, pair, lam, scale):
        """The ball is flat at its centre: the distance falls with the third power of lengths."""
        one, other = scale * pair
        distance = length(hyperbolic(one, other, lam) - (lam * one + (1 - lam) * other))
        longest = np.maximum(length(one), length(other))
        assert (distance <= longest**3 + 1e-6 * longest + 1e-30).all()

    def test_long_and_empty_rows_stay_finite_and_so_do_their_gradients(self):
        """Lengths end at artanh(1 - 1e-5), as the authors' do; directions are kept."""
        one, other = of_lengths((4, 8), [0, 1e-18, 1, 8, 50, 1e4])
        one[2, 1], other[2, 1], one[2, 2] = 0, 0, 0
        first, second = (torch.tensor(rows).float().requires_grad_() for rows in (one, other))
        for lam in (0.0, 0.3, 1.0):
            mixed = hyperbolic_mix(first, second, lam)
            assert mixed.isfinite().all()
            assert mixed.norm(dim=-1).max() <= np.arctanh(1 - 1e-5) + 2e-2
            for gradient in torch.autograd.grad(mixed.square().sum(), (first, second)):
                assert gradient.isfinite().all()
        kept = hyperbolic(one[3:], other[3:], 1.0)
        np.testing.assert_allclose(length(kept), np.arctanh(1 - 1e-5), atol=2e-2)
        np.testing.assert_allclose(kept / length(kept), one[3:] / length(one[3:]), atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_under_autocast_it_computes_in_float32(self, dtype):
        one, other = (torch.tensor(rows).to(dtype) for rows in of_lengths((9, 16), [0.5, 2, 4]))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = hyperbolic_mix(one, other, 0.3)
        assert mixed.dtype == dtype
        assert torch.equal(mixed, hyperbolic_mix(one.float(), other.float(), 0.3).to(dtype))
        expected = mixed_in_ball(one.double(), other.double(), 0.3)
        error = 2**-8 if dtype == torch.bfloat16 else 1e-4
        np.testing.assert_allclose(mixed.double(), expected, rtol=error, atol=1e-4)

    def test_mixes_the_hidden_layer_that_was_drawn(self, model, images):
        """By hand; each row of a map is one vector."""
        x, y = images[0] / 4, images[1]  # rows of a length that float32 resolves
        mix = make("hypmix", model)
        seen = {}
        for seed in range(12):
            random_seed(seed)
            layer, lam = np.random.randint(3), np.random.beta(2.0, 2.0)
            random_seed(seed)
            inputs, targets = mix(x.clone(), y)
            as_in_training(model)

            def change(hidden, lam=lam):
                partner = hidden.flip(0).detach()
                return torch.tensor(mixed_in_ball(hidden.detach(), partner, lam)).float()

            expected = by_hand(model, x, layer, change)
            assert_close(model(inputs), expected, error=1e-3)
            straight = by_hand(model, x, layer, lambda h, lam=lam: lam * h + (1 - lam) * h.flip(0))
            apart = (straight - expected).abs().max() / expected.abs().max()
            seen[layer] = max(apart.item(), seen.get(layer, 0))
            one_hot = torch.eye(5)[y]
            torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.flip(0))
            assert not hidden_hooks(model)
        assert seen.keys() == {0, 1, 2}
        assert min(seen.values()) > 0.02  # a straight line is another

    def test_evaluation_is_not_mixed(self, model, images):
        x, y = images
        clean = model.eval()(x)
        mix = make("hypmix", model)
        for seed in range(8):
            random_seed(seed)
            mix(x, y)
            assert torch.equal(model(x), clean)
            assert hidden_hooks(model) <= 1


def step(mix, model, x, y):
    """Mixes a batch, and takes its pass and its loss."""
    mixed, targets = mix(x, y)
    logits = model(mixed)
    return mixed, targets, logits, mix.loss(logits, targets)


def cross_entropy(logits, targets):
    """Computes the mean cross-entropy of soft targets in float64."""
    logits, targets = (values.detach().double().numpy() for values in (logits, targets))
    log_of_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * (logits - log_of_sum)).sum(axis=1).mean()


def nearest(images, height, width):
    """Shrinks images to the nearest neighbours, pixel by pixel."""
    small = torch.empty(*images.shape[:2], height, width)
    for i in range(height):
        for j in range(width):
            row, column = i * images.shape[2] // height, j * images.shape[3] // width
            small[:, :, i, j] = images[:, :, row, column]
    return small


def between_cells(maps, row, column):
    """Interpolates maps ``[B, C, h, w]`` at a place, whose whole numbers are the cells' centres."""
    value = 0.0
    row, column = (
        min(max(place, 0.0), size - 1.0)
        for place, size in zip((row, column), maps.shape[2:], strict=True)
    )
    for i in range(maps.shape[2]):
        for j in range(maps.shape[3]):
            weight = max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
            value = value + weight * maps[:, :, i, j]
    return value


def region_mean(maps, box, pixels):
    """Averages maps over a box, sampled at the centres of so many parts as it has cells, or more.

    Args:
        maps: ``[B, C, h, w]``, in float64.
        box: Top, bottom, left and right in pixels.
        pixels: Height and width of the images.
    """
    top, bottom, left, right = box
    scale = maps.shape[2] / pixels
    rows, columns = (int(np.ceil((end - start) * scale)) for start, end in (box[:2], box[2:]))
    total = 0.0
    for i in range(rows):
        for j in range(columns):
            row = (top + (i + 0.5) * (bottom - top) / rows) * scale - 0.5
            column = (left + (j + 0.5) * (right - left) / columns) * scale - 0.5
            total = total + between_cells(maps, row, column)
    return total / (rows * columns)


class TestRecursiveMix:
    def test_a_network_that_pools_other_maps_is_refused(self, images):
        vgg = timm.create_model("vgg11_bn", num_classes=5)
        mix = make("recursivemix", vgg)
        mix(*images)
        with pytest.raises(ValueError, match=r"pools maps \[B, 512, H, W\], got \[8, 4096"):
            vgg.forward_head(torch.zeros(8, 512, 7, 7))

    def batches(self, batch, count, **kwargs):
        return [batch(count=8, seed=seed, **kwargs) for seed in range(count)]

    def test_leaves_the_first_batch_as_it_is(self, model, images):
        x, y = images
        mixed, targets, logits, loss = step(make("recursivemix", model), model, x, y)
        assert torch.equal(mixed, x)
        assert torch.equal(targets, torch.eye(5)[y])
        assert loss.item() == pytest.approx(cross_entropy(logits, torch.eye(5)[y]), rel=1e-6)

    def test_pastes_the_mixes_of_the_batch_before_and_weighs_labels_by_area(self, model, batch):
        """Generation by generation; images that are wider than high tell the sides apart."""
        batches = self.batches(batch, 12, height=24, width=32)
        mix = make("recursivemix", model)
        random_seed(5)
        before = labels = None
        pasted = 0
        for x, y in batches:
            mixed, targets = mix(x, y)
            expected, one_hot = x.clone(), torch.eye(5)[y]
            if before is not None and (box := changed_box(mixed, x)):
                top, bottom, left, right = box
                small = nearest(before, bottom - top, right - left)
                expected[:, :, top:bottom, left:right] = small
                share = (bottom - top) * (right - left) / (24 * 32)
                one_hot = (1 - share) * one_hot + share * labels
                pasted += 1
            assert torch.equal(mixed, expected)
            torch.testing.assert_close(targets, one_hot)
            before, labels = expected, one_hot
        assert pasted >= 9
        assert ((labels > 1e-4) & (labels < 0.999)).sum(dim=1).max() >= 3  # of many generations

    def test_labels_are_smoothed_once(self, model, batch):
        mix = make("recursivemix", model, label_smoothing=0.1)
        random_seed(5)
        for x, y in self.batches(batch, 4):
            _, targets = mix(x, y)
            torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
            assert targets.min().item() == pytest.approx(0.02, rel=1e-5)

    def test_the_boxs_share_is_drawn_as_the_paper_says(self, model):
        """Uniform up to one half, less what the border cuts off: simulated with other numbers."""
        generator = np.random.default_rng(0)
        side = 32 * np.sqrt(generator.uniform(0, 0.5, size=20000))
        ends = []
        for _ in "yx":
            centre = generator.uniform(0, 32, size=20000)
            ends.append(np.clip(centre + side / 2, 0, 32) - np.clip(centre - side / 2, 0, 32))
        simulated = ends[0] * ends[1] / 1024
        x, y = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
        mix = make("recursivemix", model)
        random_seed(0)
        mix(x, y)
        shares = []
        for number in range(1, 800):
            mixed, _ = mix(x + number, y)
            shares.append((mixed != number).float()[0, 0].mean().item())
        assert max(shares) <= 0.5
        assert np.mean(shares) == pytest.approx(simulated.mean(), abs=0.02)
        assert np.quantile(shares, 0.9) == pytest.approx(np.quantile(simulated, 0.9), abs=0.04)

    def test_the_loss_asks_the_box_for_the_old_prediction(self, model, batch):
        """By hand, by interpolation written as loops."""
        mix = make("recursivemix", model)
        with torch.no_grad():
            mix.module.linear.weight.mul_(20)  # so that the region is seen
        weight, bias = (p.detach().double() for p in mix.module.linear.parameters())
        random_seed(1)
        old, compared = None, 0
        for x, y in self.batches(batch, 7, height=32, width=32):
            mixed, targets, logits, loss = step(mix, model, x, y)
            plain = cross_entropy(logits, targets)
            box = changed_box(mixed, x)
            if box is None:
                assert loss.item() == pytest.approx(plain, rel=1e-6)
            else:
                share = (box[1] - box[0]) * (box[3] - box[2]) / 1024
                features = model.forward_features(mixed).detach().double()
                asked = region_mean(features, box, 32) @ weight.T + bias
                consistency = cross_entropy(asked, old.softmax(dim=1))
                assert (loss.item() - plain) / (0.1 * share) == pytest.approx(consistency, rel=1e-3)
                whole = features.mean(dim=(2, 3)) @ weight.T + bias
                assert abs(cross_entropy(whole, old.softmax(dim=1)) / consistency - 1) > 0.01
                compared += 1
            old = logits.detach().double()
        assert compared >= 4

    def test_a_box_of_whole_cells_is_asked_by_their_mean(self, model, batch, monkeypatch):
        """Pixels 8 to 24 and 4 to 20, four of them a cell."""
        (x0, y0), (x1, y1) = self.batches(batch, 2, height=32, width=32)
        mix = make("recursivemix", model)
        monkeypatch.setattr(np.random, "uniform", lambda *_: 0.25)
        centres = iter([16, 12, 16, 12])
        monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(centres))
        _, _, old, _ = step(mix, model, x0, y0)
        mixed, targets, logits, loss = step(mix, model, x1, y1)
        assert changed_box(mixed, x1) == (8, 24, 4, 20)
        cells = model.forward_features(mixed)[:, :, 2:6, 1:5]
        asked = mix.module.linear(cells.mean(dim=(2, 3)))
        consistency = cross_entropy(asked, old.double().softmax(dim=1))
        expected = cross_entropy(logits, targets) + 0.1 * 0.25 * consistency
        assert loss.item() == pytest.approx(expected, rel=2e-6)

    def test_gradients_reach_the_classifier_and_the_network_but_not_the_target(self, model, batch):
        (x0, y0), (x1, y1) = self.batches(batch, 2, height=32, width=32)
        mix = make("recursivemix", model)
        random_seed(2)
        _, _, old, _ = step(mix, model, x0, y0)
        mixed, targets, logits, loss = step(mix, model, x1, y1)
        assert changed_box(mixed, x1)
        first = model.stem.conv.weight
        consistency = loss - SoftTargetCrossEntropy()(logits, targets)
        parts = [first, *mix.module.linear.parameters(), model.head.fc.weight, old]
        *reached, head, target = torch.autograd.grad(consistency, parts, allow_unused=True)
        assert all(gradient.abs().max() > 0 for gradient in reached)
        assert head is None or head.abs().max() < 1e-9  # the network's own classifier is not asked
        assert target is None

    def test_evaluation_passes_do_not_count(self, model, batch):
        """Between mixing and training, and between a batch and the next, of whatever size."""
        batches = self.batches(batch, 3, height=32, width=32)
        losses = []
        for looks in (False, True):
            torch.manual_seed(0)
            network = timm.create_model("preactresnet8_cifar", num_classes=5)
            mix = make("recursivemix", network)
            random_seed(2)
            for x, y in batches:
                mixed, targets = mix(x, y)
                if looks:
                    clean = network.eval()(x[:3])
                    network.train()
                logits = network(mixed)
                assert not hidden_hooks(network)
                loss = mix.loss(logits, targets)
                if looks:
                    network.eval()(x + 1)
                    assert not torch.equal(network(x[:3]), clean)  # training moved batch norm
                    network.train()
                losses.append(loss.item())
        assert losses[:3] == losses[3:]
        assert len(set(losses)) == 3

    def test_a_batch_that_never_reached_the_network_leaves_no_hook_behind(self, model, batch):
        mix = make("recursivemix", model)
        random_seed(2)
        for x, y in self.batches(batch, 3, height=32, width=32):
            mix(x, y)
            assert hidden_hooks(model) == 1
        _, targets, logits, loss = step(mix, model, *batch(count=8, height=32, width=32))
        # Nothing is known of what the network makes of the batch before.
        assert loss.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-6)
        assert not hidden_hooks(model)

    @pytest.mark.parametrize("shape", [{"count": 6}, {"count": 8, "height": 24}])
    def test_a_batch_of_another_size_is_left_alone(self, model, batch, shape):
        size = {"count": 8, "height": 32, "width": 32}
        mix = make("recursivemix", model)
        random_seed(2)
        step(mix, model, *batch(**size))
        x, y = batch(**size, seed=2)
        assert changed_box(step(mix, model, x, y)[0], x)  # the next loss must forget it
        x, y = batch(**{**size, **shape}, seed=3)
        mixed, targets, logits, loss = step(mix, model, x, y)
        assert torch.equal(mixed, x)
        assert torch.equal(targets, torch.eye(5)[y])
        assert loss.item() == pytest.approx(cross_entropy(logits, targets), rel=1e-6)
        other, y = batch(**{**size, **shape}, seed=4)
        mixed, *_ = step(mix, model, other, y)
        top, bottom, left, right = changed_box(mixed, other)
        small = nearest(x, bottom - top, right - left)  # it is what the next one is mixed with
        assert torch.equal(mixed[:, :, top:bottom, left:right], small)

    def test_a_network_without_one_pooling_layer_is_refused(self, small_net):
        wanted = "recursivemix needs a timm model with one pooling layer.* got {} for {}"
        with pytest.raises(ValueError, match=wanted.format(0, "SmallNet")):
            make("recursivemix", small_net())
        pools = nn.Sequential(SelectAdaptivePool2d(), SelectAdaptivePool2d())
        with pytest.raises(ValueError, match=wanted.format(2, "Sequential")):
            make("recursivemix", pools)

    def test_a_run_that_was_cut_off_ends_with_the_same_bits(self, tmp_path):
        """The batch before and the classifier of boxes are in the checkpoint, and are trained."""

        class CutOffError(Exception):
            pass

        def cut_off(epochs):
            if epochs == 1:
                raise CutOffError

        config = RunConfig(
            "recursivemix",
            seed=1,
            data=DataConfig(train_size=100, image_size=8, batch_size=20),
            schedule=ScheduleConfig(epochs=2),
        )
        path = checkpoint_path(config, tmp_path / "cut")
        with pytest.raises(CutOffError):
            train(config, tmp_path / "cut", CPU, progress=cut_off)
        first = load_checkpoint(path, CPU)
        cut, whole = (train(config, tmp_path / name, CPU) for name in ("cut", "whole"))
        losses = [[epoch["train_loss"] for epoch in line["history"]] for line in (cut, whole)]
        assert losses[0] == losses[1]
        assert cut["top1"] == whole["top1"]
        last, other = (
            load_checkpoint(checkpoint_path(config, tmp_path / name), CPU)
            for name in ("cut", "whole")
        )
        for part in ("model", "method"):
            assert last[part].keys() == other[part].keys()
            for name, value in last[part].items():
                values = value, other[part][name]
                if isinstance(value, torch.Tensor):
                    values = [values[0]], [values[1]]
                for one, two in zip(*values, strict=True):
                    assert torch.equal(one, two), name
        for name in ("linear.weight", "linear.bias"):
            assert not torch.equal(first["method"][name], last["method"][name])
        assert first["method"]["_extra_state"][0].shape == (20, 3, 8, 8)
        for name, value in load_model(config, tmp_path / "cut", 100, CPU).state_dict().items():
            assert torch.equal(value, last["model"][name]), name

    def test_the_classifier_of_boxes_is_trained_in_the_first_epoch(self, tmp_path):
        """Its weights in the checkpoint are not those that it began with."""
        config = RunConfig(
            "recursivemix",
            seed=1,
            data=DataConfig(train_size=100, image_size=8, batch_size=20),
            schedule=ScheduleConfig(epochs=1, weight_decay=0.0),
        )
        states = []
        for lr in (1.0, 1e-12):  # at almost no rate, what it began with
            config = replace(config, schedule=replace(config.schedule, lr=lr))
            train(config, tmp_path / str(lr), CPU)
            states.append(load_checkpoint(checkpoint_path(config, tmp_path / str(lr)), CPU))
        moved, begun = (state["method"]["linear.weight"] for state in states)
        assert (moved - begun).abs().max() > 1e-4
        assert not any("linear" in name for name in states[0]["model"])


def weakest_by_loops(maps, own):
    """Hands maps on, image by image and channel by channel."""
    count, channels = maps.shape[:2]
    numbers = maps.detach().double().numpy()
    mixed = maps.clone()
    for image in range(count):
        partner = count - 1 - image
        influence = []
        for channel in range(channels):
            norm, other = (
                np.sqrt((numbers[which, channel] ** 2).sum()) for which in (image, partner)
            )
            influence.append(0.5 if norm + other == 0 else norm / (norm + other))
        order = sorted(range(channels), key=lambda channel: influence[channel])
        for channel in order[own:]:
            mixed[image, channel] = maps[partner, channel]
    return mixed


class TestCatchUpMix:
    @pytest.mark.parametrize("own", [0, 1, 5, 11, 12])
    @pytest.mark.parametrize("count", [1, 6, 7])
    def test_hands_on_the_weakest_maps(self, count, own):
        """Of any size, some of them dead in one image or in both."""
        generator = torch.Generator().manual_seed(own)
        maps = torch.randn(count, 12, 4, 3, generator=generator).relu()
        maps = maps * 10 ** torch.randn(count, 12, 1, 1, generator=generator)
        maps[:, 3] = 0
        maps[0, 7] = 0
        assert torch.equal(hand_on_weakest(maps, own), weakest_by_loops(maps, own))

    def test_strong_maps_go_and_weak_ones_stay(self):
        """The partner's maps count: 2 is weak beside 9, and 3 is strong beside 1."""
        norms = torch.tensor([[2.0, 3.0, 5.0, 8.0], [9.0, 1.0, 6.0, 4.0]])
        mixed = hand_on_weakest(norms[:, :, None, None], 2)[:, :, 0, 0]
        assert mixed.tolist() == [[2, 1, 5, 4], [2, 1, 5, 4]]
        mixed = hand_on_weakest(norms[:, :, None, None], 1)[:, :, 0, 0]
        assert mixed.tolist() == [[2, 1, 6, 4], [2, 1, 5, 8]]

    def test_half_precision_is_ranked_in_float32(self):
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(6, 64, 8, 8, generator=generator).bfloat16()  # of about the same norm
        for own in (10, 30, 50):
            expected = hand_on_weakest(maps.float(), own).bfloat16()
            assert torch.equal(hand_on_weakest(maps, own), expected)

    def test_mixes_the_layer_that_was_drawn_and_weighs_by_channels(self, model, images):
        """By hand: CutMix of the images, or the maps of a stage."""
        x, y = images
        mix = make("catchupmix", model)
        seen = set()
        for seed in range(16):
            random_seed(seed)
            layer, lam = np.random.randint(4), np.random.beta(1.0, 1.0)
            random_seed(seed)
            inputs, targets = mix(x.clone(), y)
            as_in_training(model)
            if layer:
                assert torch.equal(inputs, x)
                channels = (16, 32, 64)[layer - 1]
                own = round(lam * channels)
                weight = own / channels
                expected = by_hand(model, x, layer, lambda h, own=own: weakest_by_loops(h, own))
                assert hidden_hooks(model) == 1
            else:
                top, bottom, left, right = changed_box(inputs, x)
                pasted = x.clone()
                pasted[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
                assert torch.equal(inputs, pasted)
                weight = 1 - (bottom - top) * (right - left) / 1024
                assert weight >= lam - 0.01  # the border cuts boxes off
                expected = by_hand(model, pasted, 0, lambda h: h)
            assert_close(model(inputs), expected, error=1e-5)
            one_hot = torch.eye(5)[y]
            torch.testing.assert_close(targets, weight * one_hot + (1 - weight) * one_hot.flip(0))
            assert not hidden_hooks(model)
            seen.add(layer)
        assert seen == {0, 1, 2, 3}

    def test_alpha_is_the_weights(self, model, images, monkeypatch):
        drawn = []
        monkeypatch.setattr(np.random, "beta", lambda *alphas: drawn.append(alphas) or 0.5)
        make("catchupmix", model)(*images)
        make("catchupmix", model, alpha=0.3)(*images)
        assert drawn == [(1.0, 1.0), (0.3, 0.3)]

    def test_one_pass_in_training_is_mixed_and_none_in_evaluation(self, model, images):
        x, y = images
        clean, mixed = model(x), 0  # in training, where batch norm takes the batch's statistics
        mix = make("catchupmix", model)
        for seed in range(10):
            random_seed(seed)
            evaluated = model.eval()(x)
            inputs, _ = mix(x, y)
            assert hidden_hooks(model) == torch.equal(inputs, x)
            assert torch.equal(model(x), evaluated)
            mixed += not torch.equal(model.train()(inputs), clean)
            assert not hidden_hooks(model)
            assert torch.equal(model(x), clean)
        assert mixed >= 9

    def test_a_batch_that_never_reached_the_network_leaves_no_hook_behind(self, model, images):
        mix = make("catchupmix", model)
        for seed in range(8):
            random_seed(seed)
            mix(*images)
            assert hidden_hooks(model) <= 1

    def test_maps_with_channels_last_in_their_shape_are_refused(self, images, monkeypatch):
        """Swin's are [B, H, W, C], whose rows are no channels."""
        swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=5)
        mix = make("catchupmix", swin)
        monkeypatch.setattr(np.random, "randint", lambda *_: 1)
        mix(*images)
        with pytest.raises(ValueError, match=r"maps \[B, 96, H, W\], got \[8, 14, 14, 96\]"):
            swin(torch.zeros(8, 3, 56, 56))

    def test_a_network_of_tokens_is_refused(self, images, monkeypatch):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
        mix = make("catchupmix", vit)
        monkeypatch.setattr(np.random, "randint", lambda *_: 1)
        mixed, _ = mix(*images)
        with pytest.raises(
            ValueError, match=r"needs a network .* maps \[B, 192, H, W\], got \[8, 5"
        ):
            vit(mixed)

    def test_a_network_without_stages_is_refused(self, small_net):
        with pytest.raises(ValueError, match="feature_info names 1 stages"):
            make("catchupmix", small_net())
