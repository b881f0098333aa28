import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_timm import blend
from tests import oracles


@settings(deadline=None, max_examples=60)
@given(
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_matches_the_equations_in_float64(channels, height, width, lam, seed):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    x0, x1 = torch.randn(2, 3, channels, height, width, **options)
    s0, s1 = torch.rand(2, 3, 1, height, width, **options) ** 3
    s0, s1 = lam * s0, (1 - lam) * s1
    rows = torch.randint(1 - height, height, (3, 1), generator=generator)
    columns = torch.randint(1 - width, width, (3, 1), generator=generator)
    translation = torch.cat((rows, columns), dim=1)
    mixed, mask, weight = blend(x0, x1, s0, s1, translation)
    for pair in range(3):
        expected, expected_mask = oracles.mix(
            *(v[pair].numpy() for v in (x0, x1)),
            *(v[pair, 0].numpy() for v in (s0, s1)),
            translation[pair].tolist(),
        )
        np.testing.assert_allclose(mixed[pair].numpy(), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mask[pair, 0].numpy(), expected_mask, rtol=1e-9, atol=1e-12)
    assert torch.equal(weight, mask.mean(dim=(1, 2, 3)))
    assert ((mask >= 0) & (mask <= 1)).all()


def test_identical_saliency_at_one_half_and_no_shift_is_the_plain_average():
    x0, x1 = torch.randn(2, 4, 3, 10, 7, dtype=torch.float64)
    half = torch.rand(4, 1, 10, 7, dtype=torch.float64) / 2
    mixed, mask, weight = blend(x0, x1, half, half, torch.zeros(4, 2, dtype=torch.int64))
    floor = oracles.ZETA * (2 * half).mean(dim=(2, 3), keepdim=True) / half  # zeta's own share
    assert ((mixed - (x0 + x1) / 2).abs() <= (x1 - x0).abs() * floor).all()
    assert ((mask - 0.5).abs() <= floor).all()
    torch.testing.assert_close(weight, torch.full((4,), 0.5).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("translation", [(10, 0), (0, 7), (-10, 0), (0, -7), (25, -30)])
def test_a_shift_beyond_the_overlap_gives_image_0_back(translation):
    x0, x1 = torch.randn(2, 2, 3, 10, 7)
    s0, s1 = torch.rand(2, 2, 1, 10, 7)
    mixed, mask, weight = blend(x0, x1, s0, s1, torch.tensor([translation] * 2))
    assert torch.equal(mixed, x0)
    assert (mask == 1).all()
    assert (weight == 1).all()


def test_maps_of_nothing_stay_finite():
    x0, x1 = torch.randn(2, 1, 3, 4, 4)
    mixed, mask, _ = blend(x0, x1, *torch.zeros(2, 1, 1, 4, 4), torch.tensor([[1, 1]]))
    assert mixed.isfinite().all()
    assert mask.isfinite().all()


def test_the_scale_of_the_maps_does_not_matter():
    x0, x1 = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    s0, s1 = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64)
    translation = torch.tensor([[1, -2], [0, 3]])
    mixed, _, _ = blend(x0, x1, s0, s1, translation)
    scaled, _, _ = blend(x0, x1, s0 * 1e-9, s1 * 1e-9, translation)
    torch.testing.assert_close(mixed, scaled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_type_and_memory_format_stay(dtype, channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x0, x1 = torch.randn(2, 2, 3, 8, 6, dtype=torch.float64)
    s0, s1 = torch.rand(2, 2, 1, 8, 6)
    t = torch.tensor([[2, -1], [0, 1]])
    expected, _, _ = blend(x0, x1, s0.double(), s1.double(), t)
    mixed, _, _ = blend(*(x.to(dtype).contiguous(memory_format=form) for x in (x0, x1)), s0, s1, t)
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=form)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(mixed.double(), expected, rtol=tolerance, atol=2 * tolerance)


def test_shapes_that_do_not_fit_are_refused():
    x, s, t = torch.rand(2, 3, 4, 5), torch.rand(2, 1, 4, 5), torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="image0 and image1 must have one shape"):
        blend(x, x[:, :1], s, s, t)
    with pytest.raises(ValueError, match=r"saliency0 and saliency1 must be \(2, 1, 4, 5\)"):
        blend(x, x, s, s[..., :4], t)
    with pytest.raises(ValueError, match=r"translation must be \(2, 2\)"):
        blend(x, x, s, s, t[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pixels_near_the_largest_number_do_not_overflow(dtype):
    """Their difference does; timm's formula adds what it has scaled."""
    largest = 0.9 * torch.finfo(dtype).max
    x0 = torch.full((1, 3, 4, 4), largest, dtype=dtype)
    s = torch.ones(1, 1, 4, 4)
    mixed, _, _ = blend(x0, -x0, 0.7 * s, 0.3 * s, torch.zeros(1, 2, dtype=torch.int64))
    expected = x0.double() * 0.7 - x0.double() * 0.3
    torch.testing.assert_close(mixed.double() / largest, expected / largest, rtol=0.02, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_where_image_1_does_not_reach_stand_the_pixels_of_image_0(bad):
    """Not those of whatever lies beside it in memory, a neighbour's or its own."""
    x0 = torch.randn(3, 2, 4, 5)
    x1 = torch.full_like(x0, bad)
    x1[1] = torch.randn(2, 4, 5)
    s = torch.rand(3, 1, 4, 5)
    for t in ((1, 2), (-2, 1), (0, -3), (-1, -1)):
        mixed, _, _ = blend(x0, x1, s, s, torch.tensor([t] * 3))
        covered = torch.from_numpy(oracles.translate(np.ones((4, 5)), t)) == 1
        assert torch.equal(mixed[:, :, ~covered], x0[:, :, ~covered])
        assert mixed[1].isfinite().all()
