import math

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score
from torch import nn

from harness.measure import measure


def batches(images, targets, size=20):
    return [(images[i : i + size], targets[i : i + size]) for i in range(0, len(images), size)]


def test_accuracy_counts_the_right_answers():
    """A network that reads the answer off the picture, and pictures of which 37 in 50 are right."""
    targets = torch.arange(50) % 10
    shown = torch.where(torch.arange(50) < 37, targets, (targets + 1) % 10)
    images = nn.functional.one_hot(shown, 10).float()[:, None, None]
    figures = measure(nn.Flatten(), batches(images, targets))
    assert figures["top1"] == pytest.approx(74)


def test_all_figures_against_numpy():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 8, generator=generator)
    targets = torch.randint(8, (300,), generator=generator)
    figures = measure(nn.Flatten(), batches(logits[:, None, None], targets))
    z, y = logits.double().numpy(), targets.numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    rank = (z > z[np.arange(300), y][:, None]).sum(axis=1)
    assert figures["top1"] == pytest.approx(100 * (rank < 1).mean())
    assert figures["top5"] == pytest.approx(100 * (rank < 5).mean())
    assert figures["nll"] == pytest.approx(-np.log(p[np.arange(300), y]).mean(), rel=1e-5)
    confidence, right = p.max(axis=1), rank < 1
    inside = np.ceil(confidence * 15)  # Guo et al.: bins (0, 1/15], (1/15, 2/15], ...
    error = sum(
        (inside == b).mean() * abs(right[inside == b].mean() - confidence[inside == b].mean())
        for b in np.unique(inside)
    )
    assert figures["ece"] == pytest.approx(100 * error, rel=1e-4)


def test_the_largest_class_does_not_carry_the_balanced_accuracy():
    """Of 100 pictures 91 are of one class, and the network says that class whatever it sees."""
    targets = torch.tensor([0] * 91 + [1] * 6 + [2] * 3)
    logits = torch.tensor([5.0, 1.0, 0.0, -1.0]).expand(100, 4)
    figures = measure(nn.Flatten(), batches(logits[:, None, None], targets))
    assert figures["top1"] == pytest.approx(91)
    assert figures["balanced"] == pytest.approx(100 / 3)
    assert figures["class_accuracy"] == [100, 0, 0, None]


def test_classes_against_scikit_learn():
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(12, (400,), generator=generator).clamp(min=4)  # 0 to 3 have none
    logits = torch.randn(400, 12, generator=generator)
    logits[range(400), targets] += 1
    figures = measure(nn.Flatten(), batches(logits[:, None, None], targets))
    said = logits.argmax(dim=1)
    assert said.unique().numel() == 12  # also where there is none to be right about
    recalls = recall_score(targets, said, labels=range(4, 12), average=None)
    assert figures["balanced"] == pytest.approx(100 * recalls.mean())
    assert figures["class_accuracy"][:4] == [None] * 4
    assert figures["class_accuracy"][4:] == pytest.approx(100 * recalls, abs=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_have_no_likelihood(value):
    logits, targets = torch.randn(20, 3), torch.arange(20) % 3
    logits[5] = value
    figures = measure(nn.Flatten(), batches(logits[:, None, None], targets))
    assert math.isnan(figures["nll"])
    assert math.isnan(figures["ece"])
    assert 0 <= figures["top1"] <= 100


def test_few_classes_have_their_answer_among_five():
    logits, targets = torch.randn(10, 3), torch.arange(10) % 3
    figures = measure(nn.Flatten(), batches(logits[:, None, None], targets))
    assert figures["top5"] == 100


def test_the_model_is_measured_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9))
    images = torch.eye(5).repeat(4, 1)[:, None, None]
    figures = measure(model, batches(images, torch.arange(5).repeat(4)))
    assert figures["top1"] == 100
    assert not model.training
