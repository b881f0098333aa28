"""Checks a folder of images before anything is trained on it, and says what is odd."""

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from harness.figures import markdown_table
from harness.folders import (
    ImageFolder,
    find_split,
    has_known_range,
    listed,
    read_folder,
    read_image,
    stand_ins,
)

_BEGINNING = 4096  # bytes, by which files of one size are told apart before they are read whole
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_HEADERS_AT_MOST = 100_000  # of a split: a header costs a request on a shared disk


class Header(NamedTuple):
    """The properties that an image file gives for itself."""

    size: tuple[int, int]
    """Width and height in pixels."""
    mode: str
    format: str
    turned: bool
    """Whether EXIF says that the image is to be turned or mirrored for display."""


class CheckedFolder(NamedTuple):
    """A data set's two splits, fit to train and to measure on."""

    train: ImageFolder
    validation: ImageFolder
    notes: list[str]
    """A sentence on each thing that is odd, and does no harm."""


@functools.cache
def check_folder(root: Path, train_split: str, val_split: str, mode: str) -> CheckedFolder:
    """Opens the two splits of a folder, checks them, and says on stderr what is odd.

    Raises ValueError for splits that cannot be trained and measured on. The validation images are
    all read, since one that cannot be read would end a training at its end.
    """
    paths = [find_split(root, train_split), find_split(root, val_split, stand_ins(val_split))]
    if paths[0].resolve() == paths[1].resolve():
        raise ValueError(
            f"train_split={train_split!r} and val_split={val_split!r} are both {paths[0]}: "
            "measure on images that were not trained on"
        )
    train, validation = map(read_folder, paths)
    for one, other in ((train, validation), (validation, train)):
        if missing := [name for name in one.classes if name not in other.classes]:
            raise ValueError(
                f"{one.path} has classes that {other.path} lacks: {listed(missing)}. Both splits "
                "need the same classes"
            )
    notes = [] if paths[1].name == val_split else [f"measured on the folder {paths[1].name!r}"]
    if same := same_images(train, validation):
        notes.append(
            f"{len(same)} of {len(validation.files)} images of {paths[1].name!r} are in "
            f"{paths[0].name!r} too: {_below(validation, same)}"
        )
    for folder in (train, validation):
        notes += remarks(folder)
    check_readable(validation, mode)
    say(root, notes)
    return CheckedFolder(train, validation, notes)


def remarks(folder: ImageFolder) -> list[str]:
    """Checks that the range of all images' pixels is known, and says what is odd about a split."""
    found = headers(folder)
    check_modes(found)
    return oddities(folder, found)


def say(root: Path, notes: Iterable[str]) -> None:
    """Prints what is odd about a data set, between progress bars."""
    for note in notes:
        tqdm.write(f"{root}: {note}", file=sys.stderr)


def describe(folders: Sequence[ImageFolder]) -> str:
    """Makes Markdown tables of what splits hold: classes and counts, then sizes and types."""
    counts = [Counter(folder.classes[target] for target in folder.targets) for folder in folders]
    classes = dict.fromkeys(name for folder in folders for name in folder.classes)
    per_class = [[name, *(str(count[name]) for count in counts)] for name in classes]
    per_class.append(["**all**", *(str(len(folder.files)) for folder in folders)])
    per_split = []
    for folder in folders:
        found = list(filter(None, headers(folder).values()))
        widths, heights = zip(*(header.size for header in found), strict=True)
        not_square = sum(width != height for width, height in zip(widths, heights, strict=True))
        per_split.append(
            [
                folder.path.name,
                f"{min(widths)} to {max(widths)}",
                f"{min(heights)} to {max(heights)}",
                f"{100 * not_square / len(found):.0f}",
                _counted(header.format for header in found),
                _counted(header.mode for header in found),
                _counted(file.suffix or "no extension" for file in folder.skipped) or "-",
                str(folder.hidden),
            ]
        )
    header = ["split", "width", "height", "not square, %", "types", "modes", "skipped", "hidden"]
    tables = [
        (["class", *(folder.path.name for folder in folders)], per_class),
        (header, per_split),
    ]
    return "\n\n".join(markdown_table(*table) for table in tables)


def oddities(folder: ImageFolder, found: Mapping[Path, Header | None]) -> list[str]:
    """Writes a sentence on each thing that is odd about a split, of which headers were read."""
    name = folder.path.name
    broken = [file for file, header in found.items() if header is None]
    notes = [
        f"{len(files)} {what}: {_below(folder, files)}"
        for files, what in (
            (folder.skipped, f"files of {name!r} are no image of a class"),
            (broken, f"images of {name!r} cannot be opened"),
            (copies(folder), f"images of {name!r} are copies of others"),
        )
        if files
    ]
    if turned := sum(header.turned for header in found.values() if header):
        notes.append(
            f"{turned} images of {name!r} have an EXIF orientation, which is not applied (as in "
            "timm and torchvision)"
        )
    return notes


def same_images(one: ImageFolder, other: ImageFolder) -> list[Path]:
    """Returns the files of the second split whose bytes are in the first, too.

    Raises ValueError if a file itself is in both, by a link.
    """
    places = {_place(file): file for file in one.files}
    for file in other.files:
        twin = places.get(_place(file))
        if twin is not None and twin.resolve() == file.resolve():
            raise ValueError(f"{file} is {twin}: an image must not be in both splits")
    contents = _shared_contents([*one.files, *other.files])
    firsts = {contents[file] for file in one.files if file in contents}
    return [file for file in other.files if contents.get(file) in firsts]


def copies(folder: ImageFolder) -> list[Path]:
    """Returns the files of a split whose bytes an earlier file of it has, too."""
    first: dict[bytes, Path] = {}
    contents = _shared_contents(folder.files)
    return [file for file, content in contents.items() if first.setdefault(content, file) != file]


def _shared_contents(files: Sequence[Path]) -> dict[Path, bytes]:
    """Returns digests of the files whose bytes another one has, too, in their order.

    Files are compared by size, then by their beginning, then whole.
    """
    for key in (os.path.getsize, functools.partial(_digest, count=_BEGINNING), _digest):
        found = dict(zip(files, _in_threads(key, files, "comparing images"), strict=True))
        counts = Counter(found.values())
        files = [file for file in files if counts[found[file]] > 1]
    return {file: found[file] for file in files}


def _place(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


@functools.cache
def _digest(file: Path, count: int = -1) -> bytes:
    with file.open("rb") as content:
        return hashlib.sha256(content.read(count)).digest()


def headers(folder: ImageFolder) -> dict[Path, Header | None]:
    """Reads the headers of a split's images, of many just a part; None where a file is no image."""
    files = folder.files[:: -(-len(folder.files) // _HEADERS_AT_MOST)]
    return dict(zip(files, _in_threads(_header, files, "looking at the images"), strict=True))


@functools.cache
def _header(file: Path) -> Header | None:
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.size, image.mode, str(image.format), turned)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def check_modes(found: Mapping[Path, Header | None]) -> None:
    """Raises ValueError if the range of an image's pixels is not known."""
    for file, header in found.items():
        if header and not has_known_range(header.mode, header.format):
            raise ValueError(
                f"{file} has pixels of mode {header.mode!r}, whose range is not known: save it "
                "with 8 or 16 bits a channel"
            )


def check_readable(folder: ImageFolder, mode: str) -> None:
    """Reads all images of a split, and raises ValueError if one cannot be read."""

    def read(file: Path) -> None:
        read_image(file, mode)

    _in_threads(read, folder.files, f"reading {folder.path.name}")


def _below(folder: ImageFolder, files: Sequence[Path]) -> str:
    return listed([file.relative_to(folder.path) for file in files])


def _counted(values: Iterable[Any]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())


def _in_threads(call: Callable[[Path], Any], files: Sequence[Path], title: str) -> list[Any]:
    with ThreadPoolExecutor() as threads:
        results = threads.map(call, files)
        return list(tqdm(results, total=len(files), desc=title, leave=False, disable=None))
