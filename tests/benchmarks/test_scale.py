"""How the cost of mixing, and of turning a gradient into maps, grows with size and batch.

``tests/benchmarks/plot_scale.py`` draws it; skipped in the tests.
"""

import pytest
import torch

from sage_timm import best_translation, blend, saliency_from_gradient

_SIZES = (32, 48, 64, 96, 128, 192, 224, 256, 384)
_BATCH_SIZES = tuple(2**power for power in range(10))
_FIXED_SIZE, _FIXED_BATCH_SIZE = 32, 16
_SHAPES = sorted(
    {(_FIXED_BATCH_SIZE, size) for size in _SIZES}
    | {(batch_size, _FIXED_SIZE) for batch_size in _BATCH_SIZES}
)
_WEIGHT = 0.4


@pytest.mark.parametrize(("batch_size", "size"), _SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("part", ["mixing", "saliency"])
def test_scale(benchmark, time_batch, part, layout, batch_size, size):
    benchmark.group = f"{part}, {layout}"
    benchmark.extra_info.update(part=part, layout=layout, batch_size=batch_size, size=size)
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    torch.manual_seed(0)
    images, gradient = (
        values.contiguous(memory_format=memory_format)
        for values in torch.randn(2, batch_size, 3, size, size)
    )
    gradient = gradient**3  # heavy tails, as a network's gradient has
    maps = saliency_from_gradient(gradient)
    own, other = _WEIGHT * maps, (1 - _WEIGHT) * maps.flip(0)

    def mix():
        blend(images, images.flip(0), own, other, best_translation(own, other))

    def make_maps():
        saliency_from_gradient(gradient)

    time_batch(mix if part == "mixing" else make_maps, batch_size)
