"""The options that several commands share, and presets for them."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import tyro

from harness.config import Amp, BatchNorm, DataConfig, MethodConfig, ScheduleConfig, expanded

if TYPE_CHECKING:
    import torch

    from harness.run_config import RunConfig
    from harness.train import Progress

_PAPERS_SCHEDULE = ScheduleConfig(
    epochs=300, lr=0.2, weight_decay=1e-4, sched="multistep", decay_milestones=(100, 200)
)


def _papers(dataset: str, model: str, lambda_max: float, update_ratio: float) -> dict[str, Any]:
    return {
        "model": model,
        "data": DataConfig(dataset=f"torch/{dataset}", batch_size=100),
        "schedule": _PAPERS_SCHEDULE,
        "mixing": MethodConfig(lambda_max=lambda_max, update_ratio=update_ratio, search="random"),
    }


PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-preactresnet18": _papers("cifar10", "preactresnet18_cifar", 0.6, 0.7),
    "cifar100-preactresnet18": _papers("cifar100", "preactresnet18_cifar", 0.5, 0.7),
    "cifar100-wrn16-8": _papers("cifar100", "wrn16_8_cifar", 0.7, 0.5),
    "cifar100-resnext29-4-24": _papers("cifar100", "resnext29_4_24_cifar", 0.7, 0.5),
    "cpu": {
        "model": "preactresnet8_cifar",
        "data": DataConfig(dataset="torch/cifar10", train_size=1000),
        "schedule": ScheduleConfig(epochs=160),
        "channels_last": True,
    },
    "finetune": {
        "model": "resnet50",
        "pretrained": True,
        "drop_path": 0.1,
        "data": DataConfig(
            dataset="folder",
            image_size=224,
            crop_mode="center",
            crop_pct=0.95,
            train_crop_mode="rrc",
            scale=(0.35, 1.0),
            batch_size=64,
        ),
        "schedule": ScheduleConfig(
            epochs=40, opt="adamw", lr=5e-4, weight_decay=0.05, warmup_epochs=5
        ),
    },
    "timm-a3": {
        "model": "resnet50",
        "data": DataConfig(
            dataset="folder",
            image_size=160,
            crop_mode="center",
            crop_pct=0.95,
            train_crop_mode="rrc",
            aa="rand-m6-mstd0.5-inc1",
            batch_size=2048,
        ),
        "schedule": ScheduleConfig(
            epochs=100,
            opt="lamb",
            lr=8e-3,
            weight_decay=0.02,
            warmup_epochs=5,
            bce_loss=True,
            bce_target_thresh=0.2,
        ),
        "mixing": MethodConfig(alpha=0.1, cutmix_alpha=1.0),
    },
}
"""Defaults for ``Settings``, by the preset's name.

The first four are the paper's (Ma et al., BMVC 2022, and the authors' public implementation): 300
epochs of SGD with Nesterov momentum, learning rate 0.2 and a tenth of it from epochs 100 and 200
on, weight decay 1e-4, batches of 100, and each network's largest weight and update ratio. ``cpu``
trains a small network on 1,000 images of CIFAR-10 until it fits them: some ten minutes a run.

``finetune`` starts from published weights. AdamW, its learning rate and weight decay, cosine with
five epochs of warm-up and the drop path are DeiT's (Touvron et al., ICML 2021); the length, the
batch and the milder crops are this project's. ``timm-a3`` is procedure A3 of Wightman, Touvron and
Jégou (ResNet strikes back, 2021), whose binary targets are timm's with a threshold of 0.2.
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its fields are its options, and a call runs it."""

    modules: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules of one's own, in the current folder or installed, that register methods, networks or
    data sets."""

    GOES_ON: ClassVar[bool] = True
    """Whether an interrupted command goes on where it was when it is started again."""

    def __call__(self) -> None:
        """Runs the command."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        """Expands ``~`` in paths, also where the shell has left it: in ``--out=~/runs``."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Path):
                object.__setattr__(self, name, expanded(value))
            elif isinstance(value, tuple) and value and isinstance(value[0], Path):
                object.__setattr__(self, name, tuple(map(expanded, value)))


@dataclass(frozen=True)
class Settings(Command):
    """What to train, and where."""

    preset: str | None = None
    """Settings to start from, which the other options change: cifar10-preactresnet18,
    cifar100-preactresnet18, cifar100-wrn16-8 and cifar100-resnext29-4-24 are the paper's, cpu is
    for two cores, finetune for pretrained networks, timm-a3 for ImageNet from scratch."""
    model: str = "preactresnet8_cifar"
    """Any network that timm knows; of the harness's own: preactresnet8_cifar (small),
    preactresnet18_cifar, wrn16_8_cifar, resnext29_4_24_cifar."""
    pretrained: bool = False
    """Start from the network's published weights, which timm downloads."""
    initial_checkpoint: Path | None = None
    """Start from the weights in this file, in the place of published ones: a state_dict, or a
    checkpoint of timm's or of this command's. A head of another size is left out."""
    initial_weights: str = ""
    """The digest of those weights, as in results.jsonl: names a run that is trained already, where
    they are not at hand."""
    drop_path: float | None = None
    """Stochastic depth, as in timm: the probability that a step leaves out the deepest block."""
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

    def run(self, method: str, seed: int) -> "RunConfig":
        """Makes the settings of one run."""
        from timm.utils.distributed import is_distributed_env, world_info_from_env

        from harness.run_config import RunConfig

        shared = {option.name for option in fields(Settings)} & {
            option.name for option in fields(RunConfig)
        }
        return RunConfig(
            method=method,
            seed=seed,
            devices=world_info_from_env()[2] if is_distributed_env() else 1,
            **{name: getattr(self, name) for name in shared},
        )

    def begin(self, runs: Sequence["RunConfig"]) -> "torch.device":
        """Checks what can be known before the first run, and finds the device."""
        from timm.utils.distributed import is_distributed_env, world_info_from_env

        from harness.device import open_device
        from harness.runs import check_runs

        local = f":{world_info_from_env()[0]}" if is_distributed_env() else ""
        device = open_device(self.device + (local if self.device == "cuda" else ""))
        check_runs(runs, self.out)
        return device

    def in_turn(
        self, methods: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[tuple["RunConfig", "torch.device", "Progress"]]:
        """Gives each run with its device while no other process is at it."""
        from harness.runs import in_turn

        runs = each_run(self.run, methods, seeds)
        device = self.begin(runs)
        for run, progress in in_turn(runs, self.out):
            yield run, device, progress


Run = TypeVar("Run", bound="RunConfig")
AnySettings = TypeVar("AnySettings", bound=Settings)


def each_run(
    make: Callable[[str, int], Run], methods: Sequence[str], seeds: Sequence[int]
) -> list[Run]:
    """Makes the runs of all methods and seeds, at least one, and none of them twice."""
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must name at least one, got none")
    return list(dict.fromkeys(make(method, seed) for seed in seeds for method in methods))


def preset_of(command: type[AnySettings]) -> AnySettings:
    """Makes a command's defaults from the preset that the command line names, if it names one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", const="")
    name = parser.parse_known_args()[0].preset
    if name is None:
        return command()
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return command(preset=name, **PRESETS[name])
