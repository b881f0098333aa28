import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import create_model
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import harness.models  # noqa: F401
from harness.glyphs import Glyphs
from sage_timm import (
    best_translation,
    blend,
    random_translations,
    saliency,
    saliency_from_gradient,
)
from sage_timm.search import _EXPONENTS, _WEIGHTS
from tests import oracles


def objective(s0, s1, translation):
    """What the mix reaches, in float64, and what it reaches unmoved; by the oracle."""
    pairs = [
        (a.double().numpy(), b.double().numpy()) for a, b in zip(s0[:, 0], s1[:, 0], strict=True)
    ]
    reached = [oracles.objective(a, b, t) for (a, b), t in zip(pairs, translation, strict=True)]
    return np.array(reached), np.array([oracles.objective(a, b, (0, 0)) for a, b in pairs])


def test_the_sum_of_exponentials_is_within_its_error_of_the_reciprocal():
    z = np.geomspace(0.01, 1, 20_000)
    exponents, weights = _EXPONENTS.numpy(), _WEIGHTS.numpy()
    exact = np.exp(-z[:, None] * exponents) @ weights
    assert np.abs(exact * z - 1).max() < 0.0151
    assert (weights > 0).all()
    single = np.exp(-z[:, None].astype(np.float32) * exponents.astype(np.float32))
    np.testing.assert_allclose(single @ weights.astype(np.float32), exact, rtol=1e-5)


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


def test_a_pair_is_translated_by_all_alone_as_in_a_batch():
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


@pytest.mark.parametrize("lam", [0.05, 0.35, 0.5, 0.95])
def test_fraction_one_finds_the_best_of_all_by_brute_force(saliency_pair, lam):
    s0, s1 = saliency_pair(lam=lam)
    found = best_translation(s0, s1, random_translations(6, 9, fraction=1.0))
    for pair in range(len(s0)):
        a, b = s0[pair, 0].numpy(), s1[pair, 0].numpy()
        values = {t: oracles.objective(a, b, t) for t in oracles.all_translations(6, 9)}
        best = max(values, key=values.__getitem__)
        assert tuple(found[pair].tolist()) == best
        assert values[best] > values[(0, 0)] or best == (0, 0)


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize(("lam", "covered"), [(0.05, 1), (0.45, 1), (0.55, 1 / 54), (0.95, 1 / 54)])
def test_the_objective_drops_image_1_where_its_weight_is_the_lesser(lam, covered, every):
    """Of uniform maps, with a share c covered by image 1, it is c (λ² + (1 - λ)²) + (1 - c) λ."""
    uniform = torch.full((1, 1, 6, 9), 1 / 54)
    candidates = random_translations(6, 9, fraction=1.0) if every else None
    (found,) = best_translation(lam * uniform, (1 - lam) * uniform, candidates).abs().tolist()
    assert (6 - found[0]) * (9 - found[1]) / 54 == covered


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    power=st.integers(0, 6),
)
def test_no_candidate_is_better_than_the_one_found(height, width, lam, seed, power):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand((2, 2, 1, height, width), generator=generator, dtype=torch.float64) ** power
    s0, s1 = lam * maps[0], (1 - lam) * maps[1]
    candidates = random_translations(height, width, 0.5, generator)
    found = best_translation(s0, s1, candidates)
    for pair in range(2):
        a, b = s0[pair, 0].numpy(), s1[pair, 0].numpy()
        values = [oracles.objective(a, b, t) for t in candidates.tolist()]
        reached = oracles.objective(a, b, found[pair].tolist())
        np.testing.assert_allclose(reached, max(values), rtol=1e-9)


def test_float32_reaches_the_float64_optimum(saliency_pair):
    s0, s1 = saliency_pair(count=4, height=12, width=10)
    candidates = random_translations(12, 10, 0.3, torch.Generator().manual_seed(0))
    found = best_translation(s0.float(), s1.float(), candidates)
    for pair in range(4):
        a, b = s0[pair, 0].numpy(), s1[pair, 0].numpy()
        best = max(oracles.objective(a, b, t) for t in candidates.tolist())
        assert oracles.objective(a, b, found[pair].tolist()) == pytest.approx(best, rel=1e-5)


def test_a_pair_is_translated_alone_as_in_a_batch(saliency_pair):
    s0, s1 = saliency_pair(count=7)
    candidates = random_translations(6, 9, 0.4, torch.Generator().manual_seed(3))
    together = best_translation(s0, s1, candidates)
    alone = [best_translation(s0[i : i + 1], s1[i : i + 1], candidates) for i in range(7)]
    assert torch.equal(together, torch.cat(alone))


def test_random_translations_are_distinct_in_range_and_as_many_as_asked():
    drawn = random_translations(5, 8, 1.0)
    assert {tuple(t) for t in drawn.tolist()} == set(oracles.all_translations(5, 8))
    assert len(drawn) == 9 * 15
    one_percent = random_translations(32, 32, 0.01)
    assert len(one_percent) == 39  # 1 % of 63 x 63, rounded down, as the authors have it
    assert len({tuple(t) for t in one_percent.tolist()}) == 39
    assert len(random_translations(2, 2, 0.01)) == 1


def test_random_translations_follow_their_generator():
    draws = [random_translations(9, 9, 0.1, torch.Generator().manual_seed(s)) for s in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


class _LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_memory_does_not_grow_with_the_number_of_translations():
    maps = torch.rand(4, 1, 64, 48)
    for fraction in (0.01, 0.2):
        candidates = random_translations(64, 48, fraction)
        with _LargestTensor() as largest:
            best_translation(maps, maps.flip(0), candidates)
        assert largest.elements <= maps.numel()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        random_translations(8, 8, fraction)


def test_maps_and_translations_that_do_not_fit_are_refused():
    maps, still = torch.rand(2, 1, 4, 5), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must both be \[B, 1, H, W\]"):
        best_translation(maps, maps[:1], still)
    with pytest.raises(ValueError, match=r"must be \[N, 2\]"):
        best_translation(maps, maps, still[:0])
    with pytest.raises(ValueError, match=r"must lie in \(-4, 4\) x \(-5, 5\)"):
        best_translation(maps, maps, torch.tensor([[4, 0]]))
