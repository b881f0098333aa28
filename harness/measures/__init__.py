"""Measurements beside accuracy, a file each, and the registry of what they leave behind."""

import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

from harness.figures import Table
from harness.store import Kind, Line, read_lines


@dataclass(frozen=True)
class Measurement:
    """A file of lines, and the tables that show them."""

    file: str
    table: Callable[..., Table]
    """Makes a table of lines, and of runs that may have none where they are ``of`` runs; a line's
    "label" names its row."""
    of: Literal["runs", "mixes", "sage", "networks", "steps"]
    """Tells what a line measures: a run's network; a method's mixes; SAGE's mixes, whatever the
    network's method; a network, whatever its method; a training step, whatever the data."""
    key: Sequence[str]
    """Tells a line from the others of its table; of two with one key the later counts."""
    by: Sequence[str] = ()
    """Names what the lines of a table share."""
    place: int = 0
    """Orders the report's tables."""
    holds: Mapping[str, Kind] = field(default_factory=dict)
    """Names what each line must hold, and its type."""
    parsed: Callable[[Path], list[Line]] | None = None
    """Reads a file that does not hold one JSON object a line."""

    def read(self, directory: Path) -> tuple[list[Line], str]:
        """Reads a folder's lines, none if there is no file, and says what was skipped."""
        path = directory / self.file
        if self.parsed is None:
            return read_lines(path, self.holds)
        return self.parsed(path) if path.exists() else [], ""

    def groups(self, lines: Sequence[Line]) -> list[list[Line]]:
        """Sorts lines by the table that they belong to."""
        found: dict[str, dict[str, Line]] = {}
        for line in lines:
            group, place = (
                json.dumps([line.get(name) for name in names], sort_keys=True)
                for names in (self.by, self.key)
            )
            found.setdefault(group, {})[place] = line
        return [[*group.values()] for group in found.values()]

    def tables(self, lines: Sequence[Line]) -> list[Table]:
        """Makes the tables of lines."""
        return [self.table(group) for group in self.groups(lines)]


def measurements() -> dict[str, Measurement]:
    """Finds the measurements in this package's files, by name, in the report's order."""
    modules = {
        m.name: import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    }
    found = {n: m.MEASUREMENT for n, m in modules.items() if hasattr(m, "MEASUREMENT")}
    return dict(sorted(found.items(), key=lambda item: item[1].place))
