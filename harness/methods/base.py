"""The registry of mixing methods, and what more than one of them needs."""

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from harness.config import MethodConfig

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images ``[B, C, H, W]`` and class indices ``[B]`` to mixed images and targets ``[B, K]``."""

Build = Callable[[MethodConfig, nn.Module, nn.Module, int], Mix]
"""Makes a method from its settings, the model in training, its loss and the number of classes."""

METHODS: dict[str, Build] = {}
"""The function or class that makes each method, by the method's name."""

REQUIRES: dict[str, str] = {}
"""The module that a method needs and that not everybody has installed."""

_Build = TypeVar("_Build", bound=Build)


def register(name: str, requires: str | None = None) -> Callable[[_Build], _Build]:
    """Registers what makes a method.

    Args:
        name: The method's name on the command line.
        requires: A module that it needs and that not everybody has installed.

    Raises:
        ValueError: If there is a method of that name.
    """

    def put(build: _Build) -> _Build:
        if name in METHODS:
            raise ValueError(f"name must be new, but there is a method {name!r}")
        METHODS[name] = build
        if requires is not None:
            REQUIRES[name] = requires
        return build

    return put


def needs(module: str, name: str, extra: str = "peers") -> Any:
    """Imports a module that only ``name`` needs; the ImportError names the extra that has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{name} needs {module}, which is not installed: pip install 'sage-timm[{extra}]'"
        ) from error


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalises images ``[..., C, H, W]`` of bytes, as a network takes them."""
    return normalize(pixels / 255, list(mean), list(std))


def unnormalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns normalised images ``[..., C, H, W]`` back into pixels in [0, 1]."""
    options = {"dtype": torch.float32, "device": images.device}
    scale, offset = (torch.tensor(values, **options).view(-1, 1, 1) for values in (std, mean))
    return images.float() * scale + offset


@contextmanager
def no_steps() -> Iterator[None]:
    """Silences the warning of a shared gradient without a step, where mixes are only looked at."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "update_ratio=.* had no effect", RuntimeWarning)
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode for a while, then each of its modules in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
