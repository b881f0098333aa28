"""How a method looks in every plot: its colour, line and marker."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.methods import METHODS

# Plots have no ground of their own, so that they stand on a white page and on a dark one. Every
# colour has a contrast of 3 or more to both (the ink 4), and they stay apart for protanopes,
# deuteranopes and tritanopes (CIELAB distance of 26 or more, after Machado et al., 2009).
GROUNDS = ("#ffffff", "#16191d")
"""The page's, in light and in dark."""
INK = "#7a7a7a"
SAGE = "#d55e00"
OTHERS = (INK, "#3c78a5", "#872dff", "#c369ff", "#a55a3c")
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
}
"""Matplotlib's."""
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>pdh*"


@dataclass(frozen=True)
class Style:
    """How one method is drawn; no two methods of a report are drawn alike."""

    colour: str
    line: str
    marker: str
    width: float

    def lines(self) -> dict[str, Any]:
        """Matplotlib's keywords for a line."""
        return {
            "color": self.colour,
            "linestyle": self.line,
            "linewidth": self.width,
            "marker": self.marker,
            "markersize": 8 if self.marker == "*" else 5,
        }


def styles(labels: Collection[str]) -> dict[str, Style]:
    """Gives each method a style; a method of the registry has the same in every report."""
    others = [name for name in METHODS if name != "sage"]
    others += sorted(label for label in labels if label not in METHODS and not _is_sage(label))
    count = len(OTHERS)
    found = {
        label: Style(
            OTHERS[index % count], _LINES[index // count % 4], _MARKERS[index % len(_MARKERS)], 1.3
        )
        for index, label in enumerate(others)
    }
    for index, label in enumerate(sorted(filter(_is_sage, labels))):
        found[label] = Style(SAGE, _LINES[index % 4], _MARKERS[-1 - index % len(_MARKERS)], 2.0)
    return found


def _is_sage(label: str) -> bool:
    return label == "sage" or label.startswith("sage,")
