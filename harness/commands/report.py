"""``python -m harness report``."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.config import expanded, make_directory


@dataclass(frozen=True)
class Report:
    """Show what the other commands measured: tables, plots, and one page that holds them all.

    Reads runs.jsonl, failures.jsonl, results.jsonl, robustness.jsonl, foreground.jsonl,
    dynamics.jsonl, agreement.jsonl, episodes.jsonl, overhead.json and gallery.png, as far as they
    are there; several folders are read as if they were one. Prints the tables, and writes
    report.html, report.md and the pictures (PNG).

    Usage examples:

      python -m harness report runs

      python -m harness report runs runs-on-another-machine --out report

      python -m harness report 'runs/*' --out report
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that hold what was measured, or patterns of them in quotes: 'runs/*'."""
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
        found = [folder for named in self.directories for folder in folders(named)]
        out = self.out or found[0]
        make_directory(out)
        contents = sections(read([*dict.fromkeys(found)]))
        print(markdown(contents, pictures=False))
        print()
        for path in write(contents, out):
            print(f"written: {path}")


def folders(named: Path) -> list[Path]:
    """Gives a folder, or in order those that a pattern matches and that hold what is read.

    Raises:
        ValueError: If there is no such folder.
    """
    from harness.report import holds_any, names

    if named.is_dir():
        return [named]
    if not glob.has_magic(str(named)):
        raise ValueError(f"no such folder: {named}")
    matched = [Path(name) for name in sorted(glob.glob(str(named), recursive=True))]
    found = [folder for folder in matched if folder.is_dir() and holds_any(folder)]
    if not found:
        raise ValueError(f"no folder that {str(named)!r} matches holds any of {', '.join(names())}")
    return found
