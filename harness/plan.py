"""Plans a first comparison on a folder of images: the options of ``train``, each with its reason.

Nothing here measures: :mod:`harness.init` times what is planned.
"""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, NamedTuple

import torch

from harness.check import CheckedFolder, headers
from harness.config import DataConfig
from harness.settings import Settings

METHODS = ("none", "mixup", "cutmix", "sage")
SEEDS = (0, 1, 2)
_SIZES = (32, 64, 96, 128, 160, 192, 224)
_LARGEST = {"cpu": 96, "cuda": 224}  # pixels; a step's time grows with their square
_CIFAR_SIDE = 48  # pixels; timm's networks shrink smaller images to nothing in their first layers
_STEPS = 6_000  # from scratch; with those that mix, fewer leave the network half trained
_EPOCHS = (30, 200)  # at least, at most
_BATCH = {"cpu": 32, "cuda": 128}
_STEPS_IN_EPOCH = 20  # at least, where there are images for it
_KEPT = 2**30  # bytes of decoded images in memory at most


class Option(NamedTuple):
    """An option of ``train``, by the name of its setting."""

    name: str
    value: Any
    why: str = ""

    def __str__(self) -> str:
        """Writes it as on the command line."""
        flag = f"--{self.name.replace('_', '-')}"
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return flag if self.value is True else shlex.join([flag, *map(str, values)])


@dataclass(frozen=True)
class Facts:
    """What a folder holds, and what there is to train with."""

    train: int
    """Images to train on."""
    validation: int
    """Images to measure on."""
    classes: int
    each: tuple[int, int]
    """Training images of the smallest and of the largest class."""
    side: int
    """Median of the training images' shorter sides, in pixels."""
    grey: bool
    """Whether all images have one channel."""
    device: str
    """Where to train: cpu, cuda, cuda:1, ..."""

    @classmethod
    def of(cls, folder: CheckedFolder, device: str) -> "Facts":
        """Reads the facts of a folder that was checked."""
        counts = Counter(folder.train.targets).values()
        found = [header for part in folder[:2] for header in headers(part).values() if header]
        own = [header for header in headers(folder.train).values() if header]
        return cls(
            train=len(folder.train.files),
            validation=len(folder.validation.files),
            classes=len(folder.train.classes),
            each=(min(counts), max(counts)),
            side=round(median(min(header.size) for header in own)),
            grey=all(header.mode in ("1", "L") or header.mode[0] == "I" for header in found),
            device=device,
        )

    def __str__(self) -> str:
        """Writes them as a sentence."""
        least, most = self.each
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        colour = "grey" if self.grey else "RGB"
        return (
            f"{self.train:,} images to train on and {self.validation:,} to measure on, "
            f"{self.classes} classes with {each} training images, {colour}, shorter side "
            f"{self.side} pixels (median)"
        )

    @property
    def kind(self) -> str:
        """What computes: cpu or cuda."""
        return self.device.partition(":")[0]


def plan(facts: Facts) -> list[Option]:
    """Chooses the options to begin with."""
    made = [*_recipe(facts)]
    if facts.grey:
        made.append(Option("in_chans", 1, "all images are grey"))
    made += [*_place(facts, dict(option[:2] for option in made))]
    made.append(Option("methods", METHODS, "no mixing, timm's two, and SAGE"))
    why = "half of each batch costs less than all of it, and was as good or better where tried"
    made.append(Option("saliency_fraction", 0.5, why))
    made.append(Option("seeds", SEEDS, "fewer than three rank nothing in the report"))
    return made


def _recipe(facts: Facts) -> Iterator[Option]:
    """Chooses network, size, schedule and batch."""
    kind, side = facts.kind, facts.side
    reached = [size for size in _SIZES if size <= min(side, _LARGEST[kind])]
    size = max(reached, default=_SIZES[0])
    if size <= _CIFAR_SIDE:
        network = {"cpu": "preactresnet8_cifar", "cuda": "preactresnet18_cifar"}[kind]
        why = f"made for images of 32 pixels; {_SMALL[kind]}"
    else:
        network, why = "resnet18", "small, and every method takes it"
    yield Option("model", network, why)
    why = "as many as half of the images have"
    if side > size and size == _LARGEST[kind]:
        why = f"the images have more; a step's time grows with the square ({_AFFORDED[kind]})"
    elif side < size:
        why = "the images have fewer, and are enlarged: networks need as many"
    yield Option("image_size", size, why)
    batch = _batch_size(facts)
    yield Option("batch_size", batch, f"{facts.train // batch} steps in an epoch")
    epochs = min(max(round(_STEPS * batch / facts.train), _EPOCHS[0]), _EPOCHS[1])
    steps = epochs * (facts.train // batch)
    yield Option("epochs", epochs, f"{steps:,} steps from random weights; mixing needs many")


_SMALL = {"cpu": "small enough for a CPU", "cuda": "the SAGE paper's"}
_AFFORDED = {"cpu": "there is no GPU", "cuda": "most published weights are for as many"}


def _batch_size(facts: Facts) -> int:
    """Halves the usual batch until an epoch has some steps; it is even, for pairs."""
    batch = _BATCH[facts.kind]
    while batch > 8 and facts.train // batch < _STEPS_IN_EPOCH:
        batch //= 2
    return min(batch, facts.train - facts.train % 2)


def _place(facts: Facts, chosen: dict[str, Any]) -> Iterator[Option]:
    """Chooses where and how to compute, and how images come there."""
    if facts.kind == "cuda":
        yield Option("device", facts.device, "there is a GPU")
        amp = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        yield Option("amp", amp, "halves a GPU's time and memory")
    yield Option("channels_last", True, "convolutions are faster so")
    channels = chosen.get("in_chans", 3)
    # Bytes of the training images, floats of the others.
    count = (facts.train + 4 * facts.validation) * channels * chosen["image_size"] ** 2
    if count <= _KEPT and chosen.get("train_crop_mode", "pad") == "pad":
        why = f"each image is decoded once a run: they take {count / 2**20:,.0f} MiB"
        yield Option("on_device", True, why)
    elif facts.kind == "cuda":
        yield Option("workers", 8, "decode the images while the GPU computes")


def as_settings(options: Sequence[Option], start: Settings) -> Settings:
    """Gives the settings that options and a start make, as ``train`` would read them."""
    values = {option.name: option.value for option in options}
    parts = {
        name: _changed(getattr(start, name), values) for name in ("data", "schedule", "mixing")
    }
    return replace(_changed(start, values), **parts)


def _changed(settings: Any, values: dict[str, Any]) -> Any:
    names = {setting.name for setting in fields(settings)} & values.keys()
    return replace(settings, **{name: values[name] for name in names})


def command_line(data: DataConfig, options: Sequence[Option], width: int = 88) -> str:
    """Writes the command, in lines that end with a backslash."""
    lines = [f"python -m harness train {Option('dataset', data.dataset)}"]
    usual = DataConfig()
    names = ("data_dir", "train_split", "val_split")
    place = [Option(name, getattr(data, name)) for name in names]
    told = [option for option in place if option.value != getattr(usual, option.name)]
    for words in map(str, [*told, *options]):
        if len(lines[-1]) + len(words) + 3 > width:
            lines.append(f"    {words}")
        else:
            lines[-1] += f" {words}"
    return " \\\n".join(lines)
