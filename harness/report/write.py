"""Puts the report on the disk: Markdown, pictures, and the page that holds everything."""

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from harness.report.as_markdown import markdown
from harness.report.page import page
from harness.report.sections import Section


def write(sections: Sequence[Section], out: Path) -> list[Path]:
    """Draws the pictures and writes ``report.html``, ``report.md`` and a PNG file a picture.

    Each file replaces an older one at once, never half written.

    Args:
        sections: The report.
        out: The folder to write to; made if it is not there.

    Returns:
        The files' paths.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = [p for section in sections for part in section.parts for p in part.pictures]
    drawn = {
        picture.name: picture.png() for picture in tqdm(pictures, desc="pictures", disable=None)
    }
    files = {
        "report.html": page(sections, drawn).encode(),
        "report.md": (markdown(sections, pictures=True) + "\n").encode(),
        **{f"{name}.png": content for name, content in drawn.items()},
    }
    for name, content in files.items():
        _replace(out / name, content)
    return [out / name for name in files]


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
