"""The settings that the commands which train have in common."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from timm.utils.distributed import is_distributed_env, world_info_from_env

from harness.config import Amp, BatchNorm, RunConfig, ScheduleConfig
from harness.data import DataConfig
from harness.methods.base import MethodConfig
from harness.presets import PRESETS


@dataclass(frozen=True)
class Settings:
    """What to train, and where."""

    preset: str | None = None
    """Settings to start from, which the other options change: cifar10-preactresnet18,
    cifar100-preactresnet18, cifar100-wrn16-8 and cifar100-resnext29-4-24 are the paper's, cpu is
    for two cores."""
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
    amp: Amp = "none"
    """Compute in this type where torch's autocast deems it safe."""
    compile: bool = False
    """Compile the network's forward and backward pass with torch.compile."""
    batch_norm: BatchNorm = "clean"
    """Statistics that batch norm is measured with: clean takes them anew from the training images
    without mixing, running takes those of the mixed batches in training."""
    measured_epochs: int = 10
    """Measure the network after each of so many last epochs; a run's figures are their medians (the
    paper: 10)."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ...; under torchrun, each process takes a device of this
    kind."""
    out: Path = Path("runs")
    """Folder for results.jsonl, checkpoints and pictures."""

    def run(self, method: str, seed: int) -> RunConfig:
        devices = world_info_from_env()[2] if is_distributed_env() else 1
        return RunConfig(
            method=method,
            seed=seed,
            model=self.model,
            data=self.data,
            schedule=self.schedule,
            mixing=self.mixing,
            channels_last=self.channels_last,
            amp=self.amp,
            compile=self.compile,
            devices=devices,
            batch_norm=self.batch_norm,
            measured_epochs=self.measured_epochs,
        )


AnySettings = TypeVar("AnySettings", bound=Settings)


def preset_of(command: type[AnySettings]) -> AnySettings:
    """Makes a command's defaults from the preset that the command line names, if it names one.

    Raises:
        ValueError: If there is no such preset.
    """
    name = None
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if argument == "--preset":
            name = following
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
    if name is None:
        return command()
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return command(preset=name, **PRESETS[name])
