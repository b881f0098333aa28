"""Settings of one run: they decide its result, and name it."""

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
from timm.optim import list_optimizers
from torch import nn

from harness.config import (
    MOST_EPOCHS,
    RANK_APART,
    Amp,
    BatchNorm,
    DataConfig,
    MethodConfig,
    ScheduleConfig,
    check_at_least,
    check_in,
    later,
)
from harness.data import fingerprint
from harness.loader import check_augmentation
from harness.methods import METHODS, REQUIRES, kind_of, needs
from harness.models import create_network
from harness.weights import InitialWeights

_SEEDS = 2**32  # NumPy's


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
    pretrained: bool = False
    initial_checkpoint: Path | None = None
    initial_weights: str = later("")
    drop_path: float | None = later(None)

    PARTS: ClassVar[dict[str, type]] = {
        "data": DataConfig,
        "schedule": ScheduleConfig,
        "mixing": MethodConfig,
    }
    BEFORE: ClassVar[dict[str, Any]] = {"batch_norm": "running"}
    """What runs were trained with before there was a setting, where that is not its default."""
    PLACE: ClassVar[tuple[str, ...]] = ("data_dir", "dataset_download", "name")
    """Settings of the data that say where they are and what they are called, not what they are."""
    SOURCE: ClassVar[tuple[str, ...]] = ("pretrained", "initial_checkpoint")
    """Settings that say where ``initial_weights``, a digest, are from."""

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is loaded."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method in REQUIRES:
            needs(REQUIRES[self.method], self.method)
        # Each epoch of each process has a seed of its own, made of the run's.
        most = (_SEEDS - RANK_APART * self.devices) // MOST_EPOCHS - 1
        check_in(f"[0, {most}]", seed=self.seed)
        for part in (self.data, self.schedule, self.mixing):
            part.check()
        check_at_least(1, measured_epochs=self.measured_epochs)
        each, rest = divmod(self.data.batch_size, self.devices)
        if each < 2 or each % 2 or rest:
            raise ValueError(
                f"batch_size must be even on each of {self.devices} device(s), since timm's Mixup "
                f"mixes pairs, got {self.data.batch_size}"
            )
        if self.compile and kind_of(self.method) == "hidden":
            raise ValueError(
                f"{self.method} reaches into hidden layers anew for each batch, which compile=True "
                "would fix: train it without compile"
            )
        if not timm.is_model(self.model):
            raise ValueError(f"model must be one that timm.list_models() knows, got {self.model!r}")
        if self.drop_path is not None:
            check_in("(0, 1)", drop_path=self.drop_path)
        if self.schedule.opt.removeprefix("lookahead_") not in list_optimizers():
            raise ValueError(
                "opt must be one that timm.optim.list_optimizers() knows, got "
                f"{self.schedule.opt!r}"
            )
        check_augmentation(self.data)
        self._find_weights()

    def _find_weights(self) -> None:
        """Notes the digest of the weights to start from, where their source is named."""
        weights = self._weights()
        if weights is None:
            return
        if self.initial_weights not in ("", weights.digest):
            raise ValueError(
                f"initial_weights={self.initial_weights!r} are not those of {weights.source}, "
                f"which are {weights.digest!r}"
            )
        object.__setattr__(self, "initial_weights", weights.digest)

    def _weights(self) -> InitialWeights | None:
        """Finds the weights to start from; None if no source is named."""
        if self.initial_checkpoint is not None:
            return InitialWeights.from_file(self.initial_checkpoint)
        return InitialWeights.from_timm(self.model) if self.pretrained else None

    def make_network(self, classes: int) -> nn.Module:
        """Makes the run's network, without its initial weights."""
        data = self.data
        return create_network(self.model, classes, data.image_size, data.in_chans, self.drop_path)

    def load_initial_weights(self, network: nn.Module) -> None:
        """Loads the weights to start from into the run's network, if it starts from any.

        Raises a ValueError if they do not fit, or if only their digest is known.
        """
        weights = self._weights()
        if weights is not None:
            weights.load_into(network)
        elif self.initial_weights:
            raise ValueError(
                f"initial_weights={self.initial_weights!r} name a run that is trained already: to "
                "train it, give their initial_checkpoint, or pretrained=True"
            )

    @property
    def least_images(self) -> int:
        """Number of training images below which there is no epoch."""
        return self.data.batch_size

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON, less those that came later and have their default.

        A fingerprint of the images stands for where they are, and a digest of the initial weights
        for theirs.
        """
        settings = _told(self)
        for name in self.PLACE:
            settings["data"].pop(name, None)
        for name in self.SOURCE:
            del settings[name]
        settings["data"]["fingerprint"] = fingerprint(self.data)
        identity: dict[str, Any] = json.loads(json.dumps(settings))
        return identity

    @classmethod
    def from_identity(cls, identity: dict[str, Any], data_dir: str | None = None) -> "RunConfig":
        """Makes the settings of a run from the ``config`` of its line in ``results.jsonl``.

        Raises a ValueError if a setting is unknown here, or does not fit.

        Args:
            identity: What ``identity`` gave.
            data_dir: Where the data set is on this machine.
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
        """Makes a file name of the run's identity."""
        identity = self.identity()
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.method}-seed{self.seed}-{digest[:10]}"


def _told(config: Any) -> dict[str, Any]:
    """Gives settings, and those of their parts, less what came later and has its default."""
    values = {setting: getattr(config, setting.name) for setting in fields(config)}
    return {
        setting.name: _told(value) if is_dataclass(value) else value
        for setting, value in values.items()
        if "later" not in setting.metadata or value != setting.default
    }


def _made(kind: type, settings: dict[str, Any], name: str) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{name} was written by another version or command: {error}") from error
