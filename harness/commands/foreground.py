"""``python -m harness foreground``."""

from dataclasses import dataclass

from harness.settings import Settings, each_run


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

    methods: tuple[str, ...] | None = None
    """Methods to measure; if None, all that are installed, but for manifold, which mixes hidden
    layers and not images."""
    method: str = "none"
    """The method that the network is trained with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the network, of the images and of what the methods draw."""
    pairs: int = 2_000
    """The number of mixes a method, a multiple of 20."""

    def __call__(self) -> None:
        from harness.measures.foreground import (
            check_foreground,
            measurable_methods,
            measure_foreground,
            table,
        )
        from harness.runs import in_turn
        from harness.train import train

        methods = measurable_methods() if self.methods is None else self.methods
        runs = each_run(self.run, [self.method], self.seeds)
        check_foreground(runs[0], methods, self.pairs)
        device = self.begin(runs)
        lines = []
        for run, progress in in_turn(runs, self.out):
            train(run, self.out, device, progress=progress)
            lines += measure_foreground(run, methods, self.out, self.pairs, device)
        print(table(lines))
        print(f"results: {self.out / 'foreground.jsonl'}")
