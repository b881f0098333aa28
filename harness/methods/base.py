"""The registry of mixing methods, and what more than one of them needs."""

import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from timm.data import resolve_data_config
from timm.data.mixup import mixup_target
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2.functional import normalize

from harness.config import MethodConfig
from sage_timm.gradient import Forward, Loss, input_gradient

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images ``[B, C, H, W]`` and class indices ``[B]`` to mixed images and targets ``[B, K]``.

A method that is an object may have more: ``loss(logits, targets)``, the batch's loss in the place
of the training's own, and ``module``, an ``nn.Module`` of what is trained along with the network,
or kept from one batch to the next. Its parameters go to the optimiser, its state into checkpoints.
"""

Kind = Literal["images", "hidden", "alone"]
"""What a method works on: ``images`` makes each pixel of a mix a weighted sum of the batch's
pixels, ``hidden`` reaches into hidden layers of the network's next pass, ``alone`` alters each
image by itself."""


class Stage(NamedTuple):
    """A stage of a network."""

    module: nn.Module
    channels: int
    """Channels of its output."""
    index: int
    """Its place in timm's ``feature_info``, as ``forward_intermediates`` takes it."""


@dataclass(frozen=True)
class Training:
    """The training that a method is part of, and what a method may ask of it."""

    config: MethodConfig
    """The method's settings."""
    model: nn.Module
    """The model in training."""
    loss_fn: nn.Module
    """The loss of logits and soft targets."""
    classes: int
    """Number of classes."""

    def soft_targets(
        self, targets: Tensor, weight: float | Tensor = 1.0, partners: Tensor | None = None
    ) -> Tensor:
        """Mixes one-hot targets ``[B, K]``, smoothed as the settings say.

        Args:
            targets: Class indices ``[B]``.
            weight: Label weight of each image itself, a number or ``[B]``, in [0, 1].
            partners: The place of each image's partner in the batch ``[B]``; the reversed batch if
                None, as in timm's Mixup.
        """
        own = mixup_target(targets, self.classes, 1.0, self.config.label_smoothing)
        other = own.flip(0) if partners is None else own[partners]
        if isinstance(weight, Tensor):
            weight = weight[:, None]
        return own * weight + other * (1.0 - weight)

    def gradient(
        self,
        images: Tensor,
        targets: Tensor,
        loss_fn: Loss | None = None,
        forward: Forward | None = None,
        evaluation: bool = True,
    ) -> Tensor:
        """Computes the gradient of the clean loss with respect to images ``[B, C, H, W]``.

        The model is left bit for bit as it was.

        Args:
            images: Normalised images.
            targets: Class indices ``[B]``.
            loss_fn: The loss of logits and one-hot targets; the training's own if None.
            forward: ``forward(model, images)``, the logits; ``model(images)`` if None.
            evaluation: Whether the model is in evaluation mode for it.
        """
        with evaluation_mode(self.model) if evaluation else nullcontext():
            clean = mixup_target(targets, self.classes)
            loss_fn = loss_fn or self.loss_fn
            return input_gradient(self.model, images, clean, loss_fn, forward=forward).images

    def pixels(self, images: Tensor) -> Tensor:
        """Turns normalised images ``[..., C, H, W]`` back into pixels in [0, 1]."""
        return unnormalised(images, *self.normalisation())

    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Returns mean and standard deviation of each channel, of pixels in [0, 1]."""
        known = resolve_data_config({}, model=self.model)
        return known["mean"], known["std"]

    def stages(self, least: int = 1) -> list[Stage]:
        """Gives the network's stages in order, as timm's ``feature_info`` names them.

        Raises:
            ValueError: If there are fewer than ``least``.
        """
        known = list(getattr(self.model, "feature_info", []))
        stages = [
            Stage(self.model.get_submodule(info["module"]), info["num_chs"], index)
            for index, info in enumerate(known)
            if _STAGE.fullmatch(info["module"])
        ]
        if len(stages) < least:
            raise ValueError(
                f"the method needs a timm model whose feature_info names {least} stages, got "
                f"{[info['module'] for info in known]} for {type(self.model).__name__}"
            )
        return stages


def change_output_once(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Changes the output of a layer of the network in its next pass in training mode.

    Returns:
        The hook's handle, by which it is removed if its batch never reaches the network.
    """

    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        handle.remove()
        return change(output)

    handle = layer.register_forward_hook(hook)
    return handle


Build = Callable[[Training], Mix]
"""Makes a method for a training."""

METHODS: dict[str, Build] = {}
"""The function or class that makes each method, by the method's name."""

KINDS: dict[str, Kind] = {}
"""What each method works on, by its name."""

REQUIRES: dict[str, str] = {}
"""The module that a method needs and that not everybody has installed."""

_STAGE = re.compile(r"(features\.)?(stages|blocks|layers|layer|features|s)\.?\d+")
_Build = TypeVar("_Build", bound=Build)


def register(
    name: str, requires: str | None = None, kind: Kind = "images"
) -> Callable[[_Build], _Build]:
    """Registers what makes a method.

    Args:
        name: The method's name on the command line.
        requires: A module that it needs and that not everybody has installed.
        kind: What it works on, see ``Kind``.

    Raises:
        ValueError: If there is a method of that name.
    """

    def put(build: _Build) -> _Build:
        if name in METHODS:
            raise ValueError(f"name must be new, but there is a method {name!r}")
        METHODS[name] = build
        KINDS[name] = kind
        if requires is not None:
            REQUIRES[name] = requires
        return build

    return put


def kind_of(method: str) -> Kind:
    """Returns what a method works on."""
    return KINDS.get(method, "images")


def loss_of(mix: Mix, loss_fn: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a method's own loss of logits and soft targets; ``loss_fn`` if it has none."""
    own: Callable[[Tensor, Tensor], Tensor] = getattr(mix, "loss", loss_fn)
    return own


def module_of(mix: Mix) -> nn.Module | None:
    """Returns what a method trains, or keeps, beside the network; None if nothing."""
    return getattr(mix, "module", None)


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
