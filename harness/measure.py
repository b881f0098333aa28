"""Accuracy of a network, also by class, its likelihood and its calibration."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_recall,
)
from tqdm import tqdm

_BINS = 15  # of confidence, the field's usual number


@torch.inference_mode()
def measure(model: nn.Module, loader: Any) -> dict[str, Any]:
    """Measures a model on a data set; leaves it in evaluation mode.

    Args:
        model: Maps images ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        loader: Gives batches of images and class indices ``[B]``.

    Returns:
        ``top1`` and ``top5``, the accuracies in percent (top5 is 100 with five classes or fewer);
        ``balanced``, the mean of the classes' accuracies, which no class can carry by its size, and
        ``class_accuracy``, those accuracies themselves, in percent, None for a class without an
        image; ``nll``, the mean negative log-likelihood in nats; ``ece``, the expected calibration
        error in percent, over 15 bins of equal width (Guo et al., ICML 2017). The last two are not
        a number where the logits are not finite.
    """
    model.eval()
    outputs, answers = [], []
    for images, targets in tqdm(loader, desc="validation", leave=False, disable=None):
        outputs.append(model(images).float())
        answers.append(targets)
    logits, targets = torch.cat(outputs), torch.cat(answers)
    classes = logits.shape[1]
    top1, top5 = (
        100 * multiclass_accuracy(logits, targets, classes, average="micro", top_k=min(k, classes))
        for k in (1, 5)
    )
    recalls = 100 * multiclass_recall(logits, targets, classes, average="none")
    there = targets.bincount(minlength=classes) > 0  # of the others, torchmetrics says 0
    nll = ece = torch.tensor(torch.nan)
    if logits.isfinite().all():
        nll = F.cross_entropy(logits, targets)
        ece = 100 * multiclass_calibration_error(
            logits.softmax(dim=1), targets, classes, n_bins=_BINS
        )
    return {
        "top1": top1.item(),
        "top5": top5.item(),
        "balanced": recalls[there].mean().item(),
        "class_accuracy": [
            round(recall, 3) if known else None
            for recall, known in zip(recalls.tolist(), there.tolist(), strict=True)
        ],
        "nll": nll.item(),
        "ece": ece.item(),
    }
