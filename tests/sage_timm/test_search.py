import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import create_model
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

import harness.models  # noqa: F401
from harness.glyphs import Glyphs
from sage_timm import (
    best_translation,
    blend,
    random_translations,
    saliency,
    saliency_from_gradient,
)
from sage_timm.exponential_sum import exponential_sum
from sage_timm.search import _SPAN, _TERMS
from tests import oracles


def objective(s0, s1, translation):
    """What the mix reaches, in float64, and what it reaches unmoved; by the oracle."""
    pairs = [
        (a.double().numpy(), b.double().numpy()) for a, b in zip(s0[:, 0], s1[:, 0], strict=True)
    ]
    reached = [oracles.objective(a, b, t) for (a, b), t in zip(pairs, translation, strict=True)]
    return np.array(reached), np.array([oracles.objective(a, b, (0, 0)) for a, b in pairs])


@pytest.mark.parametrize(("terms", "span"), [(_TERMS, _SPAN), (3, 10.0), (8, 1e4)])
def test_the_exponential_sum_keeps_the_error_that_it_states(terms, span):
    found = exponential_sum(terms, span)
    z = np.exp(np.random.default_rng(0).uniform(-np.log(span), 0, 20_000))
    approximated = np.exp(-z[:, None] * found.exponents.numpy()) @ found.weights.numpy()
    worst = np.abs(approximated * z - 1).max()
    assert worst <= 1.01 * found.error
    assert (found.weights > 0).all()
    assert len(found.weights) == terms
    single = np.exp(-z[:, None].astype(np.float32) * found.exponents.numpy().astype(np.float32))
    single = single @ found.weights.numpy().astype(np.float32)
    np.testing.assert_allclose(single, approximated, rtol=1e-5)


def test_more_terms_are_closer():
    errors = [exponential_sum(terms, _SPAN).error for terms in (2, 3, 4, 5, 6)]
    assert sorted(errors, reverse=True) == errors
    assert exponential_sum(_TERMS, _SPAN).error < 0.02


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    power=st.integers(0, 6),
)
def test_small_maps_of_any_kind_beside_every_translation(height, width, lam, seed, power):
    """Not smoothed, so that neighbours tell nothing; the bound is for smoothed ones."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand((2, 2, 1, height, width), generator=generator, dtype=torch.float64) ** power
    s0, s1 = lam * maps[0], (1 - lam) * maps[1]
    reached, unmoved = objective(s0, s1, best_translation(s0, s1).tolist())
    assert (reached >= unmoved * (1 - 1e-12)).all()
    for pair in range(2):
        a, b = s0[pair, 0].numpy(), s1[pair, 0].numpy()
        best = max(oracles.objective(a, b, t) for t in oracles.all_translations(height, width))
        assert reached[pair] >= 0.97 * best


def real_maps(count, size):
    """Saliency of glyphs in a network."""
    torch.manual_seed(0)
    model = create_model("preactresnet8_cifar", num_classes=10)
    data = Glyphs("train", count, size, seed=0, classes=10)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - 0.5
    targets = mixup_target(torch.tensor(data.targets), 10)
    return torch.cat(
        [
            saliency(model, x, y, SoftTargetCrossEntropy())
            for x, y in zip(images.split(100), targets.split(100), strict=True)
        ]
    )


def heavy_tailed_maps(count, size):
    """What becomes of a gradient whose largest entries are hundreds of times the usual."""
    generator = torch.Generator().manual_seed(0)
    return saliency_from_gradient(torch.randn(count, 3, size, size, generator=generator) ** 5)


@pytest.mark.parametrize(("maps", "least"), [(real_maps, 0.995), (heavy_tailed_maps, 0.99)])
@pytest.mark.parametrize(("size", "count"), [(24, 200), (32, 1000), (45, 40)])
def test_maps_beside_every_translation(maps, least, size, count):
    """The exhaustive search, and the mix in float64, are tested against the oracle elsewhere."""
    maps = maps(count, size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    lam = torch.linspace(0.05, 0.95, count)[order].view(-1, 1, 1, 1)
    s0, s1 = lam * maps, (1 - lam) * maps.flip(0)

    def reached(translation):
        own, other = s0.double(), s1.double()
        return blend(own, other, own, other, translation)[0].sum(dim=(1, 2, 3))

    best = reached(best_translation(s0, s1, random_translations(size, size, 1.0)))
    found = reached(best_translation(s0, s1))
    unmoved = reached(torch.zeros(count, 2, dtype=torch.int64))
    assert (found / best).mean() >= 0.999
    assert (found / best).min() >= least
    assert (found >= unmoved).all()


def test_a_pair_is_translated_alone_as_in_a_batch():
    maps = heavy_tailed_maps(128, 40)
    s0, s1 = 0.4 * maps, 0.6 * maps.flip(0)
    together = best_translation(s0, s1)
    alone = [best_translation(s0[i : i + 1], s1[i : i + 1]) for i in range(0, 128, 8)]
    assert torch.equal(together[::8], torch.cat(alone))
    assert len(together.unique(dim=0)) > 10


def test_a_map_is_found_where_it_was_moved_to():
    """Two objects in one corner: image 1's goes to where image 0 has nothing."""
    s0 = torch.full((1, 1, 48, 40), 1e-4)
    s0[..., 2:12, 2:12] = 1.0
    s1 = s0.clone()
    down, right = best_translation(s0, s1)[0].tolist()
    assert max(abs(down), abs(right)) >= 10
    reached, unmoved = objective(s0, s1, [(down, right)])
    assert reached > 1.9 * unmoved
