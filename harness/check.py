"""Looks into a folder of images before anything is trained on it."""

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

In = TypeVar("In")
Out = TypeVar("Out")


class Header(NamedTuple):
    """What an image file says of itself."""

    size: tuple[int, int]
    """Width and height in pixels."""
    mode: str
    format: str
    turned: bool
    """Whether EXIF says that the image is to be turned or mirrored for display."""


@dataclass(frozen=True)
class CheckedFolder:
    """A data set's two splits, which were found fit to train and to measure on."""

    train: ImageFolder
    validation: ImageFolder
    notes: list[str]
    """A sentence on each thing that is odd, and does no harm."""


@functools.cache
def check_folder(root: Path, train_split: str, val_split: str, mode: str) -> CheckedFolder:
    """Opens a folder of images, checks it, and says on stderr what is odd.

    The training split's classes are the classes. The validation images are all read once, since
    one that cannot be read would end a training at its end.

    Args:
        root: The data set's folder.
        train_split: Name of the folder to train on.
        val_split: Name of the folder to measure on. For ``validation``, ``val``, ``valid`` or
            ``test`` is taken where there is none of that name.
        mode: ``"RGB"`` or ``"L"``, what the images are converted to.

    Raises:
        ValueError: If a split is missing or not to be told, the splits share a file or differ in
            their classes, a class has no images, or an image cannot be read.
    """
    paths = [find_split(root, train_split), find_split(root, val_split, stand_ins(val_split))]
    if paths[0].resolve() == paths[1].resolve():
        raise ValueError(
            f"train_split={train_split!r} and val_split={val_split!r} are both {paths[0]}: "
            "measure on images that were not trained on"
        )
    train, validation = map(read_folder, paths)
    _check_classes(train, validation)
    same = same_images(train, validation)
    notes = [] if paths[1].name == val_split else [f"measured on the folder {paths[1].name!r}"]
    if same:
        notes.append(
            f"{len(same)} of {len(validation.files)} images of {paths[1].name!r} are in "
            f"{paths[0].name!r} too: {listed([file.relative_to(paths[1]) for file in same])}"
        )
    for folder in (train, validation):
        found = headers(folder)
        check_modes(found)
        notes += oddities(folder, found)
    check_readable(validation, mode)
    say(root, notes)
    return CheckedFolder(train, validation, notes)


def describe(folders: Sequence[ImageFolder]) -> str:
    """Makes Markdown tables of what splits hold: classes and counts, then sizes and types."""
    classes = list(dict.fromkeys(name for folder in folders for name in folder.classes))
    counts = [Counter(folder.classes[target] for target in folder.targets) for folder in folders]
    rows = [[name, *(str(count[name]) for count in counts)] for name in classes]
    rows.append(["**all**", *(str(len(folder.files)) for folder in folders)])
    tables = [markdown_table(["class", *(folder.path.name for folder in folders)], rows)]
    header = ["split", "width", "height", "not square, %", "types", "modes", "skipped", "hidden"]
    rows = []
    for folder in folders:
        found = [header for header in headers(folder).values() if header is not None]
        sides = zip(*(header.size for header in found), strict=True)
        apart = sum(width != height for width, height in (header.size for header in found))
        rows.append(
            [
                folder.path.name,
                *(f"{min(side)} to {max(side)}" for side in sides),
                f"{100 * apart / len(found):.0f}",
                _counted(header.format for header in found),
                _counted(header.mode for header in found),
                _counted(file.suffix or "no extension" for file in folder.skipped) or "-",
                str(folder.hidden),
            ]
        )
    return "\n\n".join([*tables, markdown_table(header, rows)])


def oddities(folder: ImageFolder, found: Mapping[Path, Header | None]) -> list[str]:
    """Says what is odd about a split, a sentence each."""
    name = folder.path.name
    notes = []
    if folder.skipped:
        paths = [file.relative_to(folder.path) for file in folder.skipped]
        notes.append(f"{len(paths)} files of {name!r} are no image of a class: {listed(paths)}")
    broken = [file for file, header in found.items() if header is None]
    if broken:
        paths = [file.relative_to(folder.path) for file in broken]
        notes.append(f"{len(broken)} images of {name!r} cannot be opened: {listed(paths)}")
    twins = copies(folder)
    if twins:
        paths = [file.relative_to(folder.path) for file in twins]
        notes.append(f"{len(paths)} images of {name!r} are copies of others: {listed(paths)}")
    turned = sum(header.turned for header in found.values() if header)
    if turned:
        notes.append(
            f"{turned} images of {name!r} have an EXIF orientation, which is not applied (as in "
            "timm and torchvision)"
        )
    return notes


def same_images(one: ImageFolder, other: ImageFolder) -> list[Path]:
    """Returns the files of the second split whose bytes are in the first, too.

    Files are compared by size, then by their beginning, then whole.

    Raises:
        ValueError: If a file itself is in both, by a link.
    """
    places = {_place(file): file for file in one.files}
    for file in other.files:
        twin = places.get(_place(file))
        if twin is not None and twin.resolve() == file.resolve():
            raise ValueError(f"{file} is {twin}: an image must not be in both splits")
    firsts, seconds = one.files, other.files
    for key in _KEYS:
        keys = [_in_threads(key, files, "comparing images") for files in (firsts, seconds)]
        common = set(keys[0]) & set(keys[1])
        firsts, seconds = (
            [file for file, of_file in zip(files, of_files, strict=True) if of_file in common]
            for files, of_files in zip((firsts, seconds), keys, strict=True)
        )
    return seconds


def copies(folder: ImageFolder) -> list[Path]:
    """Returns the files of a split whose bytes an earlier file of it has, too."""
    files = folder.files
    for key in _KEYS:
        keys = dict(zip(files, _in_threads(key, files, "comparing images"), strict=True))
        counts = Counter(keys.values())
        files = [file for file in files if counts[keys[file]] > 1]
    first: dict[Any, Path] = {}
    return [file for file in files if first.setdefault(keys[file], file) != file]


@functools.cache
def _headers(files: tuple[Path, ...]) -> list[Header | None]:
    return _in_threads(_header, files, "looking at the images")


def headers(folder: ImageFolder) -> dict[Path, Header | None]:
    """Reads the headers of a split's images, of many just a part; None where a file is no image."""
    step = -(-len(folder.files) // _HEADERS_AT_MOST)
    files = tuple(folder.files[::step])
    return dict(zip(files, _headers(files), strict=True))


def _header(file: Path) -> Header | None:
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            return Header(image.size, image.mode, str(image.format), turned)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _place(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _bytes(file: Path) -> int:
    return file.stat().st_size


def _beginning(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.sha256(content.read(_BEGINNING)).digest()


def _whole(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


_KEYS: tuple[Callable[[Path], Any], ...] = (_bytes, _beginning, _whole)
"""What files are compared by, the cheapest first."""


def _check_classes(train: ImageFolder, validation: ImageFolder) -> None:
    for one, other in ((train, validation), (validation, train)):
        missing = [name for name in one.classes if name not in other.classes]
        if missing:
            raise ValueError(
                f"{one.path} has classes that {other.path} lacks: {listed(missing)}. Both splits "
                "need the same classes"
            )


def say(root: Path, notes: Iterable[str]) -> None:
    """Prints what is odd about a data set, between progress bars."""
    for note in notes:
        tqdm.write(f"{root}: {note}", file=sys.stderr)


def check_readable(folder: ImageFolder, mode: str) -> None:
    """Reads all images of a split once.

    Raises:
        ValueError: If one cannot be read, naming it.
    """

    def read(file: Path) -> None:
        read_image(file, mode)

    _in_threads(read, folder.files, f"reading {folder.path.name}")


def check_modes(found: Mapping[Path, Header | None]) -> None:
    """Checks that the range of all images' pixels is known.

    Raises:
        ValueError: If it is not, naming the image.
    """
    for file, header in found.items():
        if header and not has_known_range(header.mode, header.format):
            raise ValueError(
                f"{file} has pixels of mode {header.mode!r}, whose range is not known: save it "
                "with 8 or 16 bits a channel"
            )


def _counted(values: Iterable[Any]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())


def _in_threads(call: Callable[[In], Out], files: Sequence[In], title: str) -> list[Out]:
    with ThreadPoolExecutor() as threads:
        results = threads.map(call, files)
        return list(tqdm(results, total=len(files), desc=title, leave=False, disable=None))
