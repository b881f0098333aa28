"""Models that do not simply return logits, by ``attach(forward=)``."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from sage_timm import SageMix, SageMixup, saliency
from tests.model_snapshot import assert_same, snapshot


class Wrapped(nn.Module):
    """Returns a network's logits within something else."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, pixel_values, scale=None):
        logits = self.net(pixel_values)
        return self.wrap(logits if scale is None else scale * logits)


WAYS = {
    "object": (
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda model, images: model(pixel_values=images).logits,
    ),
    "tuple": (lambda logits: (logits, None), lambda model, images: model(images)[0]),
    "dictionary": (
        lambda logits: {"features": logits.sum(), "logits": logits},
        lambda model, images: model(images)["logits"],
    ),
    "arguments": (lambda logits: logits, lambda model, images: model(images, scale=1)),
}


@pytest.mark.parametrize("make", [SageMixup, SageMix])
@pytest.mark.parametrize("way", WAYS)
def test_mixes_as_the_network_inside_does(small_net, batch, make, way):
    wrap, forward = WAYS[way]
    model = Wrapped(small_net(), wrap)
    before = snapshot(model)
    results = []
    for mixup_fn in (
        make(num_classes=5).attach(small_net()),
        make(num_classes=5).attach(model, forward=forward),
    ):
        np.random.seed(0)
        torch.manual_seed(0)
        results.append(mixup_fn(*batch()))
    assert not torch.equal(results[0][0], batch()[0])
    for wanted, got in zip(*results, strict=True):
        assert torch.equal(wanted, got)
    assert_same(before, snapshot(model))


def test_the_function_takes_it_too(small_net, batch):
    x, y = batch()
    targets, loss_fn = mixup_target(y, 5, 1.0, 0.1), SoftTargetCrossEntropy()
    model = Wrapped(small_net(), lambda logits: (logits,))
    got = saliency(model, x, targets, loss_fn, forward=lambda model, images: model(images)[0])
    assert torch.equal(got, saliency(small_net(), x, targets, loss_fn))


def test_what_forward_holds_is_left_alone(small_net, batch):
    calls = []

    def forward(model, images):
        calls.append(len(images))
        return model(images)

    np.random.seed(0)
    SageMixup(num_classes=5).attach(small_net(), forward=forward)(*batch())
    assert calls == []


@pytest.mark.parametrize("make", [SageMixup, SageMix])
def test_it_does_not_go_with_a_shared_gradient(small_net, make):
    with pytest.raises(ValueError, match=r"^update_ratio=0\.6 needs .* forward=: use update_ratio"):
        make(num_classes=5, update_ratio=0.6).attach(small_net(), forward=WAYS["tuple"][1])


def test_what_the_error_says_to_do_shares_the_gradient(small_net, batch):
    """A module around the model, that returns the logits alone."""

    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(pixel_values=images).logits

    gradients = []
    for model in (small_net(), Logits(Wrapped(small_net(), WAYS["object"][0]))):
        np.random.seed(0)
        mixed, targets = SageMixup(num_classes=5, model=model, update_ratio=0.6)(*batch())
        SoftTargetCrossEntropy()(model(mixed), targets).backward()
        gradients.append([p.grad for p in model.parameters()])
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_pickle_leaves_it_out_with_the_model_and_a_copy_keeps_both(small_net, batch):
    wrap, forward = WAYS["tuple"]
    model = Wrapped(small_net(), wrap)
    mixup_fn = SageMixup(num_classes=5).attach(model, forward=forward)
    with pytest.raises(RuntimeError, match=r"call attach\(model, loss_fn\)"):
        pickle.loads(pickle.dumps(mixup_fn))(*batch())
    results = []
    for each in (mixup_fn, copy.deepcopy(mixup_fn)):
        np.random.seed(0)
        results.append(each(*batch())[0])
    assert torch.equal(*results)


def test_a_model_attached_anew_without_it_is_called_with_images(small_net, batch):
    mixup_fn = SageMixup(num_classes=5).attach(small_net(), forward=WAYS["tuple"][1])
    mixup_fn.attach(small_net())
    np.random.seed(0)
    got = mixup_fn(*batch())[0]
    np.random.seed(0)
    assert torch.equal(got, SageMixup(num_classes=5, model=small_net())(*batch())[0])
