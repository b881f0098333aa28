"""Downloads that are there whole or not at all."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from tqdm import tqdm

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte

Check = Callable[[Path], object]


def download(url: str, place: Path, check: Check) -> None:
    """Downloads a file and gives it its name when it is whole.

    Args:
        url: From where.
        place: Where to.
        check: Raises a ValueError that says what is wrong with the file that came.

    Raises:
        ValueError: If the file cannot be had, breaks off, or does not pass the check.
    """
    with _beside(place.parent) as folder:
        came = folder / place.name
        _fetch(url, came)
        _checked(url, came, check)
        os.replace(came, place)


def download_zip(url: str, places: dict[Path, Check]) -> None:
    """Downloads an archive, unpacks it, and moves what is in it to its places.

    Args:
        url: From where.
        places: Files or folders, called as in the archive, and the check of each.

    Raises:
        ValueError: As :func:`download`.
    """
    with _beside(next(iter(places)).parent) as folder:
        archive = folder / "archive.zip"
        _fetch(url, archive)
        _checked(url, archive, _is_whole_zip)
        with zipfile.ZipFile(archive) as file:
            for member in tqdm(file.infolist(), desc="unpacking", leave=False, disable=None):
                file.extract(member, folder)
        for place, check in places.items():
            _checked(url, folder / place.name, check)
        for place in places:
            if not place.exists():  # else another process was faster
                os.replace(folder / place.name, place)


@contextmanager
def _beside(parent: Path) -> Iterator[Path]:
    """A temporary folder on the same disk, so that a rename is at once."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="unfinished-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _fetch(url: str, place: Path) -> None:
    try:
        with urlopen(url, timeout=_TIMEOUT) as answer, place.open("wb") as file:
            size = int(answer.headers.get("Content-Length", 0))
            title = url.rsplit("/", 1)[-1]
            with tqdm(
                total=size or None, desc=title, unit="B", unit_scale=True, disable=None
            ) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if file.tell() < size:
                raise OSError(f"the connection broke off after {file.tell()} of {size} bytes")
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"cannot download {url}: {error}. Try again later, or from another network"
        ) from error


def _checked(url: str, place: Path, check: Check) -> None:
    try:
        check(place)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{url} is not the file that it should be, so it was not kept: {place.name} {error}"
        ) from error


def _is_whole_zip(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(1) == b"<":
            raise ValueError("is a web page (HTML), no archive")
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"is no whole archive: {error}") from error
    if broken:
        raise ValueError(f"has a broken {broken}")
