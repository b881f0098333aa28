"""Data sets in three splits that share no class: base, validation and novel classes."""

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from learn2learn.vision import datasets
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from fewshot.cifarfs import open_cifarfs
from fewshot.files import SPLITS, ensure_files, names_file, tiered_images
from fewshot.glyphs import write_glyphs
from fewshot.layouts import fc100_name
from fewshot.pickles import load_plain
from harness.check import check_modes, check_readable, headers, oddities, same_images, say
from harness.folders import (
    VALIDATION_NAMES,
    ImageFolder,
    as_mode,
    find_split,
    listed,
    read_folder,
    read_image,
)

NAMES = ("glyphs", "folder", "mini-imagenet", "tiered-imagenet", "cifarfs", "fc100")


class ClassSplit(Dataset):
    """The images of one split, ``(PIL image in RGB, class index)`` each.

    Attributes:
        targets: The classes' indices, in ``0 ... len(classes) - 1``.
        classes: The classes' names, none of which another split has.
        transform: Applied to the image, if not None.
    """

    def __init__(
        self, targets: Sequence[int], classes: Sequence[str], image: Callable[[int], Image.Image]
    ) -> None:
        self.targets = list(targets)
        self.classes = list(classes)
        self.transform: Any = None
        self._image = image

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = self._image(index)
        return image if self.transform is None else self.transform(image), self.targets[index]


def open_split(name: str, root: Path, split: str, *, download: bool, image_size: int) -> ClassSplit:
    """Opens one split of a data set, and checks the three.

    Args:
        name: One of :data:`NAMES`.
        root: Where the files are; ``folder`` expects ``train|validation|test/CLASS/`` in it, with
            images at any depth; ``val`` or ``valid`` will do for validation.
        split: train (base classes), validation or test (novel classes).
        download: Fetch missing files of learn2learn's data sets.
        image_size: Height and width of the glyphs in pixels; other images keep their size.

    Returns:
        An object of its own at each call; the images are read once a process.

    Raises:
        ValueError: If a file is missing or not what it should be, cannot be downloaded, or a class
            is in two splits.
    """
    if name not in NAMES:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    root = Path(root).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise ValueError(f"root must be a folder, got {str(root)!r}")
    if name == "glyphs":
        root = write_glyphs(root, image_size)
    elif name != "folder":
        ensure_files(name, root, download)
    _check_disjoint(name, root)
    opened = copy.copy(_open(name, root, split))
    opened.targets, opened.classes = list(opened.targets), list(opened.classes)
    return opened


@cache
def _check_disjoint(name: str, root: Path) -> None:
    names = {split: set(_class_names(name, root, split)) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        common = sorted(names[one] & names[other])
        if common:
            raise ValueError(
                f"dataset={name!r} with root={str(root)!r} has classes that are both in {one} and "
                f"in {other}: {listed(common)}"
            )
    if name == "folder":
        _compare_folders(root)


@cache
def _class_names(name: str, root: Path, split: str) -> list[str]:
    if name == "folder":
        return _open(name, root, split).classes
    names: list[str] = names_file(name, split).read(root)
    return names


@cache
def _open(name: str, root: Path, split: str) -> ClassSplit:
    """Opens files that were checked before, each by :func:`_class_names`."""
    if name == "folder":
        return _open_folder(root, split)
    if name == "tiered-imagenet":
        return _open_tiered(root, split)
    if name == "cifarfs":
        opened = open_cifarfs(root, split)
        return ClassSplit(opened.targets, opened.classes, partial(_image_in, opened))
    if name == "fc100":
        return _open_fc100(root, split)
    return _open_mini_imagenet(root / names_file(name, split).place)


@cache
def _read_folder(root: Path, split: str) -> ImageFolder:
    others = VALIDATION_NAMES if split == VALIDATION_NAMES[0] else ()
    folder = read_folder(find_split(root, split, others))
    found = headers(folder)
    check_modes(found)
    check_readable(folder, "RGB")
    say(root, oddities(folder, found))
    return folder


def _open_folder(root: Path, split: str) -> ClassSplit:
    folder = _read_folder(root, split)
    return ClassSplit(folder.targets, folder.classes, partial(_image_of_file, folder.files))


def _compare_folders(root: Path) -> None:
    """Says which images are in two splits, whose classes have other names."""
    for one, other in combinations(SPLITS, 2):
        same = same_images(_read_folder(root, one), _read_folder(root, other))
        if same:
            say(root, [f"{len(same)} images of {other!r} are in {one!r} too: {listed(same)}"])


def _open_mini_imagenet(path: Path) -> ClassSplit:
    """Reads what learn2learn's ``MiniImagenet`` reads, which also makes a copy in float32."""
    content = load_plain(path)
    images = np.asarray(content["image_data"])
    targets = np.empty(len(images), dtype=int)
    for target, indices in enumerate(content["class_dict"].values()):
        targets[np.asarray(indices)] = target
    names = list(map(str, content["class_dict"]))
    return ClassSplit(targets.tolist(), names, partial(_image_of_array, images))


def _open_tiered(root: Path, split: str) -> ClassSplit:
    names = _class_names("tiered-imagenet", root, split)
    images = tiered_images(split)
    count = images.read(root)
    opened = datasets.TieredImagenet(str(root), split)
    if len(opened) != count:
        raise ValueError(
            f"{root / images.place} has {count} images, but its labels' file has {len(opened)}. "
            f"Delete it and let --download fetch it anew from {images.url}"
        )
    return ClassSplit([int(label) for label in opened.labels], names, partial(_image_in, opened))


def _open_fc100(root: Path, split: str) -> ClassSplit:
    names = _class_names("fc100", root, split)
    index = {name: position for position, name in enumerate(names)}
    opened = datasets.FC100(str(root), split)
    targets = [index[fc100_name(int(label))] for label in opened.labels]
    return ClassSplit(targets, names, partial(_image_in, opened))


def _image_of_array(images: NDArray[np.uint8], index: int) -> Image.Image:
    return Image.fromarray(images[index])


def _image_of_file(files: Sequence[Path], index: int) -> Image.Image:
    return read_image(files[index], "RGB")


def _image_in(dataset: Any, index: int) -> Image.Image:
    try:
        return as_mode(dataset[index][0], "RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"{dataset.root}, image {index} cannot be read: {error}") from error
