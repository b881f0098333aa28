"""What mixing costs, the saliency given, beside timm's Mixup and CutMix on the same images.

Run with ``tox -e benchmark``; skipped in the tests. Ratios to the quickest are in brackets.
"""

import pytest
import torch
from timm.data import Mixup

from sage_timm import best_translation, blend, saliency_from_gradient

_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
_SETTINGS = [
    pytest.param("cpu", 128, 32),
    pytest.param("cpu", 128, 64),
    pytest.param("cpu", 16, 224),
    pytest.param("cuda", 128, 32, marks=_CUDA),
    pytest.param("cuda", 128, 224, marks=_CUDA),
]
_WEIGHT = 0.4


@pytest.mark.parametrize(("device", "batch_size", "size"), _SETTINGS)
@pytest.mark.parametrize("method", ["mixup", "cutmix", "sage"])
def test_mixing(benchmark, time_batch, method, device, batch_size, size):
    benchmark.group = f"mixing alone, {batch_size}x3x{size}x{size}, {device}"
    torch.manual_seed(0)
    images, gradient = torch.randn(2, batch_size, 3, size, size, device=device)
    targets = torch.randint(10, (batch_size,), device=device)
    maps = saliency_from_gradient(gradient**3)  # heavy tails, as a network's gradient has
    own, other = _WEIGHT * maps, (1 - _WEIGHT) * maps.flip(0)
    by_timm = {"mixup": Mixup(num_classes=10), "cutmix": Mixup(0, 1.0, num_classes=10)}

    def mix():
        if method == "sage":
            blend(images, images.flip(0), own, other, best_translation(own, other))
        else:
            by_timm[method](images, targets)
        if device == "cuda":
            torch.cuda.synchronize()

    time_batch(mix, batch_size)
