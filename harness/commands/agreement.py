"""``python -m harness agreement``."""

from dataclasses import dataclass
from typing import Literal

from harness.commands.settings import Settings, each_run


@dataclass(frozen=True)
class Agreement(Settings):
    """Measure what cheaper saliency and cheaper searches cost in agreement with the full method.

    Appends one line a variant to OUT/agreement.jsonl, and prints a table; what stands there already
    is skipped. The saliency is that of a network trained by the same settings; it is trained first
    where OUT does not hold it.

    Usage examples:

      python -m harness agreement --epochs 15 --out runs/agreement

      python -m harness agreement --sizes 16 --dtypes bfloat16 --fractions 0.25 0.5 --pairs 2000
    """

    method: str = "none"
    """The method that the network is trained with."""
    seed: int = 0
    """Seed of the network, of the images, of their weights and of the random translations."""
    pairs: int = 1_000
    """The number of pairs, a multiple of the batch size."""
    sizes: tuple[int, ...] = (8, 16, 24)
    """Pixels of the shorter side to which images are shrunk for their saliency."""
    dtypes: tuple[Literal["bfloat16", "float16"], ...] = ("bfloat16", "float16")
    """Types in which autocast computes the saliency."""
    fractions: tuple[float, ...] = (0.5,)
    """Shares of the batch whose saliency is computed."""

    def __call__(self) -> None:
        from harness.measures.agreement import measure_agreement, table, variants
        from harness.runs import in_turn

        runs = each_run(self.run, [self.method], [self.seed])
        listed = variants(runs[0], self.sizes, self.dtypes, self.fractions)
        device = self.begin(runs)
        for run, progress in in_turn(runs, self.out):
            lines = measure_agreement(run, listed, self.out, self.pairs, device, progress)
        print(table(lines))
        print(f"results: {self.out / 'agreement.jsonl'}")
