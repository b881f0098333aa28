"""Pictures: images and maps in rows and columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from harness.methods.base import unnormalised
from sage_timm.sage import Mix

_INCHES = 1.4  # of one cell


class Column(NamedTuple):
    """A column: its title and its cells, images ``[N, H, W, C]`` or maps ``[N, H, W]``."""

    title: str
    cells: NDArray[np.float32]
    colours: str | None = None
    limits: tuple[float | None, float | None] = (None, None)


def pictures(images: Tensor, data_config: dict[str, Any]) -> NDArray[np.float32]:
    """Makes a column's cells of normalised images ``[N, C, H, W]``."""
    pixels = unnormalised(images.cpu(), data_config["mean"], data_config["std"])
    return pixels.clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def mix_columns(images: Tensor, mix: Mix, data_config: dict[str, Any], rows: int) -> list[Column]:
    """Makes the columns of SAGE's mixes: both images, their saliency, the mask, and the mix.

    Each image of a batch ``[B, C, H, W]`` is mixed with its reverse; the first ``rows`` are shown.
    """

    def both(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:rows], values.flip(0)[:rows]

    return [
        *(Column(f"image {i}", pictures(x, data_config)) for i, x in enumerate(both(images))),
        *(Column(f"saliency {i}", _cells(s), "magma") for i, s in enumerate(both(mix.maps))),
        Column("mask of image 0", _cells(mix.mask[:rows]), "coolwarm_r", (0, 1)),
        Column("SAGE", pictures(mix.images[:rows], data_config)),
    ]


def save_grid(columns: Sequence[Column], path: Path) -> None:
    """Saves the columns, side by side, as one picture."""
    rows = len(columns[0].cells)
    figure = Figure(figsize=(_INCHES * len(columns), _INCHES * rows + 0.3), layout="constrained")
    for axes, (place, row) in zip(
        figure.subplots(rows, len(columns), squeeze=False).flat,
        ((column, row) for row in range(rows) for column in columns),
        strict=True,
    ):
        low, high = place.limits
        axes.imshow(place.cells[row], cmap=place.colours, vmin=low, vmax=high)
        axes.set_axis_off()
        if row == 0:
            axes.set_title(place.title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cells(maps: Tensor) -> NDArray[np.float32]:
    return maps[:, 0].float().cpu().numpy()
