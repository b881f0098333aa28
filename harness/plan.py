"""Plans a first comparison on a folder of images: the options of ``train``, each with its reason.

Nothing here measures: ``harness.init`` times what is planned.
"""

import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch

from harness.check import CheckedFolder, headers
from harness.config import COMPARED, DataConfig
from harness.settings import PRESETS, Settings

SEEDS = (0, 1, 2)
_SIZES = (32, 64, 96, 128, 160, 192, 224)
_LARGEST = {"cpu": 64, "cuda": 224}  # pixels; a step's time grows with their square
_LARGEST_PRETRAINED = {"cpu": 96, "cuda": 224}  # weights of 224 pixels are lost on small images
_SMALL = 32  # pixels; timm's networks shrink such images to nothing in their first layers
_STEPS = 6_000  # from random weights; with fewer, those that mix are left half trained
_EPOCHS = (30, 200)  # at least, at most
_FINE_TUNING = ((10_000, 40), (100_000, 20), (math.inf, 10))  # images at most, epochs
_BATCH = {"cpu": 32, "cuda": 64}
_STEPS_IN_EPOCH = 20  # at least, where there are images for it
_WORKERS = 8
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


def network_for(facts: Facts, model: str | None, checkpoint: Path | None) -> Option:
    """Chooses the network, unless it is asked for."""
    if model is not None:
        return Option("model", model, "as asked for")
    if _image_size(facts, _LARGEST) == _SMALL and checkpoint is None:
        small = {"cpu": ("8", "small enough for a CPU"), "cuda": ("18", "the SAGE paper's")}
        depth, why = small[facts.kind]
        return Option("model", f"preactresnet{depth}_cifar", f"for images of 32 pixels; {why}")
    usual = {"cpu": ("18", "small enough for a CPU"), "cuda": ("50", "the usual one on a GPU")}
    depth, why = usual[facts.kind]
    return Option("model", f"resnet{depth}", why)


def has_weights(model: str) -> bool:
    """Tells whether weights of a network were published."""
    known = timm.get_pretrained_cfg(model)
    return known is not None and known.has_weights


def plan(facts: Facts, network: Option, weights: Path | bool) -> list[Option]:
    """Chooses the options to begin with, but for those that say where the folder is.

    ``weights`` is the file to start from, or whether the network's published ones can be had.
    """
    made = [*_recipe(facts, network, weights)]
    if facts.grey:
        made.append(Option("in_chans", 1, "all images are grey"))
    made += _place(facts, as_settings(made).data)
    made.append(Option("methods", COMPARED, "no mixing, timm's two alone and in turn, and SAGE"))
    why = "half of each batch costs less than all of it, and was as good or better where tried"
    made.append(Option("saliency_fraction", 0.5, why))
    made.append(Option("seeds", SEEDS, "fewer than three rank nothing in the report"))
    return made


def _recipe(facts: Facts, network: Option, weights: Path | bool) -> Iterator[Option]:
    """Chooses network, schedule, size and batch: fine-tuning, where there are weights."""
    batch = _batch_size(facts)
    if weights:
        why = f"pretrained weights make more of {facts.train:,} images than random ones do"
        yield Option("preset", "finetune", why)
    yield network
    if isinstance(weights, Path):
        yield Option("initial_checkpoint", weights, "the weights to start from, as asked for")
    largest = _LARGEST_PRETRAINED if weights else _LARGEST
    size = _image_size(facts, largest)
    why = "as many as half of the images have"
    if facts.side < size:
        why = "images that have fewer are enlarged"
    elif size == largest[facts.kind] < facts.side:
        why = "the images have more, but a step's time grows with the square"
    yield Option("image_size", size, why)
    yield Option("batch_size", batch, f"{facts.train // batch:,} steps in an epoch")
    if weights:
        epochs = next(epochs for most, epochs in _FINE_TUNING if facts.train <= most)
        start = "from pretrained weights"
    else:
        epochs = min(max(round(_STEPS * batch / facts.train), _EPOCHS[0]), _EPOCHS[1])
        start = "from random weights"
    steps = epochs * (facts.train // batch)
    yield Option("epochs", epochs, f"{steps:,} steps {start}")


def _image_size(facts: Facts, largest: Mapping[str, int]) -> int:
    """Gives the largest usual size that the images reach and the device can afford."""
    reached = [size for size in _SIZES if size <= min(facts.side, largest[facts.kind])]
    return max(reached, default=_SIZES[0])


def _batch_size(facts: Facts) -> int:
    """Halves the usual batch until an epoch has some steps; it is even, for pairs."""
    batch = _BATCH[facts.kind]
    while batch > 8 and facts.train // batch < _STEPS_IN_EPOCH:
        batch //= 2
    return min(batch, facts.train - facts.train % 2)


def _place(facts: Facts, data: DataConfig) -> Iterator[Option]:
    """Chooses where and how to compute, and how images come there."""
    if facts.kind == "cuda":
        yield Option("device", facts.device, "there is a GPU")
        amp = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        yield Option("amp", amp, "takes less time and memory on a GPU")
    yield Option("channels_last", True, "convolutions are faster so")
    # Training images are kept as bytes, and the others as floats.
    count = (facts.train + 4 * facts.validation) * data.in_chans * data.image_size**2
    if count <= _KEPT and data.train_crop_mode == "pad":
        why = f"each image is decoded once a run: they take {count / 2**20:,.0f} MiB"
        yield Option("on_device", True, why)
    elif facts.kind == "cuda":
        workers = min(_WORKERS, os.cpu_count() or 1)
        yield Option("workers", workers, "decode the images while the GPU computes")


def as_settings(options: Sequence[Option]) -> Settings:
    """Gives the settings that the options make, as ``train`` would read them."""
    values = {option.name: option.value for option in options}
    start = Settings(**PRESETS.get(values.get("preset", ""), {}))
    parts = {
        name: _changed(getattr(start, name), values) for name in ("data", "schedule", "mixing")
    }
    return replace(_changed(start, values), **parts)


def _changed(settings: Any, values: dict[str, Any]) -> Any:
    names = {setting.name for setting in fields(settings)} & values.keys()
    return replace(settings, **{name: values[name] for name in names})


def command_line(options: Sequence[Option], width: int = 88) -> str:
    """Writes the command, in lines that end with a backslash."""
    lines = ["python -m harness train"]
    for words in map(str, options):
        if len(lines[-1]) + len(words) + 3 > width:
            lines.append(f"    {words}")
        else:
            lines[-1] += f" {words}"
    return " \\\n".join(lines)
