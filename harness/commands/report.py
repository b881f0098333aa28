"""``python -m harness report``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.config import check_directory, expanded, make_directory


@dataclass(frozen=True)
class Report:
    """Show what the other commands measured: tables, plots, and one page that holds them all.

    Reads results.jsonl, failures.jsonl, runs.jsonl, robustness.jsonl, foreground.jsonl,
    episodes.jsonl and overhead.json, as far as they are there; several folders are read as if they
    were one. Prints the tables, and writes report.html, report.md and the plots (PNG).

    Usage examples:

      python -m harness report runs

      python -m harness report runs runs-on-another-machine --out report
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that hold what was measured."""
    out: Path | None = None
    """Folder to write to; the first of the others if not given."""

    def __post_init__(self) -> None:
        """Expands ``~``."""
        object.__setattr__(self, "directories", tuple(map(expanded, self.directories)))
        if self.out is not None:
            object.__setattr__(self, "out", expanded(self.out))

    def __call__(self) -> None:
        from harness.report import markdown, read, sections, write

        if not self.directories:
            raise ValueError("name at least one folder that holds a results.jsonl")
        for directory in self.directories:
            check_directory(directory)
        make_directory(self.out or self.directories[0])
        contents = sections(read(self.directories))
        print(markdown(contents, pictures=False))
        print()
        for path in write(contents, self.out or self.directories[0]):
            print(f"written: {path}")
