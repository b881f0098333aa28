"""Files that the commands left behind, read from some folders as if they were one."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.measures import measurements
from harness.report.episodes import HOLDS
from harness.store import RUN, Line, read_lines

_RUNS = {"runs": RUN, "failures": {**RUN, "error": str}, "results": RUN, "episodes": HOLDS}
_GALLERY = "gallery.png"


@dataclass(frozen=True)
class Lines:
    """Contents of all files."""

    files: dict[str, list[Line]]
    """Lines by the name of their file, less its ending."""
    galleries: list[bytes] = field(default_factory=list)
    """Pictures of pairs and their mixes, as PNG."""
    skipped: list[str] = field(default_factory=list)
    """A sentence for each file with lines that are blank or hold something else."""


def names() -> list[str]:
    """Names the files that are read."""
    files = (f"{name}.jsonl" for name in _RUNS)
    return [*files, *(kind.file for kind in measurements().values()), _GALLERY]


def holds_any(directory: Path) -> bool:
    """Tells whether a folder holds a file that is read."""
    return any((directory / name).exists() for name in names())


def read(directories: Sequence[Path]) -> Lines:
    """Reads the files of all folders; lines that are skipped are named on stderr.

    Raises:
        ValueError: If a folder holds none of the files, or there is nothing in any of them, or a
            file is not what it should be.
    """
    found = Lines({})
    for directory in directories:
        if not holds_any(directory):
            raise ValueError(f"{directory} holds none of {', '.join(names())}")
        parts = {n: read_lines(directory / f"{n}.jsonl", holds) for n, holds in _RUNS.items()}
        parts |= {name: kind.read(directory) for name, kind in measurements().items()}
        for name, (lines, skipped) in parts.items():
            found.files.setdefault(name, []).extend(lines)
            found.skipped.extend(filter(None, [skipped]))
        if (directory / _GALLERY).exists():
            found.galleries.append((directory / _GALLERY).read_bytes())
    if not any(found.files.values()) and not found.galleries:
        raise ValueError(
            f"the files in {', '.join(map(str, directories))} hold no line: train first"
        )
    for sentence in found.skipped:
        print(sentence, file=sys.stderr)
    return found
