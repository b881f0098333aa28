"""What a step costs: the benchmarks' figures by setting and method."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.figures import NO_VALUE
from harness.report.cells import Cell, Table
from harness.report.settings import MethodRuns, labels, own_settings, registry_order
from harness.store import Line

_SETTING = ("model", "batch_size", "image_size", "channels_last", "device")
_PARTS = ("saliency", "mixing")


@dataclass(frozen=True)
class Overhead:
    """The benchmarks of one model on one device."""

    title: str
    model: str | None
    methods: dict[str, dict[str, Line]]
    """By the method's label, then by part: step, saliency, mixing."""

    def ratios(self) -> dict[str, float]:
        """A step's time to that of one without mixing, by method."""
        ratios = {
            method: parts.get("step", {}).get("ratio") for method, parts in self.methods.items()
        }
        return {method: ratio for method, ratio in ratios.items() if ratio is not None}

    def ratio_of(self, method: str, own: dict[str, Any]) -> float | None:
        """A step's time to that of one without mixing, of a method with settings of its own.

        Alpha may be another one: it changes what is drawn, not what is computed.
        """
        for label, ratio in self.ratios().items():
            line = self.methods[label]["step"]
            settings = own_settings(line["method"], line.get("mixing", {}))
            if line["method"] == method and settings | {"alpha": None} == own | {"alpha": None}:
                return ratio
        return 1.0 if method == "none" else None

    def shares(self, method: str) -> dict[str, float]:
        """The parts of a method's step, each to the time of a step without mixing."""
        parts = self.methods[method]
        step = parts["step"]["milliseconds"] / parts["step"]["ratio"]
        return {part: parts[part]["milliseconds"] / step for part in _PARTS if part in parts}


def overheads(lines: list[Line]) -> list[Overhead]:
    """Sorts the benchmarks by model, batch and device, then by method; the later of two counts."""
    found: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: registry_order(line["method"])):
        found.setdefault(json.dumps(_setting(line)), []).append(line)
    return [_overhead(lines) for lines in found.values()]


def step_ratios(
    costs: Sequence[Overhead], model: str | None, one: MethodRuns, other: MethodRuns
) -> list[float]:
    """How many times as long a step takes with one method as with another, by setting.

    Args:
        costs: The benchmarks.
        model: The network that the methods trained.
        one: A method.
        other: The one that it is compared with.
    """
    found = []
    for cost in costs:
        ratios = [cost.ratio_of(runs.method, runs.own) for runs in (one, other)]
        if cost.model == model and ratios[0] and ratios[1]:
            found.append(ratios[0] / ratios[1])
    return found


def overhead_table(overhead: Overhead) -> Table:
    """The cost of a step with each method, and of SAGE's parts."""
    columns = {
        "step / none's": ("step", "ratio", "{:.2f}".format),
        "step, ms": ("step", "milliseconds", _milliseconds),
        "saliency, ms": ("saliency", "milliseconds", _milliseconds),
        "mixing, ms": ("mixing", "milliseconds", _milliseconds),
        "peak memory / none's": ("step", "peak_memory_ratio", "{:.2f}".format),
    }
    rows = [
        [Cell(method), *(_cell(parts, *c) for c in columns.values())]
        for method, parts in overhead.methods.items()
    ]
    note = (
        "Each ratio is that of a step to the one without mixing just before it; ratios and "
        "milliseconds are means over what a method draws of the median of three rounds; saliency "
        "and mixing are parts of the step, timed alone."
    )
    return Table(overhead.title, ["method", *columns], rows, note)


def _cell(parts: dict[str, Line], part: str, name: str, text: Callable[[float], str]) -> Cell:
    value = parts.get(part, {}).get(name)
    return Cell(NO_VALUE if value is None else text(value))


def _milliseconds(value: float) -> str:
    """Writes a time with three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _setting(line: Line) -> dict[str, Any]:
    return {name: line[name] for name in _SETTING if name in line}


def _overhead(lines: list[Line]) -> Overhead:
    """Sorts the benchmarks of one setting by method, SAGE also by its own settings."""
    names = [
        (line["method"], own_settings(line["method"], line.get("mixing", {}))) for line in lines
    ]
    methods: dict[str, dict[str, Line]] = {}
    for label, line in zip(labels(names), lines, strict=True):
        methods.setdefault(label, {})[line["part"]] = line
    return Overhead(_title(_setting(lines[0])), lines[0].get("model"), methods)


def _title(shared: dict[str, Any]) -> str:
    words = {
        "model": "{}",
        "batch_size": "batch of {}",
        "image_size": "{0} × {0} pixels",
        "device": "{}",
    }
    parts = [text.format(shared[name]) for name, text in words.items() if name in shared]
    if shared.get("channels_last"):
        parts.insert(-1, "channels last")
    return ", ".join(parts)
