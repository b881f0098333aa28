"""What the commands left behind: all files of some folders, read as if they were one."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.measures.agreement import MEASURES, SALIENCY
from harness.store import RUN, Kind, Line, read_lines

_NUMBER = (int, float)
_FILES: Mapping[str, Mapping[str, Kind]] = {
    "runs": RUN,
    "failures": {**RUN, "error": str},
    "results": RUN,
    "robustness": {**RUN, "kind": str, "strength": _NUMBER, "top1": _NUMBER},
    "foreground": {"method": str, "seed": int},
    "dynamics": {**RUN, "epoch": int, "images": int},
    "agreement": {
        **{"seed": int, "config": dict, "pairs": int, "search": str, "search_fraction": _NUMBER},
        **dict.fromkeys((*SALIENCY, *MEASURES), object),
        **{"standard_error": dict, "worst": dict},
    },
    "episodes": {
        **RUN,
        **dict.fromkeys(("ways", "shots", "queries", "episodes", "episode_seed"), int),
        **{"normalization": str, "classifier": str, "data": str},
        **{"accuracy": _NUMBER, "interval": _NUMBER},
    },
}
_OVERHEAD = "overhead.json"
_GALLERY = "gallery.png"
NAMES = (*(f"{name}.jsonl" for name in _FILES), _OVERHEAD, _GALLERY)
"""The files that are read."""


@dataclass(frozen=True)
class Lines:
    """What all files hold, by the file that it stands in."""

    runs: list[Line] = field(default_factory=list)
    """Runs that were asked for."""
    failures: list[Line] = field(default_factory=list)
    """Runs that ended with an error."""
    results: list[Line] = field(default_factory=list)
    """Runs that ended."""
    robustness: list[Line] = field(default_factory=list)
    """Accuracies of trained networks under one corruption or attack each."""
    foreground: list[Line] = field(default_factory=list)
    """Shares of the foreground that a method's mixes keep."""
    dynamics: list[Line] = field(default_factory=list)
    """What SAGE's mixes are after an epoch of a training."""
    agreement: list[Line] = field(default_factory=list)
    """How well a cheaper variant of SAGE agrees with the full method."""
    episodes: list[Line] = field(default_factory=list)
    """Accuracies on episodes of novel classes."""
    overhead: list[Line] = field(default_factory=list)
    """The ``extra_info`` of each benchmark of a step or of a part of one."""
    galleries: list[bytes] = field(default_factory=list)
    """Pictures of pairs and their mixes, as PNG."""
    skipped: list[str] = field(default_factory=list)
    """A sentence for each file with lines that are blank or hold something else."""


def holds_any(directory: Path) -> bool:
    """Tells whether a folder holds a file that the report reads."""
    return any((directory / name).exists() for name in NAMES)


def read(directories: Sequence[Path]) -> Lines:
    """Reads the files of all folders as if they were one folder's.

    Lines that are blank or hold something else are skipped, and named on stderr.

    Args:
        directories: Folders that hold some of :data:`NAMES`.

    Raises:
        ValueError: If one of them holds none of these files, or there is nothing in any of them,
            or a file is not what it should be.
    """
    found = Lines()
    for directory in directories:
        if not holds_any(directory):
            raise ValueError(f"{directory} holds none of {', '.join(NAMES)}")
        for name, keys in _FILES.items():
            lines, skipped = read_lines(directory / f"{name}.jsonl", keys)
            getattr(found, name).extend(lines)
            found.skipped.extend(filter(None, [skipped]))
        found.overhead.extend(_benchmarks(directory / _OVERHEAD))
        if (directory / _GALLERY).exists():
            found.galleries.append((directory / _GALLERY).read_bytes())
    if not any(getattr(found, name) for name in (*_FILES, "overhead", "galleries")):
        raise ValueError(
            f"the files in {', '.join(map(str, directories))} hold no line: train first"
        )
    for sentence in found.skipped:
        print(sentence, file=sys.stderr)
    return found


def _benchmarks(path: Path) -> list[Line]:
    if not path.exists():
        return []
    try:
        benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        infos = [benchmark["extra_info"] for benchmark in benchmarks]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a file of pytest-benchmark's: {error!r}") from error
    return [info for info in infos if {"method", "part"} <= info.keys()]
