"""``python -m harness overhead``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from harness.config import MethodConfig, OverheadConfig, expanded


@dataclass(frozen=True)
class Overhead(OverheadConfig):
    r"""Measure what a training step costs with each method, as a ratio to a step without mixing.

    Also the mixing alone, for SAGE apart from its saliency pass, and the peak memory. Writes
    OUT/overhead.json, which pytest-benchmark compare reads. A method that fails leaves the others
    measured; the exit code is 1 then.

    Usage examples:

      python -m harness overhead --methods none mixup cutmix puzzlemix sage

      python -m harness overhead --models preactresnet18_cifar resnet50 --batch-sizes 128 256 \
        --image-sizes 32 64 --channels-last --device cuda

      pytest-benchmark compare runs/overhead.json other/overhead.json
    """

    mixing: Annotated[MethodConfig, tyro.conf.arg(name="")] = field(default_factory=MethodConfig)
    out: Path = Path("runs")
    """Folder for overhead.json."""

    GOES_ON: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Expands ``~``."""
        object.__setattr__(self, "out", expanded(self.out))

    def __call__(self) -> None:
        from harness.measures.overhead import MEASUREMENT, benchmarks, measure_overhead

        outcome = measure_overhead(self, self.out)
        if outcome.written:
            path = self.out / "overhead.json"
            print(*(t.text() for t in MEASUREMENT.tables(benchmarks(path))), sep="\n\n")
            print(f"results: {path}")
        if not outcome.all_passed:
            sys.exit(1)
