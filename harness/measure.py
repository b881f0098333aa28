"""What is measured of a trained network: accuracy, likelihood and calibration."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)
from tqdm import tqdm

MEASURES = ("top1", "top5", "nll", "ece")
_BINS = 15  # of confidence, the field's usual number


@torch.inference_mode()
def measure(model: nn.Module, loader: Any) -> dict[str, float]:
    """Measures a model on a data set; leaves it in evaluation mode.

    Args:
        model: Maps images ``[B, C, H, W]`` to logits ``[B, num_classes]``.
        loader: Gives batches of images and class indices ``[B]``.

    Returns:
        ``top1`` and ``top5``, the accuracies in percent (top5 is 100 with five classes or fewer);
        ``nll``, the mean negative log-likelihood in nats; ``ece``, the expected calibration error
        in percent, over 15 bins of equal width (Guo et al., ICML 2017).
    """
    model.eval()
    outputs, answers = [], []
    for images, targets in tqdm(loader, desc="validation", leave=False, disable=None):
        outputs.append(model(images).float())
        answers.append(targets)
    logits, targets = torch.cat(outputs), torch.cat(answers)
    classes = logits.shape[1]
    accuracies = [
        multiclass_accuracy(logits, targets, classes, average="micro", top_k=min(k, classes))
        for k in (1, 5)
    ]
    error = multiclass_calibration_error(logits.softmax(dim=1), targets, classes, n_bins=_BINS)
    nll = F.cross_entropy(logits, targets)
    figures = (100 * accuracies[0], 100 * accuracies[1], nll, 100 * error)
    return {name: figure.item() for name, figure in zip(MEASURES, figures, strict=True)}
