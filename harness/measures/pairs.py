"""Fixed pairs of images that SAGE's mixes are measured on.

Images of a split are drawn once, and loaded without augmentation. Each is mixed with its reverse in
its batch, as timm pairs them.
"""

from typing import Any, Literal

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from harness.config import MethodConfig
from harness.data import load_splits
from harness.learner import make_loss
from harness.loader import draw_indices, load_images
from harness.methods.sage import mixing_alone
from harness.run_config import RunConfig
from sage_timm.sage import Mix, Sage


class FixedPairs:
    """Images of one of a run's splits, drawn with the run's seed.

    ``argument`` is what asked for ``count`` images, as ``name=value``, for the error.
    """

    def __init__(
        self, config: RunConfig, split: Literal["train", "validation"], count: int, argument: str
    ) -> None:
        splits = load_splits(config.data, config.seed)
        self.config = config.data
        self.classes = len(splits.classes)
        self.dataset: Any = getattr(splits, split)
        self.random = np.random.default_rng(config.seed)
        """Draws whatever else belongs to the pairs."""
        self.indices = draw_indices(config.data, self.dataset, count, argument, self.random)

    def load(self, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Loads the images, normalised for a model ``[N, C, H, W]``, and their classes ``[N]``.

        With them comes timm's data configuration, which holds mean and standard deviation.
        """
        data_config = resolve_data_config({}, model=model)
        loaded = load_images(self.config, self.dataset, self.indices, data_config, device)
        return *loaded, data_config


def attached_sage(config: RunConfig, model: nn.Module, mixing: MethodConfig | None = None) -> Sage:
    """Makes SAGE that takes its saliency from a run's model, by the loss that it is trained with.

    It mixes by the run's settings unless there are others, and draws by the run's seed.
    """
    sage = mixing_alone(mixing or config.mixing, config.seed)
    sage.attach(model, make_loss(config.schedule))
    return sage


def mix_pairs(sage: Sage, images: Tensor, targets: Tensor, lam: Tensor) -> Mix:
    """Mixes each image of a batch with its reverse; see ``sage_timm.sage.Sage.mix``."""
    partner = torch.arange(len(images) - 1, -1, -1, device=images.device)
    translations = sage.draw_translations(*images.shape[2:])
    return sage.mix(images, targets, partner, lam, translations)
