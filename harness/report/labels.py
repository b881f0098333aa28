"""Labels beside the points of a plot, placed so that they do not cover each other."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from harness.report.statistics import Spread

_DISTANCES = (7, 13, 20, 28, 37, 47, 58, 70, 85, 100)  # points; nearer is better
_DEGREES = (0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160, 70, -70, 110, -110)
_ANGLES = tuple(math.radians(degrees) for degrees in _DEGREES)
_MARKER = 4  # half a marker's width, points
_BAR = 2  # half the width that is kept free about an error bar, points
_LEADER = 10  # points; a label farther away is joined to its point
_LETTERS = 24  # in a line
_ROUNDING = 1e-6  # square pixels


class Point(NamedTuple):
    """A point in the axes' data coordinates, with its error bars."""

    x: Spread
    y: Spread
    label: str
    colour: str


def label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Writes each point's label at the nearest free place inside the axes.

    Labels are placed one by one from the top; one that finds no free place goes where it covers
    least. Ends the figure's layout: what is drawn afterwards must not move the axes.
    """
    figure = axes.get_figure(root=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    taken = [box for point in points for box in _drawn(axes, point, scale)]
    for point in sorted(points, key=lambda point: -point.y.mean):
        place = (point.x.mean, point.y.mean)
        text = axes.annotate(
            wrapped(point.label), place, (0, 0), textcoords="offset points",
            ha="center", va="center", color=point.colour, fontsize=8.5,
        )  # fmt: skip
        size = text.get_window_extent(canvas.get_renderer())
        origin = axes.transData.transform(place)
        candidates = _candidates(*origin, size.width, size.height, scale)
        box, distance = _most_free(candidates, taken, axes.bbox)
        taken.append(box)
        text.set_position((np.mean([box.min, box.max], axis=0) - origin) / scale)
        if distance > _LEADER:
            nearest = np.clip(origin, box.min, box.max)
            axes.annotate(
                "", place, (nearest - origin) / scale, textcoords="offset points",
                arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": point.colour},
            )  # fmt: skip


def wrapped(label: str, letters: int = _LETTERS, lines: int = 2) -> str:
    """Breaks a label into lines, and cuts off what is more than ``lines`` of them."""
    return "\n".join(textwrap.wrap(label, letters, max_lines=lines, placeholder="…"))


def _drawn(axes: Axes, point: Point, scale: float) -> Iterator[Bbox]:
    """The places that a point's marker and error bars take, in pixels."""
    half_x, half_y = point.x.deviation or 0.0, point.y.deviation or 0.0
    for dx, dy, width in ((0.0, 0.0, _MARKER), (half_x, 0.0, _BAR), (0.0, half_y, _BAR)):
        low = (point.x.mean - dx, point.y.mean - dy)
        high = (point.x.mean + dx, point.y.mean + dy)
        yield Bbox(axes.transData.transform([low, high])).padded(width * scale)


def _candidates(
    x: float, y: float, width: float, height: float, scale: float
) -> Iterator[tuple[Bbox, float]]:
    """Boxes around a point, the best first: each touches the end of a ray from the point."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            across, up = round(math.cos(angle), 6), round(math.sin(angle), 6)
            yield (
                Bbox.from_bounds(
                    x + distance * scale * across - width * (0.5 - 0.5 * _sign(across)),
                    y + distance * scale * up - height * (0.5 - 0.5 * _sign(up)),
                    width,
                    height,
                ),
                distance,
            )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _most_free(
    candidates: Iterator[tuple[Bbox, float]], taken: list[Bbox], inside: Bbox
) -> tuple[Bbox, float]:
    """The first box that covers nothing and stays inside, else the one that does least harm."""
    least, best = math.inf, None
    others = np.array([other.extents for other in taken])
    for candidate in candidates:
        box, _ = candidate
        covered = _shared(box, others).sum()
        outside = box.width * box.height - _shared(box, inside.extents[None])[0]
        if covered + outside < least:
            least, best = covered + outside, candidate
        if least <= _ROUNDING:
            break
    return best


def _shared(box: Bbox, others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that a box shares with each of some others ``[N, 4]``."""
    low = np.maximum(box.min, others[:, :2])
    high = np.minimum(box.max, others[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=1)
