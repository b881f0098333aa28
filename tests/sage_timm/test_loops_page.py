"""What docs/loops.md shows beside the trainers: ``forward``, losses, what to log."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from sage_timm import SageMixup
from tests.loops_page import Net, blocks, images_and_labels, run, vit


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_lines_that_show_forward(kind):
    line = blocks("Models that return more than logits")[0].splitlines()[kind]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, pixel_values, mask=None):
            logits = self.net(pixel_values)
            return (SimpleNamespace(logits=logits), (logits,), {"logits": logits})[kind]

    mixed = [SageMixup(num_classes=10, model=Net())]
    scope = {"model": Model(), "mask": None, "loss_fn": None, "mixup_fn": SageMixup(num_classes=10)}
    exec(line, scope)
    mixed.append(scope["mixup_fn"])
    for number, mixup_fn in enumerate(mixed):
        np.random.seed(0)
        mixed[number] = mixup_fn(*images_and_labels())[0]
    assert torch.equal(*mixed)


def test_the_module_around_a_model_shares_the_gradient():
    scope = {"torch": torch}
    exec(blocks("Models that return more than logits")[1], scope)
    model, loss_fn = vit(), SoftTargetCrossEntropy()
    called = scope["Logits"](model)
    mixup_fn = SageMixup(num_classes=10, model=called, loss_fn=loss_fn, update_ratio=0.6)
    images, labels = images_and_labels()
    mixed, targets = mixup_fn(images, labels)
    loss_fn(called(mixed), targets).backward()
    by_hand = vit()
    of_clean, of_mixed = (
        torch.autograd.grad(loss_fn(by_hand(x).logits, y), by_hand.classifier.weight)[0]
        for x, y in ((images, mixup_target(labels, 10, 1.0, 0.1)), (mixed, targets))
    )
    wanted = 0.4 * of_clean + 0.6 * of_mixed
    torch.testing.assert_close(model.classifier.weight.grad, wanted, rtol=1e-4, atol=1e-6)


def test_the_loss_that_takes_weights():
    """Weights each class: the formula is written out."""
    scope = run("Losses that take more than logits and targets", model=Net())
    loss_fn = scope["mixup_fn"].sage.loss_fn
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 10, generator=generator)
    targets = torch.rand(4, 10, generator=generator)
    weighted = -(targets * torch.linspace(0.5, 1.5, 10) * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(loss_fn(logits, targets), weighted.mean())
    assert scope["mixup_fn"](*images_and_labels())[1].shape == (40, 10)


def test_what_to_log():
    """On predictions of which three quarters are right, and on targets that are met."""
    labels = torch.arange(8) % 4
    targets = mixup_target(labels, 10, 0.7, 0.1)
    logits = targets.log()
    loss = SoftTargetCrossEntropy()(logits, targets)
    wrong = targets.log().roll(1, dims=1)
    logits = torch.where(torch.arange(8)[:, None] < 6, logits, wrong)

    class Constant(nn.Module):
        def forward(self, images):
            return logits[:4] if not self.training else wrong[:4]

    loader = [(torch.zeros(4, 3, 2, 2), labels[:4])]
    scope = run(
        "What to log", logits=logits, targets=targets, loss=loss, model=Constant(), loader=loader
    )
    assert scope["mixed_accuracy"].compute() == 0.75
    assert scope["excess"].abs() < 1e-6
    assert scope["clean_accuracy"].compute() == 1
    assert scope["model"].training
