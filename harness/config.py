"""Settings of data, schedule, mixing and benchmarks.

Nothing here imports torch, for which ``--help`` would have to wait.
"""

import os
import tempfile
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

from sage_timm.settings import SageSettings

MOST_EPOCHS = 100_000
RANK_APART = 1_000_003
"""Between the random states of two processes."""
LEAST_GLYPH = 8
"""Pixels of a glyph's side at least."""
COMPARED = ("none", "mixup", "cutmix", "mixup-cutmix", "sage")
"""The methods that are compared unless others are named."""
Amp = Literal["none", "bfloat16", "float16"]
BatchNorm = Literal["clean", "running"]


def check_in(interval: str, **settings: float) -> None:
    """Raises a ValueError that names a setting outside of an interval, such as ``"(0, 1]"``."""
    low, high = (float(end) for end in interval.strip("[]()").split(","))
    for name, value in settings.items():
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must be in {interval}, got {value}")


def check_at_least(least: int, **settings: int | None) -> None:
    """Raises a ValueError that names a setting below its least value; None is fine."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def later(default: Any) -> Any:
    """Gives the default of a setting that runs were trained without before there was one.

    At its default it is left out of a run's identity, so that those runs are found again.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class ScheduleConfig:
    """The optimiser, its loss and its schedule, the same for every method."""

    epochs: int = 30
    """Passes over the training images."""
    opt: str = later("sgd")
    """timm's optimiser, by any name in timm.optim.list_optimizers(): sgd, adamw, lamb, ..."""
    lr: float = 0.1
    """Initial learning rate."""
    momentum: float = 0.9
    """Momentum, of an optimiser that has one; sgd's is Nesterov's."""
    weight_decay: float = 5e-4
    """Weight decay."""
    sched: Literal["cosine", "multistep", "constant"] = "cosine"
    """timm's scheduler."""
    decay_milestones: tuple[int, ...] = (100, 200)
    """multistep: epochs at which the learning rate falls to a tenth."""
    warmup_epochs: int = later(0)
    """Epochs in which the learning rate first rises from timm's 1e-5, epoch by epoch; they are
    among the others."""
    layer_decay: float | None = later(None)
    """Each layer's share of the learning rate of the next one, as in timm; for fine-tuning."""
    clip_grad: float | None = later(None)
    """Scale gradients down to this norm where theirs is larger, as in timm."""
    bce_loss: bool = later(False)
    """Learn by timm's binary cross-entropy, each class for itself."""
    bce_target_thresh: float | None = later(None)
    """bce_loss: classes with more than this share of a mixed label are targets of 1, others of 0;
    if None, the share is the target."""
    model_ema: bool = later(False)
    """Measure and save the exponential moving average of the network's weights, timm's ModelEmaV3
    with its warm-up."""
    model_ema_decay: float = later(0.9998)
    """model_ema: decay of the average with each step."""

    def check(self) -> None:
        """Raises a ValueError if a number is out of its range."""
        check_in(f"(0, {MOST_EPOCHS})", epochs=self.epochs)
        check_in("(0, inf)", lr=self.lr)
        check_in("(0, 1)", momentum=self.momentum)
        check_in("[0, inf)", weight_decay=self.weight_decay)
        milestones = self.decay_milestones
        if min(milestones, default=1) < 1 or list(milestones) != sorted(milestones):
            raise ValueError(
                f"decay_milestones must be epochs in ascending order, got {milestones}"
            )
        check_in(f"[0, {self.epochs})", warmup_epochs=self.warmup_epochs)
        if self.layer_decay is not None:
            check_in("(0, 1]", layer_decay=self.layer_decay)
        if self.clip_grad is not None:
            check_in("(0, inf)", clip_grad=self.clip_grad)
        if self.bce_target_thresh is not None:
            check_in("[0, 1)", bce_target_thresh=self.bce_target_thresh)
            if not self.bce_loss:
                raise ValueError("bce_target_thresh is a setting of bce_loss: set bce_loss=True")
        check_in("(0, 1)", model_ema_decay=self.model_ema_decay)


@dataclass(frozen=True)
class DataConfig:
    """Which images to train and to measure on."""

    dataset: str = "glyphs"
    """glyphs (embedded); folder, for SPLIT/CLASS/ with images at any depth; tar, for SPLIT.tar; or
    what timm calls it: torch/cifar10, torch/cifar100, hfds/..., hfids/..., tfds/..., wds/..."""
    data_dir: str | None = None
    """Where the data set is, or is downloaded to (not for glyphs)."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "validation"
    """Split to measure on; in a folder without one called validation, val, valid or test is taken,
    if there is only one of them."""
    dataset_download: bool = False
    """Let timm download the data set, where it can."""
    name: str | None = None
    """What results and the report call the data set; if None, a folder has its own name, and other
    data sets that in timm."""
    num_classes: int | None = None
    """The number of classes: of the glyphs, so many are taken, else all 100; of other data sets,
    only a stream (wds/..., hfids/..., tfds/...) needs to be told."""
    train_size: int | None = None
    """Train on so many images, the same number of each class, drawn with the run's seed."""
    image_size: int = 32
    """Height and width in pixels."""
    in_chans: Literal[1, 3] = 3
    """Channels that images are converted to: 3 for RGB, 1 for grey."""
    crop_mode: Literal["squash", "center", "border"] = "squash"
    """How an image that is not square becomes square, as in timm: squash resizes both sides and
    shows all of it, center cuts the ends of the longer side off, border pads the shorter side.
    Training starts from the same square with train_crop_mode=pad."""
    crop_pct: float = 1.0
    """Share of the resized image's side that the square takes, as in timm: 0.875 resizes to 256 for
    a square of 224."""
    train_crop_mode: Literal["pad", "rrc", "rkrc", "rkrr"] = "pad"
    """pad: a random crop from the square padded by an eighth (CIFAR's usual); or one of timm's
    random crops of the whole image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """rrc: smallest and largest share of the area that a crop takes, as in timm."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """rrc: smallest and largest width over height of a crop, as in timm."""
    aa: str | None = later(None)
    """timm's AutoAugment, RandAugment or AugMix after the crop, by its name there:
    rand-m9-mstd0.5-inc1, original, 3a, augmix-m3-w3, ..."""
    reprob: float = later(0.0)
    """Probability that timm's RandomErasing fills a part of an image with noise."""
    batch_size: int = 100
    """Images in a batch, of all devices together."""
    workers: int = 0
    """Processes that load data."""
    on_device: bool = False
    """Decode all images once and keep them on the device, which crops and flips them in batches:
    for a data set that fits into its memory."""

    def __post_init__(self) -> None:
        """Expands ``~``."""
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", os.path.expanduser(self.data_dir))

    def check(self) -> None:
        """Raises a ValueError if a number is out of its range, or two settings do not fit."""
        check_at_least(2, num_classes=self.num_classes, batch_size=self.batch_size)
        check_at_least(1, train_size=self.train_size)
        check_at_least(LEAST_GLYPH if self.dataset == "glyphs" else 1, image_size=self.image_size)
        check_at_least(0, workers=self.workers)
        if self.name is not None and not self.name.strip():
            raise ValueError(f"name must be a word or more, got {self.name!r}")
        check_in("(0, 1]", crop_pct=self.crop_pct)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares in (0, 1], ascending, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < inf:
            raise ValueError(f"ratio must be two numbers above 0, ascending, got {self.ratio}")
        check_in("[0, 1]", reprob=self.reprob)
        if self.on_device and self.train_crop_mode != "pad":
            raise ValueError(
                f"on_device=True needs train_crop_mode='pad', got {self.train_crop_mode!r}"
            )
        if self.on_device and self.aa is not None:
            raise ValueError(
                f"aa={self.aa!r} changes PIL images one by one, and on_device=True keeps tensors: "
                "leave one of the two out"
            )


@dataclass(frozen=True)
class MethodConfig(SageSettings):
    """Settings of the mixing methods: SAGE's own, and those that more of them read."""

    alpha: float | None = None
    """Parameter of the Beta distribution; the paper's of each method if None: 2 for manifold, else
    1."""
    label_smoothing: float = 0.0
    """Label smoothing, the same for every method."""
    cutmix_alpha: float | None = later(None)
    """cutmix, mixup-cutmix: CutMix's alpha, where it is another than mixup's."""

    def alpha_or(self, default: float) -> float:
        """Returns alpha, or the method's own default where none is set."""
        return default if self.alpha is None else self.alpha

    def check(self) -> None:
        """Raises a ValueError if a number is out of its range; SAGE's are checked already."""
        if self.alpha is not None:
            check_in("(0, inf)", alpha=self.alpha)
        if self.cutmix_alpha is not None:
            check_in("(0, inf)", cutmix_alpha=self.cutmix_alpha)
        check_in("[0, 1)", label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class OverheadConfig:
    """Every method is measured with every network, batch size and image size."""

    methods: tuple[str, ...] = COMPARED
    """Methods to measure; any that the train command knows."""
    models: tuple[str, ...] = ("preactresnet8_cifar",)
    """Networks, by their name in timm."""
    batch_sizes: tuple[int, ...] = (100,)
    """Images in a batch."""
    image_sizes: tuple[int, ...] = (32,)
    """Heights and widths in pixels."""
    classes: int = 100
    """The number of classes."""
    rounds: int = 60
    """How often each thing is timed; every random draw of a method comes three times."""
    channels_last: bool = False
    """Lay images and weights out with channels last."""
    amp: Amp = "none"
    """Compute in this type where torch's autocast deems it safe; float16 without a scaled loss."""
    compile: bool = False
    """Compile the network's forward and backward pass with torch.compile."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    mixing: MethodConfig = field(default_factory=MethodConfig)


def expanded(path: Path) -> Path:
    """Expands ``~`` in a path, also where the shell has left it: in ``--out=~/runs``."""
    return Path(os.path.expanduser(path))


def check_directory(path: Path) -> None:
    """Raises a ValueError if a folder is not there."""
    if not path.is_dir():
        raise ValueError(f"no such folder: {path}")


def make_directory(path: Path) -> None:
    """Makes a folder to write to; raises a ValueError if it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"out={str(path)!r} cannot be written to: {error.strerror}") from error
