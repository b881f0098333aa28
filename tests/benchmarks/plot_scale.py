"""Draws how the cost of an image grows with its size and with the batch.

pytest tests/benchmarks/test_scale.py --benchmark-only --benchmark-json scale.json
python tests/benchmarks/plot_scale.py scale.json scale.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from harness.report.plots import OTHERS, SAGE, SETTINGS

_PARTS = {
    "mixing": (SAGE, "search of all and blend"),
    "saliency": (OTHERS[1], "maps from the gradient"),
}
_LAYOUTS = {"contiguous": ("-", "o"), "channels last": ("--", "s")}
_REFERENCE = {"color": "#888888", "linewidth": 1.0, "linestyle": ":"}

Fact = dict[str, Any]


def main() -> None:
    """Reads pytest-benchmark's file, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    paths = parser.parse_args()
    benchmarks = json.loads(paths.json.read_text(encoding="utf-8"))["benchmarks"]
    facts = [benchmark["extra_info"] for benchmark in benchmarks]
    with mpl.rc_context(SETTINGS):
        draw(facts).savefig(paths.png, dpi=150, metadata={"Software": None})


def draw(facts: list[Fact]) -> Figure:
    """Draws time against image size on the left, against batch size on the right."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    by_size, by_batch_size = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    batch_size, size = (
        _commonest([fact[name] for fact in facts]) for name in ("batch_size", "size")
    )
    _draw_panel(by_size, [fact for fact in facts if fact["batch_size"] == batch_size], "size")
    _draw_panel(by_batch_size, [fact for fact in facts if fact["size"] == size], "batch_size")
    by_size.set(
        title=f"batch of {batch_size}",
        xlabel="image size, pixels a side",
        ylabel="milliseconds an image",
    )
    by_size.yaxis.set_major_formatter("{x:g}")
    by_batch_size.set(title=f"{size} × {size} pixels", xlabel="batch size")
    handles, labels = by_size.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_panel(panel: Axes, facts: list[Fact], name: str) -> None:
    panel.set(xscale="log", yscale="log")
    places = sorted({fact[name] for fact in facts})
    growth = [(place / places[0]) ** 2 if name == "size" else 1 for place in places]
    anchor = 0 if name == "size" else -1  # in a large batch, an image costs what it costs itself
    for part, (colour, label) in _PARTS.items():
        for layout, (line, marker) in _LAYOUTS.items():
            found = [fact for fact in facts if (fact["part"], fact["layout"]) == (part, layout)]
            times = {fact[name]: fact["milliseconds_an_image"] for fact in found}
            panel.plot(
                places,
                [times[place] for place in places],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"{label}, {layout}",
            )
            if layout == "contiguous":
                start = times[places[anchor]]
                reference = panel.plot(places, [start * g for g in growth], **_REFERENCE)
    reference[0].set_label("in proportion to the pixels")
    panel.xaxis.set(
        major_locator=FixedLocator(places), minor_locator=NullLocator(), major_formatter="{x:.0f}"
    )
    panel.tick_params(axis="x", labelsize=8)


def _commonest(values: list[int]) -> int:
    return max(values, key=values.count)


if __name__ == "__main__":
    main()
