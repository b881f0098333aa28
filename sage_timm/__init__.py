"""SAGE, saliency-guided mixup with optimal rearrangements, for timm and torchvision."""

from sage_timm.blend import blend
from sage_timm.mixup import SageMixup
from sage_timm.rearrange import best_translation, random_translations
from sage_timm.saliency import saliency, saliency_from_gradient
from sage_timm.transforms import SageMix

__all__ = [
    "SageMix",
    "SageMixup",
    "best_translation",
    "blend",
    "random_translations",
    "saliency",
    "saliency_from_gradient",
]
__version__ = "0.1.0"
