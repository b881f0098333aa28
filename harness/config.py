"""All settings of a run: what decides its result, and what names it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

MOST_EPOCHS = 100_000
Amp = Literal["none", "bfloat16", "float16"]
BatchNorm = Literal["clean", "running"]


@dataclass(frozen=True)
class ScheduleConfig:
    """The optimiser and its schedule, the same for every method."""

    epochs: int = 30
    """Passes over the training images."""
    lr: float = 0.1
    """Initial learning rate."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    sched: Literal["cosine", "multistep", "constant"] = "cosine"
    """timm's scheduler."""
    decay_milestones: tuple[int, ...] = (100, 200)
    """multistep: epochs at which the learning rate falls to a tenth."""


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
    batch_size: int = 100
    """Images in a batch, of all devices together."""
    workers: int = 0
    """Processes that load data."""
    on_device: bool = False
    """Decode all images once and keep them on the device, which crops and flips them in batches:
    for a data set that fits into its memory."""

    def __post_init__(self) -> None:
        """Checks what cannot go together.

        Raises:
            ValueError: If images that are kept on the device are to be cropped by timm.
        """
        if self.on_device and self.train_crop_mode != "pad":
            raise ValueError(
                f"on_device=True needs train_crop_mode='pad', got {self.train_crop_mode!r}"
            )


@dataclass(frozen=True)
class MethodConfig:
    """Settings of the mixing methods; each method reads those that concern it."""

    alpha: float | None = None
    """Parameter of the Beta distribution; the paper's of each method if None: 2 for manifold, else
    1."""
    label_smoothing: float = 0.0
    """Label smoothing, the same for every method."""
    lambda_max: float = 0.5
    """sage: the largest weight of an image's own saliency (the paper: 0.5 to 0.7)."""
    update_ratio: float = 1.0
    """sage: rho, the share of the mixed loss in the step (the paper: 0.5 to 0.7)."""
    saliency_size: int | None = None
    """sage: pixels of the shorter side to which images are shrunk for their saliency."""
    saliency_dtype: Literal["float16", "bfloat16"] | None = None
    """sage: the type in which autocast computes the saliency; as the step does if None."""
    saliency_fraction: float = 1.0
    """sage: the share of each batch that it mixes; the rest gets plain mixup."""
    search: Literal["all", "random", "none"] = "all"
    """sage: which translations to choose from."""
    search_fraction: float = 0.01
    """sage: the share of all translations that search=random looks at."""

    def alpha_or(self, default: float) -> float:
        """Returns alpha, or the method's own default where none is set."""
        return default if self.alpha is None else self.alpha


@dataclass(frozen=True)
class RunConfig:
    """All that decides one run's result, but for the machine."""

    method: str
    seed: int
    model: str = "preactresnet8_cifar"
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    mixing: MethodConfig = field(default_factory=MethodConfig)
    channels_last: bool = False
    amp: Amp = "none"
    compile: bool = False
    devices: int = 1
    batch_norm: BatchNorm = "clean"
    measured_epochs: int = 10

    PARTS: ClassVar[dict[str, type]] = {
        "data": DataConfig,
        "schedule": ScheduleConfig,
        "mixing": MethodConfig,
    }
    BEFORE: ClassVar[dict[str, Any]] = {"batch_norm": "running"}
    """What runs were trained with before there was a setting, where that is not its default."""
    PLACE: ClassVar[tuple[str, ...]] = ("data_dir", "dataset_download")
    """Settings of the data that say where they are, not what they are."""

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        # Not at the top: these import torch, for which --help would have to wait.
        import timm

        import harness.models  # noqa: F401  (registers the networks with timm)
        from harness.methods import METHODS, REQUIRES
        from harness.methods.base import needs

        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method in REQUIRES:
            needs(REQUIRES[self.method], self.method)
        if not 0 < self.schedule.epochs < MOST_EPOCHS:
            raise ValueError(f"epochs must be in (0, {MOST_EPOCHS}), got {self.schedule.epochs}")
        if self.measured_epochs < 1:
            raise ValueError(f"measured_epochs must be at least 1, got {self.measured_epochs}")
        each, rest = divmod(self.data.batch_size, self.devices)
        if each < 2 or each % 2 or rest:
            raise ValueError(
                f"batch_size must be even on each of {self.devices} device(s), since timm's Mixup "
                f"mixes pairs, got {self.data.batch_size}"
            )
        if self.compile and self.method == "manifold":
            raise ValueError(
                "manifold draws the layer that it mixes at for each batch, which compile=True "
                "would fix: train it without compile"
            )
        if not timm.is_model(self.model):
            raise ValueError(f"model must be one that timm.list_models() knows, got {self.model!r}")

    def identity(self) -> dict[str, Any]:
        """The settings as JSON: a fingerprint of the images stands for where they are.

        Raises:
            ValueError: If the data set cannot be opened.
        """
        from harness.data import fingerprint

        settings = asdict(self)
        for name in self.PLACE:
            del settings["data"][name]
        settings["data"]["fingerprint"] = fingerprint(self.data)
        identity: dict[str, Any] = json.loads(json.dumps(settings))
        return identity

    @classmethod
    def from_identity(cls, identity: dict[str, Any], data_dir: str | None = None) -> "RunConfig":
        """Makes the settings of a run from the ``config`` of its line in ``results.jsonl``.

        Args:
            identity: What :meth:`identity` gave.
            data_dir: Where the data set is on this machine.

        Raises:
            ValueError: If a setting is unknown here, or does not fit.
        """
        values = dict(identity)
        for name, part in cls.PARTS.items():
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()}
            if name == "data":
                settings.pop("fingerprint", None)
                settings["data_dir"] = data_dir
            values[name] = _made(part, settings, f"config[{name!r}]")
        made: RunConfig = _made(cls, values, "config")
        return made

    def name(self) -> str:
        """A file name of its own for each identity."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return f"{self.method}-seed{self.seed}-{digest[:10]}"


def _made(kind: type, settings: dict[str, Any], name: str) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{name} was written by another version or command: {error}") from error
