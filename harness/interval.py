"""The 95 % interval of a mean, wherever one is shown."""

from scipy.stats import t as student

_CONFIDENCE = 0.95


def half_width(standard_error: float, count: int) -> float:
    """Returns half of the width of Student's 95 % interval of a mean.

    Args:
        standard_error: Of the mean, in any unit.
        count: The number of independent values that the mean is over, two or more.
    """
    return float(student.ppf((1 + _CONFIDENCE) / 2, count - 1) * standard_error)
