"""What the commands left behind: all files of some folders, read as if they were one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.episode_counts import unpack
from harness.results import read_results

Line = dict[str, Any]

_TRAINED = {
    "results": ("method", "seed", "config"),
    "failures": ("method", "seed", "config", "error"),
    "runs": ("method", "seed", "config"),
}
_MEASURED = {
    "robustness": ("method", "seed", "config", "kind", "strength", "top1"),
    "foreground": ("method", "seed"),
}
_EPISODES = (
    *("method", "seed", "config", "ways", "shots", "queries", "episodes", "episode_seed"),
    *("normalization", "classifier", "accuracy", "interval", "correct", "data"),
)
_OVERHEAD = "overhead.json"


@dataclass(frozen=True)
class Lines:
    """The lines of all files, by the file that they stand in."""

    runs: list[Line] = field(default_factory=list)
    """Runs that were asked for."""
    failures: list[Line] = field(default_factory=list)
    """Runs that ended with an error."""
    results: list[Line] = field(default_factory=list)
    """Runs that ended well."""
    robustness: list[Line] = field(default_factory=list)
    """Accuracies of trained networks under one corruption or attack each."""
    foreground: list[Line] = field(default_factory=list)
    """Shares of the foreground that a method's mixes keep."""
    episodes: list[Line] = field(default_factory=list)
    """Accuracies on episodes of novel classes; ``correct`` is an array, a number an episode."""
    overhead: list[Line] = field(default_factory=list)
    """The ``extra_info`` of each benchmark of a step or of a part of one."""


def read(directories: Sequence[Path]) -> Lines:
    """Reads the files of all folders as if they were one folder's.

    Args:
        directories: Folders that hold ``results.jsonl``, ``failures.jsonl`` or ``runs.jsonl``, and
            perhaps ``robustness.jsonl``, ``foreground.jsonl``, ``episodes.jsonl`` and
            ``overhead.json``.

    Raises:
        ValueError: If there is no line of a run or of its episodes in any of them, or one of them
            holds none of these files, or a file is not what it should be.
    """
    found = Lines()
    names = [*(f"{name}.jsonl" for name in (*_TRAINED, *_MEASURED, "episodes")), _OVERHEAD]
    for directory in directories:
        if not any((directory / name).exists() for name in names):
            raise ValueError(f"{directory} holds none of {', '.join(names)}")
        for name, keys in (_TRAINED | _MEASURED).items():
            getattr(found, name).extend(_lines(directory / f"{name}.jsonl", keys))
        found.episodes.extend(_episodes(directory / "episodes.jsonl"))
        found.overhead.extend(_benchmarks(directory / _OVERHEAD))
    if not any(getattr(found, name) for name in (*_TRAINED, "episodes")):
        raise ValueError(
            f"no results.jsonl, failures.jsonl, runs.jsonl or episodes.jsonl with a run in "
            f"{', '.join(str(directory) for directory in directories)}: train first"
        )
    return found


def _lines(path: Path, keys: tuple[str, ...]) -> list[Line]:
    lines = read_results(path)
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object")
        missing = [key for key in keys if key not in line]
        if missing:
            raise ValueError(f"{path}, line {number}: lacks {', '.join(missing)}")
    return lines


def _episodes(path: Path) -> list[Line]:
    lines = _lines(path, _EPISODES)
    for number, line in enumerate(lines, start=1):
        try:
            line["correct"] = unpack(line["correct"])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: correct {error}") from error
        most = line["ways"] * line["queries"]
        if len(line["correct"]) != line["episodes"] or line["correct"].max(initial=0) > most:
            raise ValueError(
                f"{path}, line {number}: correct must hold {line['episodes']} counts of up to "
                f"{most}, got {len(line['correct'])} of up to {line['correct'].max(initial=0)}"
            )
    return lines


def _benchmarks(path: Path) -> list[Line]:
    if not path.exists():
        return []
    try:
        benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        infos = [benchmark["extra_info"] for benchmark in benchmarks]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of pytest-benchmark's: {error!r}") from error
    return [info for info in infos if {"method", "part"} <= info.keys()]
