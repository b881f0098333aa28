"""That the host never waits for a GPU, proved without one: fake CUDA tensors have no values."""

import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from sage_timm import SageMix, SageMixup

SETTINGS = [
    {},
    {"mode": "elem"},
    {"mode": "pair"},
    {"cutmix_alpha": 1.0},
    {"search": "random"},
    {"search": "none"},
    {"update_ratio": 0.5},
    {"saliency_size": 16},
    {"saliency_fraction": 0.5},
]


class _Watch(TorchDispatchMode):
    """Refuses float64 on the device, and copies between it and the host that are waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = (
            [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
            for values in ((args, kwargs), out)
        )
        for value in made:
            on_device = value.device.type == "cuda"
            assert not (on_device and value.dtype == torch.float64), f"float64 from {func}"
        if func is torch.ops.aten._to_copy.default:
            crosses = given[0].device.type != made[0].device.type
            assert not crosses or kwargs.get("non_blocking"), "a copy that the host waits for"
        if func is torch.ops.aten.copy_.default:
            crosses = given[0].device.type != given[1].device.type
            assert not crosses or (*args, False)[2], "a copy that the host waits for"
        return out


@pytest.fixture(autouse=True)
def without_a_driver(monkeypatch):
    """Stands in for what needs a driver even so: the backward pass and CUDA's generator."""
    monkeypatch.setattr(
        torch.autograd, "grad", lambda _, inputs, **__: tuple(map(torch.empty_like, inputs))
    )
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)


@pytest.fixture
def fake_cuda():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")


def training(device):
    with torch.device(device):
        model = timm.create_model("resnet10t", num_classes=5)
        images = torch.randn(6, 3, 40, 33)
        return model, images, torch.zeros(6, dtype=torch.long)


def test_what_would_wait_is_refused_here(fake_cuda):
    """Or the tests below could not fail."""
    values = torch.zeros(3, device=fake_cuda)
    for wait in (values.sum().item, lambda: values[values > 0], values.any().__bool__):
        with pytest.raises(Exception, match="aten") as raised:
            wait()
        assert "Data" in type(raised.value).__name__ or "Dynamic" in type(raised.value).__name__
    with _Watch():
        for copy in (
            values.cpu,
            lambda: torch.zeros(3).to(fake_cuda),
            lambda: torch.tensor([1.0], device=fake_cuda),
            lambda: values.copy_(torch.zeros(3)),
        ):
            with pytest.raises(AssertionError, match="host waits"):
                copy()
        with pytest.raises(AssertionError, match="float64"):
            values.double()
        values.copy_(torch.zeros(3), non_blocking=True)


@pytest.mark.parametrize("settings", SETTINGS)
def test_mixup_waits_for_nothing(settings):
    mixup_fn = SageMixup(num_classes=5, **settings)
    drawn_on_the_host = mixup_fn.sage.draw_translations(40, 33)
    mixup_fn.sage.draw_translations = lambda *_: drawn_on_the_host
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, images, targets = training("cuda")
        mixup_fn.attach(model)
        with _Watch():
            mixed, soft = mixup_fn(images, targets)
            SoftTargetCrossEntropy()(model(mixed), soft)
    assert (mixed.device.type, mixed.shape) == ("cuda", images.shape)
    assert (soft.device.type, soft.shape) == ("cuda", (6, 5))


@pytest.mark.parametrize("settings", [s for s in SETTINGS if not {"mode", "cutmix_alpha"} & {*s}])
def test_the_transform_waits_for_nothing(settings):
    transform = SageMix(num_classes=5, **settings)
    drawn_on_the_host = transform.make_params([torch.zeros(6, 3, 40, 33)])
    transform.make_params = lambda inputs: drawn_on_the_host | {"images": inputs[0]}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, images, targets = training("cuda")
        transform.attach(model)
        with _Watch():
            mixed, soft = transform(images, targets)
    assert (mixed.device.type, mixed.shape) == ("cuda", images.shape)
    assert (soft.device.type, soft.shape) == ("cuda", (6, 5))
