"""A transform leaves no trace, and a shared gradient is the one that the paper says."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sage_timm import SageMixup, saliency
from tests.model_snapshot import assert_same, snapshot


class _Raises(nn.Module):
    def forward(self, _x):
        raise RuntimeError("the head fails")


class _ReplacesItsBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("expanded", torch.zeros(1).expand(5))  # refuses to be written
        self.register_buffer("missing", None)

    def forward(self, x):
        self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_grads", [True, False])
@pytest.mark.parametrize(
    "cheaper",
    [{}, {"saliency_size": 6, "saliency_dtype": torch.bfloat16}, {"saliency_fraction": 0.5}],
)
def test_a_call_leaves_no_trace(small_net, batch, training, with_grads, cheaper):
    model = nn.Sequential(_ReplacesItsBuffer(), small_net()).train(training)
    x, y = batch()
    if with_grads:
        model(x).sum().backward()
    mixup_fn = SageMixup(num_classes=5, model=model, **cheaper)
    before, x_before = snapshot(model), x.clone()
    mixed, _ = mixup_fn(x, y)
    assert not torch.equal(mixed, x_before)  # or nothing was tested
    assert_same(before, snapshot(model))
    assert torch.equal(x, x_before)
    assert not mixed.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_mixing_between_a_forward_and_its_backward_pass_is_allowed(small_net, batch, training):
    """As when the losses of several mixed batches are summed."""
    model = small_net().train(training)
    x, y = batch()
    mixup_fn = SageMixup(num_classes=5, model=model)
    losses = []
    for mixing_between in (True, False):
        model.zero_grad()
        loss = model(x).square().sum()
        if mixing_between:
            mixup_fn(x, y)
        loss.backward()
        losses.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*losses, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("update_ratio", [1.0, 0.7])
@pytest.mark.parametrize("fault", ["model", "loss", "shape", "scalar"])
def test_a_call_that_raises_leaves_no_trace(small_net, batch, fault, update_ratio):
    model = small_net()
    x, y = batch()
    model(x).sum().backward()
    loss_fn = SoftTargetCrossEntropy()
    if fault == "model":
        model.head = _Raises()
    elif fault == "shape":
        model.head = nn.Linear(8, 4)
    elif fault == "loss":
        loss_fn = nn.Bilinear(1, 1, 1)
    else:
        loss_fn = nn.CrossEntropyLoss(reduction="none")
    before = snapshot(model)
    mixup_fn = SageMixup(num_classes=5, model=model, loss_fn=loss_fn, update_ratio=update_ratio)
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        mixup_fn(x, y)
    assert_same(before, snapshot(model))


class _WeightGradients(TorchDispatchMode):
    """Counts the convolutions whose weight gradient is computed in a backward pass."""

    computed = skipped = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            output_mask = args[-1]
            self.computed += output_mask[1]
            self.skipped += not output_mask[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("update_ratio", "computed"), [(1.0, 0), (0.7, 1)])
def test_weight_gradients_are_computed_only_to_be_shared(small_net, batch, update_ratio, computed):
    mixup_fn = SageMixup(num_classes=5, model=small_net(), update_ratio=update_ratio)
    with _WeightGradients() as counted:
        mixup_fn(*batch())
    assert (counted.computed, counted.skipped) == (computed, 1 - computed)


def gradient(model, x, soft_targets):
    """The loss's parameter gradient, computed on a copy of the model."""
    model = copy.deepcopy(model)
    model.zero_grad()
    SoftTargetCrossEntropy()(model(x), soft_targets).backward()
    return [p.grad for p in model.parameters()]


def step_by_hand(model, clean, mixed, update_ratio, lr):
    return [
        p.detach() - lr * ((1 - update_ratio) * c + update_ratio * m)
        for p, c, m in zip(
            model.parameters(), gradient(model, *clean), gradient(model, *mixed), strict=True
        )
    ]


@pytest.mark.parametrize("update_ratio", [0.5, 0.7])
@pytest.mark.parametrize("zero_grad", ["before mixing", "before forward", "before backward"])
@pytest.mark.parametrize("loss_scale", [1.0, 65536.0, 0.25])
def test_one_step_equals_the_step_by_hand(small_net, batch, update_ratio, zero_grad, loss_scale):
    """Wherever the loop calls zero_grad, and whatever factor it puts on its loss."""
    model = small_net(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    model(x).sum().backward()  # a gradient of before, to be forgotten
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=update_ratio)
    start = copy.deepcopy(model)
    if zero_grad == "before mixing":
        optimizer.zero_grad()
    mixed, targets = mixup_fn(x.clone(), y)
    if zero_grad == "before forward":
        optimizer.zero_grad()
    logits = model(mixed)
    loss = SoftTargetCrossEntropy()(logits, targets)
    if zero_grad == "before backward":
        optimizer.zero_grad()
    (loss * loss_scale).backward()
    for parameter in model.parameters():
        parameter.grad /= loss_scale
    optimizer.step()
    clean_targets = mixup_target(y, 5, 1.0, 0.1)
    expected = step_by_hand(start, (x, clean_targets), (mixed, targets), update_ratio, lr=0.5)
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-9)
    unscaled = SoftTargetCrossEntropy()(copy.deepcopy(start)(mixed), targets)
    torch.testing.assert_close(loss, unscaled)  # what the loop logs
    assert not model._forward_hooks


def test_the_clean_gradient_of_a_share_of_the_batch_is_that_of_its_images(small_net, batch):
    model = small_net(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.6, saliency_fraction=0.6)
    mixed, targets = mixup_fn(x, y)
    SoftTargetCrossEntropy()(model(mixed), targets).backward()
    ends = [0, 1, 4, 5]
    clean = gradient(model, x[ends], mixup_target(y[ends], 5, 1.0, 0.1))
    mixed_gradient = gradient(model, mixed, targets)
    for p, c, m in zip(model.parameters(), clean, mixed_gradient, strict=True):
        torch.testing.assert_close(p.grad, 0.4 * c + 0.6 * m, rtol=1e-6, atol=1e-9)


def test_accumulated_batches_share_their_gradients(small_net, batch):
    model = small_net(dtype=torch.float64)
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.6)
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for seed in (1, 2):
        x, y = batch(dtype=torch.float64, seed=seed)
        mixed, targets = mixup_fn(x.clone(), y)
        clean_gradient = gradient(model, x, mixup_target(y, 5, 1.0, 0.1))
        mixed_gradient = gradient(model, mixed, targets)
        for total, c, m in zip(expected, clean_gradient, mixed_gradient, strict=True):
            total += (0.4 * c + 0.6 * m) / 2
        (SoftTargetCrossEntropy()(model(mixed), targets) / 2).backward()
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-6, atol=1e-9)


class _OverflowsOnce(torch.autograd.Function):
    """As half precision may, in the first backward pass alone: that of the saliency."""

    calls = 0  # not in a closure of the hook, which a call leaves as it was

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        _OverflowsOnce.calls += 1
        return gradient * (torch.inf if _OverflowsOnce.calls == 1 else 1)


@pytest.mark.parametrize("update_ratio", [1.0, 0.5])
def test_an_overflow_in_the_saliency_pass_costs_that_step_its_sage(small_net, batch, update_ratio):
    model, x, y = small_net(), *batch()
    _OverflowsOnce.calls = 0
    model.norm.register_forward_hook(lambda _m, _x, out: _OverflowsOnce.apply(out))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    options = {"lambda_max": 1, "update_ratio": update_ratio}
    mixup_fn = SageMixup(num_classes=5, model=model, **options)
    np.random.seed(0)
    mixed, targets = mixup_fn(x.clone(), y)
    assert _OverflowsOnce.calls == 1
    np.random.seed(0)
    plain = Mixup(num_classes=5)(x.clone(), y)
    torch.testing.assert_close((mixed, targets), plain, rtol=1e-4, atol=1e-5)
    expected = gradient(model, mixed, targets)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(SoftTargetCrossEntropy()(model(mixed), targets)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    for p, was, mixed_gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), was - 0.5 * mixed_gradient)


def test_a_validation_pass_in_between_does_not_use_the_gradient_up(small_net, batch):
    model = small_net(dtype=torch.float64).eval()
    x, y = batch(dtype=torch.float64)
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.5)
    mixed, targets = mixup_fn(x.clone(), y)
    with torch.no_grad():
        model(x)
    SoftTargetCrossEntropy()(model(mixed), targets).backward()
    clean = gradient(model, x, mixup_target(y, 5, 1.0, 0.1))
    mixed_gradient = gradient(model, mixed, targets)
    for p, c, m in zip(model.parameters(), clean, mixed_gradient, strict=True):
        torch.testing.assert_close(p.grad, 0.5 * c + 0.5 * m, rtol=1e-6, atol=1e-9)


def test_a_gradient_that_no_step_used_is_dropped_by_the_next_call(small_net, batch):
    model = small_net()
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.5)
    for number in range(4):  # warns at the second that is dropped, and at no other
        said = pytest.warns(RuntimeWarning, match=r"update_ratio=0\.5 .* attached SmallNet got the")
        with said if number == 2 else contextlib.nullcontext():
            mixup_fn(*batch())
        assert len(model._forward_hooks) == 1
    mixup_fn.mixup_enabled = False
    mixup_fn(*batch())
    assert not model._forward_hooks


def test_an_optimisers_step_ends_the_share(small_net, batch):
    model = small_net()
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    another = torch.optim.SGD(small_net().parameters(), lr=0.1)
    mixed, targets = mixup_fn(*batch())
    optimizer.step()  # of something else, before the share was used
    assert len(model._forward_hooks) == 1
    SoftTargetCrossEntropy()(model(mixed), targets).backward()
    another.step()
    assert len(model._forward_hooks) == 1
    optimizer.step()
    assert not model._forward_hooks


def test_a_late_backward_pass_uses_its_own_batchs_gradient_and_leaves_the_nexts(small_net, batch):
    model = small_net(dtype=torch.float64).eval()
    mixup_fn = SageMixup(num_classes=5, model=model, update_ratio=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = []
    for seed in (1, 2):
        x, y = batch(dtype=torch.float64, seed=seed)
        mixed, targets = mixup_fn(x.clone(), y)
        steps.append((x, mixup_target(y, 5, 1.0, 0.1), mixed, targets, model(mixed)))
    for last, (x, clean_targets, mixed, targets, logits) in zip((False, True), steps, strict=True):
        SoftTargetCrossEntropy()(logits, targets).backward()
        clean, of_mixed = gradient(model, x, clean_targets), gradient(model, mixed, targets)
        for p, c, m in zip(model.parameters(), clean, of_mixed, strict=True):
            torch.testing.assert_close(p.grad, 0.5 * c + 0.5 * m, rtol=1e-6, atol=1e-9)
        optimizer.zero_grad()
        optimizer.step()  # of nothing, so that the other graph's weights stay
        assert bool(model._forward_hooks) is not last


@pytest.mark.parametrize("when", ["waiting", "bound", "used"])
def test_a_model_is_saved_and_copied_without_its_share(small_net, batch, when):
    model = small_net()
    x, y = batch()
    mixed, targets = SageMixup(num_classes=5, model=model, update_ratio=0.5)(x, y)
    logits = model(mixed) if when != "waiting" else None
    if when == "used":
        SoftTargetCrossEntropy()(logits, targets).backward()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    untouched = small_net()
    for other in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        other.load_state_dict(untouched.state_dict())
        other.zero_grad()
        for net in (other, untouched):
            SoftTargetCrossEntropy()(net(mixed), targets).backward()
        for parameter, wanted in zip(other.parameters(), untouched.parameters(), strict=True):
            assert torch.equal(parameter.grad, wanted.grad)
        untouched = small_net()


def test_a_waiting_share_is_in_no_graph_that_is_traced_or_exported(small_net, batch):
    model = small_net().eval()
    x, y = batch()
    SageMixup(num_classes=5, model=model, update_ratio=0.5)(x, y)
    expected = small_net().eval()(x)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_a_loss_that_sums_shares_pieces_alike(small_net, batch):
    """Whatever the loss divides by: the pieces' shares add up to one."""
    model = small_net(dtype=torch.float64).eval()
    x, y = batch(dtype=torch.float64)

    def loss_fn(logits, targets):
        return -(targets * logits.log_softmax(dim=1)).sum()

    mixup_fn = SageMixup(num_classes=5, model=model, loss_fn=loss_fn, update_ratio=0.6)
    mixed, targets = mixup_fn(x, y)
    for rows in (slice(0, 1), slice(1, 6)):
        loss_fn(model(mixed[rows]), targets[rows]).backward()
    clean = gradient(model, x, mixup_target(y, 5, 1.0, 0.1))
    of_mixed = gradient(model, mixed, targets)
    for p, c, m in zip(model.parameters(), clean, of_mixed, strict=True):
        torch.testing.assert_close(p.grad, 6 * (0.4 * c + 0.6 * m), rtol=1e-5, atol=1e-8)


def test_a_part_of_the_batch_has_a_part_of_the_clean_gradient(small_net, batch):
    model = small_net(dtype=torch.float64).eval()
    x, y = batch(dtype=torch.float64)
    mixed, targets = SageMixup(num_classes=5, model=model, update_ratio=0.6)(x, y)
    (SoftTargetCrossEntropy()(model(mixed[:2]), targets[:2]) / 3).backward()
    clean = gradient(model, x, mixup_target(y, 5, 1.0, 0.1))
    of_mixed = gradient(model, mixed[:2], targets[:2])
    for p, c, m in zip(model.parameters(), clean, of_mixed, strict=True):
        torch.testing.assert_close(p.grad, (0.4 * c + 0.6 * m) / 3, rtol=1e-5, atol=1e-8)


class _ReturnsFloat(nn.Module):
    """As accelerate's wrapper: autocast inside, and logits in float32."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.autocast("cpu", torch.float16):
            return self.model(x).float()


@pytest.mark.parametrize("outside", [True, False])
def test_float16_gradients_do_not_vanish_whatever_type_the_logits_have(small_net, batch, outside):
    """A loss divided as by a large batch: its gradients are below float16's least number."""
    x, y = batch(height=24, width=24)

    def loss_fn(logits, targets):
        return SoftTargetCrossEntropy()(logits, targets) / 1024

    targets = mixup_target(y, 5, 1.0, 0.1)
    exact = saliency(small_net(), x, targets, loss_fn)
    model = _ReturnsFloat(small_net())
    with torch.autocast("cpu", torch.float16, enabled=outside):
        got = saliency(model, x, targets, loss_fn)
    for one, other in zip(exact.flatten(1), got.flatten(1), strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.99


def test_only_the_last_of_two_transforms_shares_its_gradient(small_net, batch):
    model = small_net(dtype=torch.float64)
    x, y = batch(dtype=torch.float64)
    first, second = (SageMixup(num_classes=5, model=model, update_ratio=r) for r in (0.2, 0.5))
    first(x.clone(), y)
    mixed, targets = second(x.clone(), y)
    assert all(p.grad is None for p in model.parameters())
    clean_targets = mixup_target(y, 5, 1.0, 0.1)
    saliency(model, x, clean_targets, SoftTargetCrossEntropy())  # uses nothing up
    SoftTargetCrossEntropy()(model(mixed), targets).backward()
    clean, of_mixed = gradient(model, x, clean_targets), gradient(model, mixed, targets)
    for p, c, m in zip(model.parameters(), clean, of_mixed, strict=True):
        torch.testing.assert_close(p.grad, 0.5 * c + 0.5 * m, rtol=1e-6, atol=1e-9)


def test_a_copy_of_the_model_does_not_use_the_gradient_up(small_net, batch):
    model = small_net()
    SageMixup(num_classes=5, model=model, update_ratio=0.5)(*batch())
    copied = copy.deepcopy(model)
    copied(batch()[0]).sum().backward()
    assert len(model._forward_hooks) == 1
    assert model.head.weight.grad is None


def test_frozen_parameters_stay_without_gradient(small_net, batch):
    model = small_net()
    model.conv.requires_grad_(False)
    mixed, targets = SageMixup(num_classes=5, model=model, update_ratio=0.5)(*batch())
    SoftTargetCrossEntropy()(model(mixed), targets).backward()
    assert model.conv.weight.grad is None
    assert model.head.weight.grad is not None
