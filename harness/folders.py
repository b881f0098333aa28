"""Folders of images: finds splits, classes and images, and reads them.

A split is a folder, its direct subfolders are the classes, and a class holds images at any depth.
Names that begin with a dot do not count.
"""

import functools
import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, add_img_extensions
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset
from tqdm import tqdm

VALIDATION_NAMES = ("validation", "val", "valid")
_ONLY_IDENTIFIED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow opens them, and reads no pixel
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split: files and targets side by side, in an order that is total."""

    path: Path
    classes: list[str]
    files: list[Path]
    targets: list[int]
    skipped: list[Path]
    """Files beside the classes, and files in them that are no images."""
    hidden: int
    """The number of names that begin with a dot."""


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of all formats that Pillow reads, in lower case with their dot."""
    Image.init()
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _ONLY_IDENTIFIED
    )


def stand_ins(split: str) -> tuple[str, ...]:
    """Returns the names that may stand for the default split to measure on."""
    return (*VALIDATION_NAMES, "test") if split == VALIDATION_NAMES[0] else ()


def find_split(root: Path, name: str, others: Sequence[str] = ()) -> Path:
    """Finds the folder of a split, or the only one of the ``others`` where there is none.

    Case counts only where two folders differ by it. Raises ValueError where none is found.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise ValueError(f"data_dir={str(root)!r}: {what}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not _is_hidden(p))
    exact = [p for p in folders if p.name == name]
    found = exact or [p for p in folders if p.name.lower() == name.lower()]
    found = found or [p for p in folders if p.name.lower() in others]
    if len(found) == 1:
        return found[0]
    there = ", ".join(p.name for p in found or folders[:20]) or "no folder"
    if found:
        raise ValueError(
            f"{root} has no folder {name!r}, but more than one that may stand for it: {there}. "
            "Name the one to take"
        )
    tried = " or ".join(dict.fromkeys([name, *others]))
    raise ValueError(
        f"{root} has no folder {tried} for the split {name!r}: it has {there}. Put a split's "
        "classes into a folder of its own, or name the folder to take"
    )


def read_folder(path: Path) -> ImageFolder:
    """Lists the images of a split; raises ValueError if there are none, or none of a class."""
    there = list(path.iterdir())
    visible = [p for p in there if not _is_hidden(p)]
    folders: dict[str, Path] = {}
    for folder in filter(Path.is_dir, visible):
        name = _printable(folder.name)
        if folders.setdefault(name, folder) != folder:
            raise ValueError(f"{path} has two folders that read {name!r}: rename one")
    if not folders:
        raise ValueError(f"{path} has no folder of images: it needs one for each class")
    hidden = len(there) - len(visible)
    skipped = [p for p in visible if not p.is_dir()]
    classes = sorted(folders, key=natural_order)
    files: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        images = []
        for file in _walk(folders[name]):
            if any(part.startswith(".") for part in file.relative_to(path).parts):
                hidden += 1
            elif file.suffix.lower() in image_extensions():
                images.append(file)
            else:
                skipped.append(file)
        if not images:
            raise ValueError(
                f"class {name!r} has no images in {folders[name]}: add some, or take the folder "
                "away. Images are files that Pillow reads, by their extension"
            )
        files += sorted(images, key=lambda file: natural_order(_printable(str(file))))
        targets += [target] * len(images)
    return ImageFolder(path, classes, files, targets, sorted(skipped), hidden)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _walk(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder, through links too, but never into a folder above itself."""
    for place, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(p) for p in (place, *Path(place).parents)}
        folders[:] = [n for n in folders if os.path.realpath(os.path.join(place, n)) not in above]
        yield from (Path(place, file) for file in files)


def _printable(name: str) -> str:
    """Returns a name as text: one form for each accent, and bytes that are no UTF-8 spelled out."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def natural_order(name: str) -> tuple[list[Any], str]:
    """Returns the key of timm's order, numbers by their value and case aside, made total."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], name


def listed(names: Sequence[Any]) -> str:
    """Names the first few of many."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(map(str, names[:_NAMED_AT_MOST])) + (f" and {more} more" if more > 0 else "")


def image_mode(channels: int) -> str:
    """Returns Pillow's mode of images of one or three channels."""
    return "L" if channels == 1 else "RGB"


def has_known_range(mode: str, kind: str | None) -> bool:
    """Tells whether the range of an image's pixels is known, by Pillow's mode and format."""
    return mode != "F" and (mode != "I" or kind == "PNG")


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image to 8 bits a channel, as ``PIL.Image.convert``, but scales 16 bits.

    The EXIF orientation is not applied, as in timm and torchvision. Raises ValueError if the
    pixels' range is not known, or the file is no whole image.
    """
    try:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            pixels = np.asarray(image).astype(np.float64) / 257
            image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
        elif not has_known_range(image.mode, image.format):
            raise ValueError(
                f"pixels of mode {image.mode!r} have no known range: save them with 8 or 16 bits"
            )
        return image if image.mode == mode else image.convert(mode)
    except (OSError, SyntaxError, IndexError) as error:  # Pillow raises any of them
        raise ValueError(f"no whole image: {error}") from error


def read_image(file: Path, mode: str) -> Image.Image:
    """Reads an image file as ``as_mode``, and names it in the error."""
    try:
        with Image.open(file) as image:
            return as_mode(image, mode)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


class FolderImages(Dataset):
    """The images of a folder in one mode, ``(PIL image, class index)`` each.

    With ``replace`` the next image stands in for one that cannot be read, as in timm; it is named
    then, and counted.
    """

    def __init__(self, folder: ImageFolder, mode: str, replace: bool) -> None:
        self.classes = folder.classes
        self.targets = folder.targets
        self.files = folder.files
        self.mode = mode
        self.replace = replace
        self.transform: Any = None
        self._broken = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        for place in itertools.chain(range(index, len(self)), range(index)):
            try:
                image = read_image(self.files[place], self.mode)
            except ValueError as error:
                if not self.replace:
                    raise
                if not self._broken[place]:
                    self._broken[place] = True
                    tqdm.write(f"{error}; the next image stands in for it", file=sys.stderr)
            else:
                return image if self.transform is None else self.transform(image), self.targets[
                    place
                ]
        raise ValueError(f"{self.files[index].parent}: none of {len(self)} images can be read")

    @property
    def broken(self) -> int:
        """The number of images that others stood in for, in all processes."""
        return int(self._broken.sum())


def open_tar(root: Path, split: str) -> ImageDataset:
    """Opens ``SPLIT.tar``, read by timm, with the classes that its folder would have."""
    names = dict.fromkeys((split, *stand_ins(split)))
    found = [root / f"{name}.tar" for name in names if (root / f"{name}.tar").is_file()]
    if not found or (len(found) > 1 and found[0].stem != split):
        there = listed(sorted(path.name for path in root.glob("*.tar"))) or "no .tar file"
        raise ValueError(f"{root} has no {split}.tar, or more than one for it: it has {there}")
    add_img_extensions(sorted(image_extensions()))
    reader = ReaderImageInTar(str(found[0]))
    members = [[p for p in sample[0].name.split("/") if p != "."] for sample in reader.samples]
    if len({parts[0] for parts in members}) == 1 and all(len(parts) > 2 for parts in members):
        members = [parts[1:] for parts in members]  # the split's own folder was packed
    if any(len(parts) < 2 for parts in members):
        raise ValueError(f"{found[0]} has images beside the classes' folders")
    seen = [i for i, parts in enumerate(members) if not any(p.startswith(".") for p in parts)]
    classes = sorted({members[index][0] for index in seen}, key=natural_order)
    reader.class_name_to_idx = {name: target for target, name in enumerate(classes)}
    reader.samples = [reader.samples[index] for index in seen]
    reader.targets = [reader.class_name_to_idx[members[index][0]] for index in seen]
    return ImageDataset(str(found[0]), reader=reader, input_img_mode="")
