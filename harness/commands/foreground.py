"""``python -m harness foreground``."""

from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from harness.commands.settings import Settings
from harness.foreground import measurable_methods, measure_foreground, table
from harness.train import train


@dataclass(frozen=True)
class Foreground(Settings):
    """Measure how much of both images' foregrounds survives in the mix, on glyphs.

    Appends one line a method and seed to OUT/foreground.jsonl, and prints a table; what stands
    there already is skipped. The saliency is that of a network trained by the same settings; it is
    trained first where OUT does not hold it.

    Usage examples:

      python -m harness foreground --epochs 15 --out runs/foreground

      python -m harness foreground --methods mixup cutmix sage --seeds 0 1 2 --pairs 5000
    """

    methods: tuple[str, ...] = field(default_factory=measurable_methods)
    """Methods to measure; by default all that are installed, but for manifold, which mixes hidden
    layers and not images."""
    method: str = "none"
    """The method that the network is trained with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the network, of the images and of what the methods draw."""
    pairs: int = 2_000
    """The number of mixes a method, a multiple of 20."""

    def __call__(self) -> None:
        device = torch.device(self.device)
        lines = []
        for seed in tqdm(self.seeds, desc="seeds", disable=None):
            run = self.run(self.method, seed)
            train(run, self.out, device)
            lines += measure_foreground(run, self.methods, self.out, self.pairs, device)
        print(table(lines))
        print(f"results: {self.out / 'foreground.jsonl'}")
