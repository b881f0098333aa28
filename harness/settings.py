"""The settings that the commands which train have in common."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from harness.config import (
    Amp,
    BatchNorm,
    DataConfig,
    MethodConfig,
    RunConfig,
    ScheduleConfig,
    expanded,
)
from harness.presets import PRESETS

if TYPE_CHECKING:
    import torch


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

    def __post_init__(self) -> None:
        """Expands ``~``."""
        object.__setattr__(self, "out", expanded(self.out))

    def run(self, method: str, seed: int) -> RunConfig:
        """Makes the settings of one run."""
        from timm.utils.distributed import is_distributed_env, world_info_from_env

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

    def begin(self, runs: Sequence[RunConfig]) -> "torch.device":
        """Checks what can be known before the first run, and finds the device.

        Raises:
            ValueError: If it is not there, or a run cannot be trained.
        """
        from timm.utils.distributed import is_distributed_env, world_info_from_env

        from harness.device import open_device
        from harness.runs import check_runs

        local = f":{world_info_from_env()[0]}" if is_distributed_env() else ""
        device = open_device(self.device + (local if self.device == "cuda" else ""))
        check_runs(runs, self.out)
        return device


Run = TypeVar("Run", bound=RunConfig)


def each_run(
    make: Callable[[str, int], Run], methods: Sequence[str], seeds: Sequence[int]
) -> list[Run]:
    """Makes the runs of all methods and seeds, none of them twice.

    Raises:
        ValueError: If there is none.
    """
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must name at least one, got none")
    return list(dict.fromkeys(make(method, seed) for seed in seeds for method in methods))


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
