"""What the methods can be set to."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MethodConfig:
    """Settings of the mixing methods; each method reads those that concern it."""

    alpha: float = 1.0
    """Parameter of the Beta distribution of mixup, cutmix and sage."""
    label_smoothing: float = 0.0
    """Label smoothing, the same for every method."""
    lambda_max: float = 1.0
    """sage: the largest weight of an image's own saliency (the paper: 0.5 to 0.7)."""
    update_ratio: float = 1.0
    """sage: rho, the share of the mixed loss in the step (the paper: 0.5 to 0.7)."""
    search: Literal["random", "none"] = "random"
    """sage: which translations to choose from."""
    search_fraction: float = 0.01
    """sage: the share of all translations that search=random looks at."""
