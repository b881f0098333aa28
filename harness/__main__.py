"""``python -m harness``: trains, and shows."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from harness.data import DataConfig
from harness.gallery import draw_gallery
from harness.methods.base import MethodConfig
from harness.report import tables
from harness.results import read_results
from harness.train import RunConfig, ScheduleConfig, train


@dataclass(frozen=True)
class _Settings:
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


@dataclass(frozen=True)
class Train(_Settings):
    r"""Train every method with every seed, and append one line a run to OUT/results.jsonl.

    A run that stands there already is skipped, and one that was cut off goes on from its last
    epoch.

    Usage examples:

      python -m harness train --methods none mixup cutmix sage --epochs 10

      python -m harness train --dataset torch/cifar10 --data-dir DIR --dataset-download \
        --model preactresnet18_cifar --epochs 300 --lr 0.2 --weight-decay 1e-4 --sched multistep \
        --methods sage --lambda-max 0.6 --update-ratio 0.7 --device cuda

      python -m harness train --dataset folder --data-dir DIR --val-split test --train-size 1000
    """

    methods: tuple[str, ...] = ("none", "mixup", "cutmix", "sage")
    """Methods to train with; there are also mixup-cutmix, manifold, saliencymix, puzzlemix, and
    sage-no-rearrangement, sage-random-translation, sage-eval-saliency."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""

    def __call__(self) -> None:
        runs = [self.run(method, seed) for seed in self.seeds for method in self.methods]
        for run in tqdm(runs, desc="runs", disable=None):
            line = train(run, self.out, torch.device(self.device))
            tqdm.write(
                f"{line['method']:>8}  seed {line['seed']}  top-1 {line['top1']:5.2f} %  "
                f"step {line['step_ms']:.1f} ms"
            )
        tqdm.write(f"results: {self.out / 'results.jsonl'}")


@dataclass(frozen=True)
class Gallery(_Settings):
    """Draw OUT/gallery.png: pairs of images, their saliency, SAGE's mask, and every method's mix.

    The saliency is that of a network trained by the same settings; it is trained first where OUT
    does not hold it.

    Usage examples:

      python -m harness gallery --epochs 15 --out runs/gallery

      python -m harness gallery --image-size 64 --pairs 8
    """

    method: str = "none"
    """The method that the network is trained with."""
    seed: int = 0
    """The run's seed; also draws the pairs."""
    pairs: int = 6
    """Rows of the picture."""

    def __call__(self) -> None:
        run, device = self.run(self.method, self.seed), torch.device(self.device)
        train(run, self.out, device)
        print(f"picture: {draw_gallery(run, self.out, self.pairs, device)}")


@dataclass(frozen=True)
class Report:
    """Print Markdown tables of the runs in DIR/results.jsonl: means and spread over the seeds.

    Usage examples:

      python -m harness report runs
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl."""

    def __call__(self) -> None:
        path = self.directory / "results.jsonl"
        results = read_results(path)
        if not results:
            raise ValueError(f"no results in {path}")
        print(tables(results))


def main() -> None:
    """Runs one command; bad input ends with one line and exit code 2."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"train": Train, "report": Report, "gallery": Gallery}, prog="python -m harness"
    )
    try:
        command()
    except (ValueError, ImportError) as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
