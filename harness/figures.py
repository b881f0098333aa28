"""Figures as text: numbers, intervals and Markdown tables."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

NO_VALUE = "-"
CONFIDENCE = 0.95

_SPECIAL = re.compile(r"[\\`*~|\[\]]|(?<!\w)_|_(?!\w)")  # within a word, _ stands for itself


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a table, a line a row.

    Args:
        header: The columns' names.
        rows: Cells, as Markdown: a text that may hold markup of its own goes through
            :func:`escaped` first.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Takes from a text what Markdown or HTML would read as markup, and its line breaks."""
    text = html.escape(" ".join(text.split()), quote=False)
    return _SPECIAL.sub(r"\\\g<0>", text)


def is_number(value: Any) -> bool:
    """Tells a finite number from one that is not finite, or null in a file of results."""
    return isinstance(value, int | float) and math.isfinite(value)


def figure(value: Any, digits: int) -> str:
    """Writes a number; a dash stands for one that is missing or not finite."""
    return f"{value:.{digits}f}" if is_number(value) else NO_VALUE


def half_width(standard_error: float, count: int) -> float:
    """Returns half of the width of Student's 95 % interval of a mean.

    Args:
        standard_error: Of the mean, in any unit.
        count: The number of independent values that the mean is over, two or more.
    """
    from scipy.stats import t as student  # slow to import, and --help must not wait for it

    return float(student.ppf((1 + CONFIDENCE) / 2, count - 1) * standard_error)
