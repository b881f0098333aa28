"""``python -m harness dynamics``."""

from dataclasses import dataclass
from typing import Any

from harness.commands.settings import Settings, each_run


@dataclass(frozen=True)
class Dynamics(Settings):
    """Follow SAGE's saliency, shifts, masks and label weights over the course of trainings.

    Trains each method with each seed, and after some epochs measures how SAGE would mix the
    training images by the network's saliency. Appends one line an epoch to OUT/dynamics.jsonl,
    draws some mixes of each, OUT/mixes-METHOD-seedN-epochE.png, and prints a table of means over
    the seeds. What stands there already is skipped, and a run that was cut off goes on.

    Usage examples:

      python -m harness dynamics --epochs 15 --measured 1 5 15 --out runs/dynamics
    """

    methods: tuple[str, ...] = ("sage",)
    """Methods to train with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""
    measured: tuple[int, ...] = (1, 10, 30)
    """Epochs after which to measure."""
    images: int = 500
    """The number of training images to mix, a multiple of the batch size."""

    def __call__(self) -> None:
        from harness.measures.dynamics import follow, table
        from harness.runs import in_turn

        runs = each_run(self.run, self.methods, self.seeds)
        device = self.begin(runs)
        lines: list[dict[str, Any]] = []
        for run, progress in in_turn(runs, self.out):
            lines += follow(run, self.measured, self.out, self.images, device, progress)
        print(table(lines))
        print(f"results: {self.out / 'dynamics.jsonl'}")
