"""The settings that the commands which train have in common."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.config import RunConfig, ScheduleConfig
from harness.data import DataConfig
from harness.methods.base import MethodConfig


@dataclass(frozen=True)
class Settings:
    """What to train, and where."""

    model: str = "preactresnet8_cifar"
    """Any network that timm knows; of the harness's own: preactresnet8_cifar (small),
    preactresnet18_cifar, wrn16_8_cifar, resnext29_4_24_cifar."""
    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    schedule: Annotated[ScheduleConfig, tyro.conf.arg(name="")] = field(
        default_factory=ScheduleConfig
    )
    mixing: Annotated[MethodConfig, tyro.conf.arg(name="")] = field(default_factory=MethodConfig)
    channels_last: bool = False
    """Lay images and weights out with channels last."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    out: Path = Path("runs")
    """Folder for results.jsonl, checkpoints and pictures."""

    def run(self, method: str, seed: int) -> RunConfig:
        return RunConfig(
            method, seed, self.model, self.data, self.schedule, self.mixing, self.channels_last
        )
