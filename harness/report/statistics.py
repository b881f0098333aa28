"""The arithmetic of the report: means, their spread, and differences seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import ttest_rel

CONFIDENCE = 0.95
LEAST_SEEDS = 3
"""Fewer rank nothing."""
_ROUNDING = 1e-9  # of figures in percent or nats; differences that are closer are the same


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some runs; the latter is None for one run."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Takes a spread; None of no values, and not a number where one of them is not finite."""
        if not values:
            return None
        if not all(map(math.isfinite, values)):
            return cls(math.nan, None)
        return cls(mean(values), stdev(values) if len(values) > 1 else None)

    def scaled(self, factor: float) -> "Spread":
        """Gives it in another unit."""
        deviation = None if self.deviation is None else factor * self.deviation
        return Spread(factor * self.mean, deviation)

    def text(self, digits: int = 2) -> str:
        """Writes it as mean ± deviation."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{deviation}"


@dataclass(frozen=True)
class Difference:
    """Mean of the differences seed by seed, with Student's 95 % interval where they spread."""

    mean: float
    seeds: int
    interval: tuple[float, float] | None = None
    p_value: float = 1.0
    """How often chance alone brings a difference as large as this, of that spread."""

    @classmethod
    def of(cls, own: Mapping[int, float], other: Mapping[int, float]) -> "Difference | None":
        """Takes the differences of the seeds that both have; None if there is no such seed.

        Two runs of a seed share their training images and their initial weights, so that the
        differences spread less than the runs do.
        """
        seeds = sorted(own.keys() & other.keys())
        apart = [own[seed] - other[seed] for seed in seeds]
        if not apart:
            return None
        if max(apart) - min(apart) < _ROUNDING:  # of one seed, too: no spread, no interval
            return cls(mean(apart), len(apart))
        test = ttest_rel(*([values[seed] for seed in seeds] for values in (own, other)))
        low, high = test.confidence_interval(CONFIDENCE)
        return cls(mean(apart), len(apart), (float(low), float(high)), float(test.pvalue))

    @property
    def ranks(self) -> bool:
        """Whether it may say which of two methods is ahead."""
        return self.interval is not None and self.seeds >= LEAST_SEEDS

    def text(self) -> str:
        """Writes it as difference (low to high), in points."""
        if self.interval is None:
            return f"{self.mean:+.2f}"
        low, high = self.interval
        return f"{self.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects the p-values of several comparisons (Holm, 1979).

    The chance that any of the comparisons comes out below 5 % by chance alone is then 5 % at most,
    however they depend on each other. The least p-value is multiplied by their number, the next by
    one less, and so on; none may come out below one before it.
    """
    corrected = [1.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
