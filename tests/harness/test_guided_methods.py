"""GuidedMixup, R-Mix and SAGE on spectral maps, against formulas and loops written out here."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import nn

import harness.models  # noqa: F401
from harness.methods import METHODS, Training, rmix
from harness.methods.base import MethodConfig
from harness.methods.guidedmixup import far_partners, spectral_residual

PROBABILITIES = {"guidedmixup-sr": 0.5, "guidedmixup-ap": 0.8}
LEVELS = np.array([0.0, 0.11, 0.22, 0.33, 0.44, 0.55, 0.66, 0.77, 0.88, 0.99])
"""The quantiles that R-Mix draws from."""


@pytest.fixture
def worn_net(small_net):
    """A small network whose running statistics are unlike those of a batch."""
    net = small_net()
    with torch.no_grad():
        net.norm.running_mean.fill_(0.7)
        net.norm.running_var.copy_(torch.linspace(0.05, 4.0, 8))
    return net


@pytest.fixture
def linear():
    """Makes the least network that has a saliency, for what is tried many times."""

    def net(side, classes=5):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))

    return net


@pytest.fixture
def always(monkeypatch):
    """Lets every batch be mixed."""
    monkeypatch.setattr(np.random, "rand", lambda *_: 0.0)


def make(name, model, classes=5, **kwargs):
    training = Training(MethodConfig(**kwargs), model, SoftTargetCrossEntropy(), classes)
    return METHODS[name](training)


def smoothed_labels(targets, classes=5, smoothing=0.1):
    labels = np.full((len(targets), classes), smoothing / classes)
    labels[np.arange(len(targets)), targets.numpy()] += 1 - smoothing
    return labels


def clean_gradient(model, x, y):
    """Differentiates the mean cross-entropy of hard labels by autograd, on a copy in training."""
    inputs = x.clone().requires_grad_()
    logits = copy.deepcopy(model).train()(inputs)
    loss = torch.stack([-logits[i].log_softmax(0)[label] for i, label in enumerate(y)]).mean()
    return torch.autograd.grad(loss, inputs)[0].double().numpy()


def smoothed_maps(magnitude):
    """Smooths ``[B, H, W]`` pixel by pixel, and scales to a sum of 1.

    The Gaussian has sigma 1 at 32 pixels of the shorter side, a radius of two sigmas, and borders
    that reflect without repeating the edge.
    """
    height, width = magnitude.shape[1:]
    sigma = min(height, width) / 32
    maps = magnitude
    for axis, size in ((1, height), (2, width)):
        radius = min(math.ceil(2 * sigma), size - 1)
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.pad(maps, pad, mode="reflect")
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        maps = sum(
            weight * np.take(padded, np.arange(shift, shift + size), axis=axis)
            for shift, weight in enumerate(weights / weights.sum())
        )
    return maps / maps.sum(axis=(1, 2), keepdims=True)


def residual_maps(x):
    """Computes spectral residual maps ``[B, H, W]`` in float64."""
    spectrum = np.fft.fft2(x.double().numpy().mean(axis=1))
    logs = np.log(np.abs(spectrum))
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    mean = sum(np.roll(logs, shift, axis=(1, 2)) for shift in shifts) / 9
    back = np.fft.ifft2(np.exp(logs - mean) * spectrum / np.abs(spectrum))
    return smoothed_maps(np.abs(back) ** 2)


def walk(maps):
    """Finds partners by loops: always on to the farthest map that is still free, then home."""
    maps = np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)
    partners, here, free = {}, 0, list(range(1, len(maps)))
    while free:
        squares = [((maps[here] - maps[there]) ** 2).sum() for there in free]
        farthest = free[squares.index(max(squares))]  # the first of equals
        partners[here] = farthest
        free.remove(farthest)
        here = farthest
    partners[here] = 0
    return [partners[i] for i in range(len(maps))]


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat_with_a_spot(size, row, column, ground=0.2, grain=0.0):
    x = ground + grain * noise((1, 3, 32, 32), row + 32 * column)
    x[:, :, row : row + size, column : column + size] += 3
    return x


def peak_lies_at(maps, row, column, size):
    """Tells whether a map is largest at a square spot, or a pixel beside it."""
    peak = np.unravel_index(int(maps[0, 0].argmax()), maps.shape[2:])
    return all(
        first - 1 <= at <= first + size for at, first in zip(peak, (row, column), strict=True)
    )


class TestSpectralResidual:
    @pytest.mark.parametrize(
        "shape", [(4, 3, 32, 32), (3, 3, 30, 34), (2, 1, 17, 9), (2, 3, 64, 48)]
    )
    def test_is_that_of_the_formula_in_float64(self, shape):
        x = noise(shape, 0).cumsum(dim=2).cumsum(dim=3) + noise(shape, 1)
        maps = spectral_residual(x)
        assert maps.shape == (shape[0], 1, *shape[2:])
        expected = residual_maps(x)
        worst = np.abs(maps[:, 0].double().numpy() - expected).max(axis=(1, 2))
        assert (worst < 5e-3 * expected.max(axis=(1, 2))).all()
        torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), torch.ones(shape[0]))

    @given(
        height=st.integers(5, 40),
        width=st.integers(5, 40),
        scale=st.floats(1e-3, 1e3),
        seed=st.integers(0, 2**31),
    )
    @settings(max_examples=40, deadline=None)
    def test_does_not_change_with_contrast_and_turns_with_the_image(
        self, height, width, scale, seed
    ):
        x = noise((2, 3, height, width), seed)
        maps = spectral_residual(x)
        for changed, expected in (
            (scale * x, maps),
            (-x, maps),
            (x.flip(1), maps),
            (x.flip(0), maps.flip(0)),
            (x.flip(2), maps.flip(2)),
            (x.flip(3), maps.flip(3)),
            (x.mT, maps.mT),
        ):
            found = spectral_residual(changed)
            assert (found - expected).abs().max() < 5e-4 * maps.max()

    @pytest.mark.parametrize("grain", [0.02, 0.1])
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_peaks_at_a_bright_spot_on_a_noisy_ground(self, size, grain):
        for row, column in ((4, 20), (13, 13), (22, 5)):
            maps = spectral_residual(flat_with_a_spot(size, row, column, grain=grain))
            assert peak_lies_at(maps, row, column, size)

    @pytest.mark.parametrize("size", [1, 3, 5])
    def test_peaks_at_a_bright_spot_on_a_flat_ground(self, size):
        for row, column in ((4, 20), (13, 13), (22, 5)):
            maps = spectral_residual(flat_with_a_spot(size, row, column))
            assert peak_lies_at(maps, row, column, size)

    @pytest.mark.parametrize("size", [2, 4, 8])
    def test_peaks_at_a_spot_whose_spectrum_has_zeros(self, size):
        for row, column in ((4, 20), (13, 13), (22, 5)):
            maps = spectral_residual(flat_with_a_spot(size, row, column))
            assert peak_lies_at(maps, row, column, size)

    @pytest.mark.parametrize("shape", [(32, 32), (30, 34), (64, 64)])
    @pytest.mark.parametrize(
        "value",
        [
            0.3,
            -2.0,
            1e-4,
            0.0,
        ],
    )
    def test_of_one_colour_is_uniform(self, value, shape):
        maps = spectral_residual(torch.full((2, 3, *shape), value)) * math.prod(shape)
        torch.testing.assert_close(maps, torch.ones(2, 1, *shape), rtol=0, atol=1e-3)

    def test_an_image_of_one_colour_leaves_the_others_alone(self, images):
        x, _ = images
        expected = spectral_residual(x)
        expected[3] = 1 / 1024
        x[3] = 0.5
        torch.testing.assert_close(spectral_residual(x), expected, rtol=1e-3, atol=1e-7)

    def test_agrees_with_opencvs(self):
        """OpenCV smooths otherwise, and before it squares: 0.96 and 0.94 were measured."""
        cv2 = pytest.importorskip("cv2")
        photographs = pytest.importorskip("sklearn.datasets").load_sample_images().images
        theirs = cv2.saliency.StaticSaliencySpectralResidual_create()
        for photograph in photographs:
            small = cv2.resize(photograph, (64, 64), interpolation=cv2.INTER_AREA)
            done, expected = theirs.computeSaliency(small)
            assert done
            found = spectral_residual(torch.from_numpy(small / 255.0).permute(2, 0, 1)[None])
            assert np.corrcoef(found.flatten().numpy(), expected.ravel())[0, 1] > 0.9


class TestFarPartners:
    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_each_step_of_the_cycle_goes_to_the_farthest_free_map(self, data):
        """Whole numbers: distances are exact, and ties go to the first."""
        count, length = data.draw(st.integers(1, 32)), data.draw(st.integers(1, 4))
        row = st.lists(st.integers(0, 6), min_size=length, max_size=length)
        maps = data.draw(st.lists(row, min_size=count, max_size=count))
        found = far_partners(torch.tensor(maps, dtype=torch.float32))
        assert found.tolist() == walk(maps)

    def test_finds_them_for_maps_that_sum_to_one(self):
        """As many as a batch has, on which torch takes the distances by a matrix product."""
        x = noise((64, 3, 16, 16), 0)
        x[:, :, 4:8, 4:8] *= torch.linspace(0.1, 3, 64).view(-1, 1, 1, 1)
        maps = spectral_residual(x).flatten(1)
        partners = far_partners(maps)
        assert partners.tolist() == walk(maps)
        here, seen = 0, []
        for _ in range(64):
            here = partners[here]
            seen.append(here)
        assert sorted(seen) == list(range(64))
        assert here == 0

    def test_two_pair_with_each_other_and_one_with_itself(self):
        assert far_partners(torch.rand(2, 9)).tolist() == [1, 0]
        assert far_partners(torch.ones(2, 9)).tolist() == [1, 0]
        assert far_partners(torch.rand(1, 9)).tolist() == [0]


class TestGuidedMixup:
    def by_hand(self, x, y, maps, smoothing=0.1):
        """Mixes by float64 maps ``[B, H, W]``, pixel by pixel."""
        partners = walk(maps)
        mixed, labels = np.zeros(x.shape), np.zeros((len(x), 5))
        one_hot, pixels = smoothed_labels(y, smoothing=smoothing), x.double().numpy()
        for i, j in enumerate(partners):
            share = maps[i] / (maps[i] + maps[j])
            mixed[i] = share * pixels[i] + (1 - share) * pixels[j]
            labels[i] = share.mean() * one_hot[i] + (1 - share.mean()) * one_hot[j]
        return mixed, labels

    def maps(self, name, model, x, y):
        if name == "guidedmixup-sr":
            return spectral_residual(x)[:, 0].double().numpy()
        gradient = clean_gradient(model, x, y)
        return smoothed_maps(np.sqrt((gradient**2).sum(axis=1)))

    @pytest.mark.parametrize("size", [(32, 32), (30, 34)])
    @pytest.mark.parametrize("name", PROBABILITIES)
    def test_each_pixel_and_label_is_shared_as_the_two_maps_say(
        self, worn_net, batch, always, name, size
    ):
        x, _ = batch(count=7, height=size[0], width=size[1])
        y = torch.arange(7) % 5
        x[:, :, 5:9, 12:16] *= torch.linspace(1, 8, 7).view(-1, 1, 1, 1)
        mixed, targets = make(name, worn_net, label_smoothing=0.1)(x, y)
        pixels, labels = self.by_hand(x, y, self.maps(name, worn_net, x, y))
        np.testing.assert_allclose(mixed.numpy(), pixels, rtol=0, atol=2e-3)
        np.testing.assert_allclose(targets.numpy(), labels, rtol=0, atol=1e-4)
        assert np.abs(labels - labels.round(1)).max() > 1e-3  # no label is mixed by a half

    @pytest.mark.parametrize("name", PROBABILITIES)
    def test_mixes_with_its_probability_and_is_clean_otherwise(self, linear, batch, name):
        x, _ = batch(count=4, height=8, width=8)
        y = torch.arange(4)
        mix = make(name, linear(8), label_smoothing=0.1)
        count, clean = 600, 0
        random_seed(0)
        for _ in range(count):
            mixed, targets = mix(x, y)
            if torch.equal(mixed, x):
                clean += 1
                np.testing.assert_allclose(targets.numpy(), smoothed_labels(y), atol=1e-7)
            else:
                assert (targets.amax(dim=1) < 0.8).all()
        probability = PROBABILITIES[name]
        spread = math.sqrt(probability * (1 - probability) / count)
        assert abs(1 - clean / count - probability) < 4 * spread

    @given(seed=st.integers(0, 2**31), side=st.integers(6, 20))
    @settings(max_examples=25, deadline=None)
    def test_both_mixes_of_a_pair_are_the_same(self, seed, side):
        """Each image's share is its map's, whichever of the two comes first."""
        x, y = noise((2, 3, side, side), seed), torch.tensor([1, 3])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "rand", lambda *_: 0.0)
            mixed, targets = make("guidedmixup-sr", nn.Identity())(x, y)
        torch.testing.assert_close(mixed[0], mixed[1], rtol=0, atol=1e-5)
        torch.testing.assert_close(targets[0], targets[1])
        assert (mixed[0] >= x.amin(dim=0) - 1e-6).all()
        assert (mixed[0] <= x.amax(dim=0) + 1e-6).all()
        torch.testing.assert_close(targets[0, [1, 3]].sum(), torch.ones(()))

    def test_identical_images_weigh_a_half_by_spectrum(self, batch, always):
        x, _ = batch(count=1, height=12, width=12)
        x, y = x.expand(5, -1, -1, -1), torch.arange(5)
        mixed, targets = make("guidedmixup-sr", nn.Identity())(x, y)
        torch.testing.assert_close(mixed, x)
        expected = torch.eye(5) / 2
        torch.testing.assert_close(targets, expected + expected.roll(1, dims=1))

    def test_identical_images_weigh_a_half_by_gradient(self, linear, batch, always):
        """Of two classes, and without batch norm, both labels' gradients have one shape."""
        x, _ = batch(count=1, height=12, width=12)
        mix = make("guidedmixup-ap", linear(12, classes=2), classes=2)
        mixed, targets = mix(x.expand(2, -1, -1, -1), torch.tensor([0, 1]))
        torch.testing.assert_close(mixed, x.expand(2, -1, -1, -1))
        torch.testing.assert_close(targets, torch.full((2, 2), 0.5))

    @pytest.mark.parametrize("name", PROBABILITIES)
    def test_one_image_alone_stays_as_it_is(self, worn_net, batch, always, name):
        x, y = batch(count=1, height=12, width=12)
        mixed, targets = make(name, worn_net, label_smoothing=0.1)(x, y)
        torch.testing.assert_close(mixed, x)
        np.testing.assert_allclose(targets.numpy(), smoothed_labels(y), atol=1e-6)

    def test_without_a_gradient_each_pixel_is_the_pairs_mean(self, linear, batch, always):
        x, y = batch(count=2, height=12, width=12)
        net = linear(12)
        nn.init.zeros_(net[1].weight)
        mixed, targets = make("guidedmixup-ap", net)(x, y)
        torch.testing.assert_close(mixed, (x + x.flip(0)) / 2)
        torch.testing.assert_close(targets, (torch.eye(5)[y] + torch.eye(5)[y.flip(0)]) / 2)


def shares_by_loops(saliency, drawn, lam):
    """Gives each block's share of image i, whose partner is the last but i."""
    salient = [
        (block >= np.quantile(block, quantile)) & (block.max() > 0)
        for block, quantile in zip(np.asarray(saliency, dtype=np.float64), drawn, strict=True)
    ]
    shares = np.zeros(np.shape(saliency))
    for i, row, column in np.ndindex(shares.shape):
        own, other = salient[i][row, column], salient[-1 - i][row, column]
        shares[i, row, column] = lam if own == other else 1.0 if own else 0.0
    return shares


def block_means(saliency, blocks):
    """Averages ``[B, H, W]`` over blocks, which overlap where they do not divide a side."""
    found = np.zeros((len(saliency), blocks, blocks))
    height, width = saliency.shape[1:]
    for row, column in np.ndindex(blocks, blocks):
        rows = slice(row * height // blocks, -(-(row + 1) * height // blocks))
        columns = slice(column * width // blocks, -(-(column + 1) * width // blocks))
        found[:, row, column] = saliency[:, rows, columns].mean(axis=(1, 2))
    return found


class TestRMix:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """Notes the blocks along a side, the quantiles and the weight of each batch."""
        seen, own_shares = [], rmix.own_shares

        def noted(saliency, quantiles, lam):
            seen.append((saliency.shape[-1], quantiles.double().numpy(), lam))
            return own_shares(saliency, quantiles, lam)

        monkeypatch.setattr(rmix, "own_shares", noted)
        return seen

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_a_block_that_is_salient_in_one_image_alone_is_that_images(self, data):
        """Few levels of saliency, so that blocks tie with the quantile."""
        count, blocks = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
        levels = data.draw(st.sampled_from([1, 3, 1000]))
        random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
        saliency = random.integers(0, levels, (count, blocks, blocks)).astype(np.float32)
        drawn, lam = random.choice(LEVELS, count), data.draw(st.sampled_from([0.125, 0.5, 0.75]))
        args = torch.from_numpy(saliency), torch.from_numpy(drawn).float()
        found = rmix.own_shares(*args, lam)
        np.testing.assert_allclose(found, shares_by_loops(saliency, drawn, lam), rtol=1e-6)
        other = rmix.own_shares(*args, 1 - lam).flip(0)
        torch.testing.assert_close(found + other, torch.ones_like(found))

    def test_the_four_cases_of_a_block(self):
        """At the median, the two largest of four blocks are salient."""
        saliency = torch.tensor([[[4.0, 3.0], [2.0, 1.0]], [[4.0, 1.0], [3.0, 2.0]]])
        found = rmix.own_shares(saliency, torch.tensor([0.5, 0.5]), 0.25)
        assert found[0].tolist() == [[0.25, 1.0], [0.0, 0.25]]
        assert found[1].tolist() == [[0.25, 0.0], [1.0, 0.25]]

    @pytest.mark.parametrize("size", [(32, 32), (30, 34)])
    def test_mixes_by_the_enlarged_mask_and_weighs_labels_by_its_mean(
        self, worn_net, batch, drawn, size
    ):
        x, _ = batch(count=7, height=size[0], width=size[1])
        y = torch.arange(7) % 5
        gradient = clean_gradient(worn_net, x, y)
        saliency = np.sqrt((gradient**2).mean(axis=1))
        one_hot, pixels = smoothed_labels(y), x.double().numpy()
        mix = make("rmix", worn_net, label_smoothing=0.1)
        for seed in range(6):
            random_seed(seed)
            mixed, targets = mix(x, y)
            blocks, quantiles, lam = drawn[-1]
            shares = shares_by_loops(block_means(saliency, blocks), quantiles, lam)
            rows, columns = (np.arange(side) * blocks // side for side in size)
            mask = shares[:, rows][:, :, columns][:, None]
            expected = mask * pixels + (1 - mask) * pixels[::-1]
            np.testing.assert_allclose(mixed.numpy(), expected, rtol=0, atol=1e-5)
            own = mask.mean(axis=(1, 2, 3))[:, None]
            expected = own * one_hot + (1 - own) * one_hot[::-1]
            np.testing.assert_allclose(targets.numpy(), expected, rtol=0, atol=1e-6)
        assert {blocks for blocks, *_ in drawn} == {2, 4}

    def test_draws_blocks_quantiles_and_weight_as_the_authors(self, linear, batch, drawn):
        """Blocks and weight are drawn for each batch, a quantile for each image."""
        x, y = batch(count=6, height=8, width=8)
        mix = make("rmix", linear(8))
        random_seed(0)
        for _ in range(300):
            mix(x, y)
        blocks, quantiles, lam = (np.array(values) for values in zip(*drawn, strict=True))
        assert set(blocks) == {2, 4}
        assert abs((blocks == 2).mean() - 0.5) < 4 * 0.5 / math.sqrt(300)
        nearest = np.abs(quantiles[..., None] - LEVELS)
        assert nearest.min(axis=-1).max() < 1e-6
        counts = np.bincount(nearest.argmin(axis=-1).ravel(), minlength=10)
        assert np.abs(counts - 180).max() < 4 * math.sqrt(180 * 0.9)
        assert (quantiles.std(axis=1) > 0.05).mean() > 0.98
        assert np.abs(np.quantile(lam, LEVELS[1:]) - LEVELS[1:]).max() < 0.1  # uniform: alpha is 1

    def test_a_larger_alpha_draws_weights_nearer_to_a_half(self, linear, batch, drawn):
        x, y = batch(count=4, height=8, width=8)
        mix = make("rmix", linear(8), alpha=50.0)
        random_seed(0)
        for _ in range(60):
            mix(x, y)
        assert 0.03 < np.std([lam for *_, lam in drawn]) < 0.08  # 0.0498

    def test_without_any_gradient_it_is_mixup(self, linear, batch, drawn):
        x, y = batch(count=4, height=8, width=8)
        net = linear(8)
        nn.init.zeros_(net[1].weight)
        for seed in range(4):
            random_seed(seed)
            mixed, targets = make("rmix", net)(x, y)
            lam = drawn[-1][2]
            torch.testing.assert_close(mixed, lam * x + (1 - lam) * x.flip(0))
            one_hot = torch.eye(5)[y]
            torch.testing.assert_close(targets, lam * one_hot + (1 - lam) * one_hot.flip(0))

    def test_one_image_without_a_gradient_makes_no_nan(self, linear, batch):
        x, y = batch(count=4, height=8, width=8)
        x[1] = -x[1].abs()  # behind a ReLU, nothing of it is left
        net = nn.Sequential(nn.ReLU(), linear(8))
        for seed in range(4):
            random_seed(seed)
            mixed, targets = make("rmix", net)(x, y)
            low, high = torch.minimum(x, x.flip(0)), torch.maximum(x, x.flip(0))
            assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()
            torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", [*PROBABILITIES, "rmix", "sage-spectral-maps"])
def test_the_model_is_left_bit_for_bit_as_it_was(model, images, always, name):
    x, y = images
    model(x).square().sum().backward()  # statistics and gradients that could be overwritten
    model.stages[0].eval()
    state = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    make(name, model)(x.requires_grad_(), y)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert x.grad is None


class TestSageSpectralMaps:
    class Untouchable(nn.Module):
        """A model that must not be called."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            raise AssertionError("the model was called")

    def test_its_maps_are_spectral_residuals(self, model, images):
        x, y = images
        mix = make("sage-spectral-maps", model)
        assert torch.equal(mix.sage.saliency(x, torch.eye(5)[y]), spectral_residual(x))

    @pytest.mark.parametrize(
        ("name", "other"),
        [("sage-spectral-maps", "sage"), ("guidedmixup-sr", "guidedmixup-ap")],
    )
    def test_the_model_is_not_run(self, images, always, name, other):
        model = self.Untouchable()
        mixed, _ = make(name, model)(*images)
        assert not torch.equal(mixed, images[0])
        with pytest.raises(AssertionError, match="the model was called"):
            make(other, model)(*images)

    def test_mixes_as_sage_does_with_those_maps(self, model, images):
        x, y = images
        results = []
        for name in ("sage", "sage", "sage-spectral-maps"):
            mix = make(name, model)
            if len(results) == 1:
                mix.sage.saliency = lambda pictures, _: torch.from_numpy(
                    residual_maps(pictures)[:, None]
                ).float()
            random_seed(1)
            results.append(mix(x, y))
        torch.testing.assert_close(results[2], results[1], rtol=0, atol=1e-2)
        assert (results[2][0] - results[0][0]).abs().max() > 0.1
