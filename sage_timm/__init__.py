"""SAGE, saliency-guided mixup with optimal rearrangements, for timm and torchvision.

What is exported is imported when it is asked for: ``sage_timm.settings`` needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sage_timm.blend import blend
    from sage_timm.mixup import SageMixup
    from sage_timm.saliency import saliency, saliency_from_gradient
    from sage_timm.search import best_translation, random_translations
    from sage_timm.settings import SageSettings
    from sage_timm.transforms import SageMix

__all__ = [
    "SageMix",
    "SageMixup",
    "SageSettings",
    "best_translation",
    "blend",
    "random_translations",
    "saliency",
    "saliency_from_gradient",
]
__version__ = "0.1.0"

_MODULES = {
    "SageMix": "transforms",
    "SageMixup": "mixup",
    "SageSettings": "settings",
    "best_translation": "search",
    "blend": "blend",
    "random_translations": "search",
    "saliency": "saliency",
    "saliency_from_gradient": "saliency",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps the modules ``blend`` and ``saliency`` from hiding the functions of these names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
