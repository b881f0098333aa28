"""The arithmetic of the report: means, their spread, and differences seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

_CONFIDENCE = 0.95


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
    """Mean of paired differences, with a 95 % interval where there are two pairs or more."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int
    """The number of seeds, or of episodes."""

    @classmethod
    def of(cls, own: Mapping[int, float], other: Mapping[int, float]) -> "Difference | None":
        """Takes the differences of the seeds that both have; None if there is no such seed.

        Two runs of a seed share their training images and their initial weights, so that the
        differences spread less than the runs do. The interval is that of Student's t over them.
        """
        seeds = sorted(own.keys() & other.keys())
        spread = Spread.of([own[seed] - other[seed] for seed in seeds])
        return None if spread is None else cls._of(spread, len(seeds))

    @classmethod
    def of_episodes(cls, own: NDArray[np.float64], other: NDArray[np.float64]) -> "Difference":
        """Takes the differences of two rows ``[episodes]``, with Student's interval over them."""
        differences = own - other
        deviation = float(differences.std(ddof=1)) if len(differences) > 1 else None
        return cls._of(Spread(float(differences.mean()), deviation), len(differences))

    @classmethod
    def _of(cls, spread: Spread, pairs: int) -> "Difference":
        if spread.deviation is None:
            return cls(spread.mean, None, pairs)
        half = student.ppf((1 + _CONFIDENCE) / 2, pairs - 1) * spread.deviation
        half = float(half) / math.sqrt(pairs)
        return cls(spread.mean, (spread.mean - half, spread.mean + half), pairs)

    def text(self) -> str:
        """Writes it as difference (low to high), in points."""
        if self.interval is None:
            return f"{self.mean:+.2f}"
        low, high = self.interval
        return f"{self.mean:+.2f} ({low:+.2f} to {high:+.2f})"
