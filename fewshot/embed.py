"""What a trained backbone makes of images: their embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm


@torch.inference_mode()
def embed(model: nn.Module, loader: Any, title: str = "embeddings") -> Tensor:
    """Computes the embeddings of all images of a loader; leaves the model in evaluation mode.

    Args:
        model: A timm network, or one of :mod:`fewshot.backbones`.
        loader: Gives batches of images ``[B, C, H, W]`` and their class indices.
        title: What the progress bar says.

    Returns:
        What comes before the classifier, ``[N, D]``, in float32.
    """
    model.eval()
    parts = [
        model.forward_head(model.forward_features(images), pre_logits=True).float()
        for images, _ in tqdm(loader, desc=title, leave=False, disable=None)
    ]
    return torch.cat(parts)
