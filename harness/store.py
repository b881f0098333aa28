"""Results and checkpoints on disk: appended line by line, replaced whole, never half written."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

Line = dict[str, Any]
Kind = type | tuple[type, ...]

RUN: Mapping[str, Kind] = MappingProxyType({"method": str, "seed": int, "config": dict})
"""What every line about a run holds."""
_NAMED: set[str] = set()  # skipped lines that were named already


def append_result(path: Path, line: Line) -> None:
    """Appends one JSON object on a line of its own and flushes it to the disk.

    Figures that are not finite become null, for JSON has no word for them. Several processes may
    append to one file. A last line that a killed process left unfinished is dropped first.
    """
    text = json.dumps(finite(line), ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        before = path.read_bytes() if path.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        if whole != before:
            replace_file(path, whole)
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def cached(path: Path, key: Line, measure: Callable[[], Line]) -> Line:
    """Returns the line that holds a key; where there is none, measures it and appends it.

    Args:
        path: The file of results.
        key: What tells the line from all others: names with their values.
        measure: Gives the rest of the line.
    """
    line = find(path, key)
    if line is None:
        line = {**key, **measure()}
        append_result(path, line)
    return line


def find(path: Path, key: Line) -> Line | None:
    """Returns the first line that holds a key, None if there is none."""
    if not path.exists():
        return None
    state = path.stat()
    lines = _unchanged(path, state.st_size, state.st_mtime_ns)
    return next((line for line in lines if key.items() <= line.items()), None)


@lru_cache(maxsize=1)  # a file is asked for one key after the other
def _unchanged(path: Path, _size: int, _modified: int) -> list[Line]:
    return read_results(path)


def finite(value: Any) -> Any:
    """Copies a JSON value with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def all_finite(value: Any) -> bool:
    """Tells whether all numbers of a JSON value are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(all_finite, value))


def read_results(path: Path, keys: Mapping[str, Kind] = MappingProxyType({})) -> list[Line]:
    """Reads the whole lines of a results file, none if there is no file.

    Skips lines that are blank or hold something else, and names them on stderr the first time.

    Args:
        path: The file.
        keys: What every line must hold, and of which type.

    Raises:
        ValueError: If there are lines, and all of them hold something else.
    """
    results, skipped = read_lines(path, keys)
    if skipped and skipped not in _NAMED:
        _NAMED.add(skipped)
        tqdm.write(skipped, file=sys.stderr)
    return results


def read_lines(
    path: Path, keys: Mapping[str, Kind] = MappingProxyType({})
) -> tuple[list[Line], str]:
    """Reads a results file as ``read_results`` does, and says in words what it skipped."""
    found: list[Line] = []
    blank, foreign = [], []
    # str.splitlines also splits at U+2028 and others that may stand within a text. What follows the
    # last line feed is dropped: a writer was cut off, or is at it.
    content = path.read_bytes() if path.exists() else b""
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not text.strip():
            blank.append(number)
        elif isinstance(line, dict) and all(
            name in line and isinstance(line[name], kind) for name, kind in keys.items()
        ):
            found.append(line)
        else:
            foreign.append(number)
    kind = f"a JSON object{' with ' if keys else ''}{', '.join(keys)}"
    if foreign and not found:
        raise ValueError(
            f"{path} is not a file of results: {_numbers(foreign)} of it, all that it has, should "
            f"each be {kind}"
        )
    parts = [f"{_numbers(blank)} (blank)"] if blank else []
    parts += [f"{_numbers(foreign)} (not {kind})"] if foreign else []
    return found, f"{path}: skipped {' and '.join(parts)}" if parts else ""


def replace_file(path: Path, content: bytes | Callable[[Path], Any]) -> None:
    """Puts a file in its place at once: writes it beside the place, then renames it.

    Args:
        path: The place; its folder is made.
        content: The bytes; or a function that writes to the path it gets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if callable(content):
            content(unfinished)
        else:
            unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replaces a checkpoint."""
    replace_file(path, lambda unfinished: torch.save(state, unfinished))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Reads a checkpoint, None if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def _numbers(lines: list[int]) -> str:
    """Names lines by their numbers, with ranges for those that follow each other."""
    words = []
    for _, run in groupby(enumerate(lines), lambda place: place[1] - place[0]):
        numbers = [number for _, number in run]
        words.append(" to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))))
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(words)}"
