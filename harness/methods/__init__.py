"""The mixing methods, one file each, and the registry that finds them by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from harness.methods import cutmix, mixup, none, sage
from harness.methods.base import MethodConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images ``[B, C, H, W]`` and class indices ``[B]`` to mixed images and targets ``[B, K]``."""


@dataclass(frozen=True)
class Method:
    """A method's name, and how to make it for a model, its loss and a number of classes."""

    name: str
    build: Callable[[MethodConfig, nn.Module, nn.Module, int], Mix]


METHODS = {
    module.NAME: Method(module.NAME, module.build) for module in (none, mixup, cutmix, sage)
}


def build(name: str, config: MethodConfig, model: nn.Module, loss_fn: nn.Module, classes: int) -> Mix:
    """Makes a method by its name.

    Raises:
        ValueError: If there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name].build(config, model, loss_fn, classes)
