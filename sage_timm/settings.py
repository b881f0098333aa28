"""The settings of SAGE, importable without torch: the docstring below each is its help text."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

Search = Literal["all", "random", "none"]
Dtype = Literal["float16", "bfloat16"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class SageSettings:
    """Settings that ``sage_timm.SageMixup`` and ``sage_timm.SageMix`` have in common.

    ``saliency_dtype`` may be given as a ``torch.dtype``, and is kept by its name.

    Raises:
        ValueError: If a setting is out of its range, or two do not go together.
    """

    lambda_max: float = 0.5
    """Largest weight of an image's own saliency, in (0, 1]; the paper has 0.5 to 0.7. Above 0.5 the
    search often moves the partner out of the picture: on 500 images of CIFAR-10, 1 was as accurate
    as 0.5 and worse calibrated."""
    update_ratio: float = 1.0
    """rho, the share of the mixed loss in the step, in (0, 1]; the paper has 0.5 to 0.7. On 500
    images of CIFAR-10 with a largest weight of 1, 0.7 was worse calibrated than 1, and 0.5 less
    accurate, too."""
    saliency_size: int | None = None
    """Pixels of the shorter side to which images are shrunk for their saliency, which costs in
    proportion to their area; None: as they are. The model has to take that size, and the update
    ratio has to be 1."""
    saliency_dtype: Dtype | None = None
    """Type in which autocast computes the saliency; None: as the training step runs the model."""
    saliency_fraction: float = 1.0
    """Share of each batch that SAGE mixes, in (0, 1]; the rest gets plain mixup, without the cost
    of a saliency. On 500 images of CIFAR-10, one half was no worse than the whole."""
    search: Search = "all"
    """Translations to choose from. all: the best of all that a search from coarse to fine finds, on
    the mean 99.97 % of the largest objective; random: the best of a random share, as the authors
    do; none: images stay where they are. On 500 images of CIFAR-10 their accuracies could not be
    told apart."""
    search_fraction: float = 0.01
    """Share of all translations that a random search looks at, in (0, 1]."""

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name in ("lambda_max", "update_ratio", "saliency_fraction", "search_fraction"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if self.saliency_size is not None and self.saliency_size < 1:
            raise ValueError(f"saliency_size must be at least 1, got {self.saliency_size}")
        if self.saliency_size is not None and self.update_ratio < 1:
            raise ValueError(
                f"saliency_size={self.saliency_size} needs update_ratio=1, got "
                f"{self.update_ratio}: the gradient that is shared would be that of the shrunk "
                "images"
            )
        if self.saliency_dtype is not None:
            dtype = str(self.saliency_dtype).removeprefix("torch.")
            if dtype not in get_args(Dtype):
                raise ValueError(
                    "saliency_dtype must be torch.float16, torch.bfloat16 or None, got "
                    f"{self.saliency_dtype}"
                )
            object.__setattr__(self, "saliency_dtype", dtype)
        if self.search not in get_args(Search):
            raise ValueError(f"search must be one of {get_args(Search)}, got {self.search!r}")


def takes_settings(function: _Function) -> _Function:
    """Names the settings in the signature of a function that takes them as ``**settings``."""
    signature = inspect.signature(function)
    *own, _settings = signature.parameters.values()
    settings = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in fields(SageSettings)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
    return function


def written(arguments: dict[str, Any]) -> str:
    """Writes arguments as they are given in a call."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items())
