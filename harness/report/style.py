"""How a method looks in every plot: its colour, line and marker, in light and in dark."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.methods import METHODS


@dataclass(frozen=True)
class Theme:
    """The colours of a scheme: one for SAGE, some for the others, and matplotlib's own."""

    name: str
    sage: str
    others: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How one method is drawn; no two methods of a report are drawn alike."""

    colour: int | None
    """Index into the theme's colours, None for SAGE's."""
    line: str
    marker: str
    width: float

    def lines(self, theme: Theme) -> dict[str, Any]:
        """Matplotlib's keywords for a line."""
        return {
            "color": theme.sage if self.colour is None else theme.others[self.colour],
            "linestyle": self.line,
            "linewidth": self.width,
            "marker": self.marker,
            "markersize": 8 if self.marker == "*" else 5,
        }


def _theme(
    name: str, ground: str, ink: str, grid: str, sage: str, others: tuple[str, ...]
) -> Theme:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor", "legend.facecolor")
    settings = {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(grounds, ground),
        "grid.color": grid,
        "legend.frameon": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "legend.fontsize": 8.5,
        "text.parse_math": False,
    }
    return Theme(name, sage, others, settings)


# Colours that stay apart for protanopes, deuteranopes and tritanopes (CIELAB distance of 26 or more
# in light, 19 in dark, after Machado et al., 2009), with a contrast to the ground of 3 or more.
LIGHT = _theme(
    "light",
    "#ffffff",
    "#222222",
    "#dddddd",
    "#d55e00",
    ("#222222", "#0072b2", "#8a2be2", "#d4709a", "#703610"),
)
DARK = _theme(
    "dark",
    "#16191d",
    "#e6e6e6",
    "#3a3f45",
    "#f0742a",
    ("#e6e6e6", "#3d9fd8", "#8f55f0", "#e88fb4", "#a06a45"),
)
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>pdh*"


def styles(labels: Collection[str]) -> dict[str, Style]:
    """Gives each method a style; a method of the registry has the same in every report."""
    others = [name for name in METHODS if name != "sage"]
    others += sorted(label for label in labels if label not in METHODS and not _is_sage(label))
    count = len(LIGHT.others)
    found = {
        label: Style(
            index % count, _LINES[index // count % 4], _MARKERS[index % len(_MARKERS)], 1.3
        )
        for index, label in enumerate(others)
    }
    for index, label in enumerate(sorted(filter(_is_sage, labels))):
        found[label] = Style(None, _LINES[index % 4], _MARKERS[-1 - index % len(_MARKERS)], 2.0)
    return found


def _is_sage(label: str) -> bool:
    return label == "sage" or label.startswith("sage,")
