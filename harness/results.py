"""Results and checkpoints on disk: appended line by line, replaced whole, never half written."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def append_result(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON object on a line of its own and flushes it to the disk.

    Several processes may append to one file. A last line that a killed process left unfinished is
    dropped first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        _drop_unfinished_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_results(path: Path) -> list[dict[str, Any]]:
    """Reads all whole lines of a results file, none if there is no file.

    Raises:
        ValueError: If a whole line is not a JSON object.
    """
    if not path.exists():
        return []
    results = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break  # a writer was cut off, or is at it
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from error
    return results


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside its place and renames it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(state, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Reads a checkpoint, None if there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _drop_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        unfinished = path.with_suffix(".tmp")
        unfinished.write_bytes(whole)
        os.replace(unfinished, path)
