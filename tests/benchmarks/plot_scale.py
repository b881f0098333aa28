"""Draws how the cost of an image grows with its size and with the batch.

pytest tests/benchmarks/test_scale.py --benchmark-only --benchmark-json scale.json
python tests/benchmarks/plot_scale.py scale.json scale.png
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from harness.report.style import LIGHT

_AXES = (("size", "image size, pixels a side"), ("batch_size", "batch size"))
_COLOURS = {"mixing": LIGHT.sage, "saliency": LIGHT.others[1]}
_LABELS = {"mixing": "search of all and blend", "saliency": "gradient to maps"}
_LINES = {"contiguous": ("-", "o"), "channels last": ("--", "s")}


def main() -> None:
    """Reads pytest-benchmark's file, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("png", type=Path)
    paths = parser.parse_args()
    benchmarks = json.loads(paths.json.read_text(encoding="utf-8"))["benchmarks"]
    facts = [benchmark["extra_info"] for benchmark in benchmarks]
    with mpl.rc_context(LIGHT.settings):
        draw(facts).savefig(paths.png, dpi=150, metadata={"Software": None})


def draw(facts: list[dict]) -> Figure:
    """Draws time against image size on the left, against batch size on the right."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    fixed = [_commonest(line[name] for line in facts) for name, _ in reversed(_AXES)]
    for panel, (name, label), (other, _), value in zip(
        panels, _AXES, reversed(_AXES), fixed, strict=True
    ):
        lines = sorted((f for f in facts if f[other] == value), key=lambda f: f[name])
        _draw_panel(panel, lines, name)
        panel.set(xlabel=label)
    panels[0].set(title=f"{fixed[0]} images", ylabel="milliseconds an image")
    panels[1].set(title=f"{fixed[1]} × {fixed[1]} pixels")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_panel(panel: Axes, lines: list[dict], name: str) -> None:
    places = sorted({line[name] for line in lines})
    panel.set(xscale="log", yscale="log")
    for part, colour in _COLOURS.items():
        for layout, (line, marker) in _LINES.items():
            points = [f for f in lines if (f["part"], f["layout"]) == (part, layout)]
            panel.plot(
                [f[name] for f in points],
                [f["milliseconds_an_image"] for f in points],
                color=colour,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=f"{_LABELS[part]}, {layout}",
            )
        start = next(f for f in lines if f["part"] == part)["milliseconds_an_image"]
        growth = [(place / places[0]) ** 2 if name == "size" else 1 for place in places]
        panel.plot(places, [start * g for g in growth], color="#888888", linewidth=0.8)
    panel.xaxis.set(
        major_locator=FixedLocator(places),
        minor_locator=NullLocator(),
        major_formatter=StrMethodFormatter("{x:.0f}"),
    )


def _commonest(values: Iterable[int]) -> int:
    values = list(values)
    return max(values, key=values.count)


if __name__ == "__main__":
    main()
