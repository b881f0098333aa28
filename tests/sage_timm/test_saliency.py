import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import gaussian_blur

from sage_timm import saliency, saliency_from_gradient
from tests import oracles


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (2, 1, 17, 40), (3, 4, 64, 33), (1, 2, 3, 5)])
def test_matches_the_formula_in_float64(shape):
    gradient = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = saliency_from_gradient(gradient)
    assert maps.dtype == torch.float64
    np.testing.assert_allclose(maps.numpy(), oracles.saliency(gradient.numpy()), rtol=1e-10)


def test_smooths_as_the_authors_do_at_32_pixels():
    gradient = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = gaussian_blur(gradient.norm(dim=1, keepdim=True), [5, 5], [1.0, 1.0])
    expected = expected / expected.sum(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(saliency_from_gradient(gradient), expected)


def linear(height, width):
    torch.manual_seed(0)
    layer = nn.Linear(3 * height * width, 4, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), layer), torch.eye(4)[[0, 3, 1, 1, 2]].double()


def linear_gradient(model, images, targets):
    """For a linear classifier the gradient of the cross-entropy is known: W^T (softmax - y)."""
    weight, bias = (p.detach().numpy() for p in model.parameters())
    logits = images.numpy().reshape(5, -1) @ weight.T + bias
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return ((softmax - targets.numpy()) @ weight).reshape(images.shape)


def test_is_the_gradient_of_the_full_loss():
    model, targets = linear(8, 6)
    images = torch.randn(5, 3, 8, 6, dtype=torch.float64)
    maps = saliency(model, images, targets, cross_entropy)
    expected = oracles.saliency(linear_gradient(model, images, targets))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(("height", "width", "small"), [(8, 6, (4, 3)), (7, 21, (3, 9))])
def test_at_a_lower_resolution_is_the_enlarged_map_of_the_shrunk_image(height, width, small):
    model, targets = linear(*small)
    images = torch.randn(5, 3, height, width, dtype=torch.float64)
    maps = saliency(model, images, targets, cross_entropy, size=min(small))
    shrunk = v2.Resize(small)(images)
    of_shrunk = torch.from_numpy(oracles.saliency(linear_gradient(model, shrunk, targets)))
    expected = v2.Resize((height, width))(of_shrunk)
    torch.testing.assert_close(maps, expected / expected.sum(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize("size", [9, 12])
def test_a_size_that_is_not_smaller_changes_nothing(batch, small_net, size):
    x, y = batch(width=9)
    model = small_net()
    expected = saliency(model, x, y, cross_entropy)
    assert torch.equal(saliency(model, x, y, cross_entropy, size=size), expected)


def test_a_model_that_does_not_take_the_size():
    model, targets = linear(8, 6)
    images = torch.randn(5, 3, 8, 6, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"does not take images of \(4, 3\) pixels, which .*size=3"
    ):
        saliency(model, images, targets, cross_entropy, size=3)


class _Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("something else"),
    ],
)
def test_an_error_that_is_not_about_the_size_stays_what_it_is(error):
    """So that a loop that looks for a batch size that fits finds it."""
    with pytest.raises(type(error)) as raised:
        saliency(_Fails(error), torch.randn(2, 3, 8, 6), torch.eye(4)[:2], cross_entropy, size=3)
    assert raised.value is error


def test_memory_that_is_short_only_once_is_no_matter_of_the_size(monkeypatch):
    """Memory may be free again when the size is tried."""
    model, targets = linear(8, 6)
    forward = model.forward
    errors = [torch.OutOfMemoryError("CUDA out of memory.")]

    def fails_once(x):
        if x.shape[2] < 8:
            raise errors[0]
        return forward(x)

    monkeypatch.setattr(model, "forward", fails_once)
    images = torch.randn(5, 3, 8, 6, dtype=torch.float64)
    with pytest.raises(torch.OutOfMemoryError):
        saliency(model, images, targets, cross_entropy, size=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_type_is_that_of_autocast(batch, small_net, dtype):
    x, y = batch()
    model = small_net()
    with torch.autocast("cpu", dtype):
        expected = saliency(model, x, y, cross_entropy)
    maps = saliency(model, x, y, cross_entropy, dtype=dtype)
    assert torch.equal(maps, expected)
    exact = saliency(model, x, y, cross_entropy)
    assert not torch.equal(maps, exact)
    torch.testing.assert_close(maps, exact, rtol=0.2, atol=1e-3)


@settings(deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 4, 20, 20))),
    seed=st.integers(0, 2**31),
    exponent=st.integers(-30, 30),
)
def test_sums_to_one_whatever_the_size_and_the_scale(shape, seed, exponent):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    maps = saliency_from_gradient(gradient * 10.0**exponent)
    assert maps.shape == (shape[0], 1, *shape[2:])
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), torch.ones(shape[0]))
    torch.testing.assert_close(maps, saliency_from_gradient(gradient), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_an_unusable_gradient_gives_the_uniform_map_to_that_image_alone(bad):
    gradient = torch.randn(3, 3, 8, 10)
    before = saliency_from_gradient(gradient)
    if bad == 0:
        gradient[1] = 0
    else:
        gradient[1, 2, 3, 4] = bad
    maps = saliency_from_gradient(gradient)
    assert (maps[1] == 1 / 80).all()
    assert torch.equal(maps[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_worked_on_in_float32(dtype):
    gradient = torch.randn(2, 3, 32, 32).to(dtype)
    maps = saliency_from_gradient(gradient)
    assert maps.dtype == torch.float32
    np.testing.assert_allclose(maps.numpy(), oracles.saliency(gradient.double().numpy()), rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(saliency_from_gradient(gradient), maps)
