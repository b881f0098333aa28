"""Tables of what the runs in a results file measured."""

import json
from collections import defaultdict
from statistics import mean, median, stdev
from typing import Any

_MEASURES = {"top1": "top-1, %", "top5": "top-5, %", "nll": "NLL", "ece": "ECE, %"}


def tables(results: list[dict[str, Any]]) -> str:
    """Makes one Markdown table for each setting, with a row a method.

    Figures over seeds are mean ± standard deviation. The difference to mixup is taken seed by seed,
    which share their training images. The step is the median of the runs' medians.
    """
    settings: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in results:
        shared = {k: v for k, v in line["config"].items() if k not in ("method", "seed")}
        settings[json.dumps(shared, sort_keys=True)].append(line)
    return "\n\n".join(_table(lines) for lines in settings.values())


def _table(lines: list[dict[str, Any]]) -> str:
    first = lines[0]
    title = (
        f"{first['dataset']}, {first['train_size']} training images, "
        f"{first['validation_size']} to measure on, {first['model']}, {first['epochs']} epochs"
    )
    by_method: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        by_method[line["method"]][line["seed"]] = line
    mixup = by_method.get("mixup", {})
    measures = [name for name in _MEASURES if any(name in line for line in lines)]
    header = [
        "method",
        "seeds",
        *(_MEASURES[name] for name in measures),
        "top-1 less mixup's, points",
        "training loss",
        "step, ms",
    ]
    rows = [header, ["---"] * len(header)]
    for method, runs in by_method.items():
        pairs = sorted(runs.keys() & mixup.keys()) if method != "mixup" else []
        cells = [
            method,
            " ".join(str(seed) for seed in sorted(runs)),
            *(_spread([run[m] for run in runs.values() if m in run]) for m in measures),
            _spread([runs[s]["top1"] - mixup[s]["top1"] for s in pairs], sign="+"),
            _spread([run["train_loss"] for run in runs.values()]),
            f"{median(run['step_ms'] for run in runs.values()):.0f}",
        ]
        rows.append(cells)
    return "\n".join((title, "", *("| " + " | ".join(row) + " |" for row in rows)))


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return "-"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.2f}{spread}"
