"""What an accelerator needs: nothing that the host waits for, and code that can be compiled."""

import contextlib

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sage_timm import SageMix, SageMixup, best_translation, blend, saliency_from_gradient

SETTINGS = [
    {},
    {"search": "random"},
    {"search": "none"},
    {"update_ratio": 0.5},
    {"saliency_size": 16},
    {"saliency_fraction": 0.5},
    {"mode": "elem"},
    {"mode": "pair"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_nothing_is_decided_by_values_on_the_device(small_net, monkeypatch, settings):
    """Tensors on the meta device have no values: reading one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # no meta
    model = small_net().to("meta")
    x, y = torch.empty(6, 3, 40, 33, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        int(y[0])  # or nothing was tested
    mixed, targets = SageMixup(num_classes=5, model=model, **settings)(x, y)
    assert (mixed.shape, targets.shape) == (x.shape, (6, 5))
    if "mode" not in settings:
        mixed, targets = SageMix(num_classes=5, model=model, **settings)(x, y)
        assert (mixed.shape, targets.shape) == (x.shape, (6, 5))


class _NoFloat64(TorchDispatchMode):
    """As MPS, for which the meta device stands in."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                assert value.dtype != torch.float64, f"float64 from {func}"
        return out


@pytest.mark.parametrize("settings", SETTINGS)
def test_there_is_no_float64_on_the_device(small_net, monkeypatch, settings):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # no meta
    model = small_net().to("meta")
    x, y = torch.empty(6, 3, 40, 33, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
    transforms = [SageMixup(num_classes=5, model=model, **settings)]
    if "mode" not in settings:
        transforms.append(SageMix(num_classes=5, model=model, **settings))
    with _NoFloat64():
        with pytest.raises(AssertionError, match="float64 from"):
            x.double()  # or nothing was tested
        for transform in transforms:
            mixed, targets = transform(x, y)
            SoftTargetCrossEntropy()(model(mixed), targets).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_host_waits_for_nothing_on_cuda(small_net, batch, settings):
    model = small_net().cuda()
    x, y = (value.cuda() for value in batch())
    mixup_fn = SageMixup(num_classes=5, model=model, **settings)
    mixup_fn(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixup_fn(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def mix(gradient, images):
    maps = saliency_from_gradient(gradient)
    own, other = 0.4 * maps, 0.6 * maps.flip(0)
    translation = best_translation(own, other)
    return *blend(images, images.flip(0), own, other, translation), translation


def gradient_and_images(layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4, 3, 40, 36, generator=generator).contiguous(memory_format=layout)
        for _ in range(2)
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_arithmetic_compiles_in_one_graph(layout):
    """Traced without code generation, which takes a minute."""
    inputs = gradient_and_images(layout)
    compiled = torch.compile(mix, backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled(*inputs), mix(*inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_the_arithmetic_is_exported_as_it_is():
    class Mixing(torch.nn.Module):
        def forward(self, gradient, images):
            return mix(gradient, images)

    inputs = tuple(gradient_and_images())
    exported = torch.export.export(Mixing(), inputs).module()
    for one, other in zip(exported(*inputs), mix(*inputs), strict=True):
        torch.testing.assert_close(one, other)
