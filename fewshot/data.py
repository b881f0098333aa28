"""Data sets in three splits that share no class: base, validation and novel classes.

Importing this file adds them to the harness's.
"""

import pickle
from functools import cache, partial
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from fewshot.config import PREFIX, DatasetName
from fewshot.downloads import SPLITS, Content, ensure_files, read_split
from harness.check import check_readable, remarks, same_images, say
from harness.config import DataConfig
from harness.data import register_dataset
from harness.folders import (
    VALIDATION_NAMES,
    ImageFolder,
    as_mode,
    find_split,
    listed,
    read_folder,
    read_image,
)
from harness.glyphs import CLASSES, Glyphs
from harness.store import replace_file

NAMES = get_args(DatasetName)
"""The data sets."""

# Shuffled, so that each split has digits, Latin, Greek and Cyrillic letters, and symbols.
_SHUFFLED = [CLASSES[index] for index in np.random.default_rng(2).permutation(len(CLASSES))]
_CHARACTERS = {"train": _SHUFFLED[:64], "validation": _SHUFFLED[64:80], "test": _SHUFFLED[80:]}
IMAGES_PER_CLASS = {"train": 100, "validation": 40, "test": 40}
"""The glyphs' numbers of images, by split."""


class ClassSplit(Dataset):
    """Images of one split, ``(PIL image in RGB, class index)`` each.

    Attributes:
        targets: The classes' indices, in ``0 ... len(classes) - 1``.
        classes: The classes' names, none of which another split has.
        transform: Applied to the image, if not None.
    """

    def __init__(self, root: Path, content: Content) -> None:
        self.targets = list(content.targets)
        self.classes = list(content.classes)
        self.transform: Any = None
        self._root, self._images = root, content.images

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = self._image(index)
        return image if self.transform is None else self.transform(image), self.targets[index]

    def _image(self, index: int) -> Image.Image:
        image = self._images[index]
        if isinstance(image, Path):
            return read_image(image, "RGB")
        if isinstance(image, np.ndarray) and image.ndim == 3:
            return Image.fromarray(image)
        try:
            return as_mode(Image.open(BytesIO(image)), "RGB")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._root}, image {index} cannot be read: {error}") from error


def open_split(name: str, root: Path, split: str, *, download: bool, image_size: int) -> ClassSplit:
    """Opens one split of a data set, and checks the three.

    The images are read once a process; each call gives an object of its own.

    Args:
        name: One of ``NAMES``.
        root: Where the files are; ``folder`` expects ``train|validation|test/CLASS/`` in it, with
            images at any depth; ``val`` or ``valid`` will do for validation.
        split: train (base classes), validation or test (novel classes).
        download: Fetch missing files of learn2learn's data sets.
        image_size: Height and width of the glyphs in pixels; other images keep their size.

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
    return ClassSplit(root, _content(name, root, split))


def write_glyphs(root: Path, image_size: int) -> Path:
    """Draws the glyphs that are not there yet, into files of mini-ImageNet's layout.

    Returns their folder, ``root/glyphs-{image_size}``. The bits are the same each time.
    """
    folder = root / f"glyphs-{image_size}"
    for split, characters in _CHARACTERS.items():
        path = folder / f"mini-imagenet-cache-{split}.pkl"
        if path.exists():
            continue
        samples = IMAGES_PER_CLASS[split] * len(characters)
        glyphs = Glyphs(split, samples, image_size, classes=characters)
        class_dict = {
            character: list(range(index, samples, len(characters)))
            for index, character in enumerate(characters)
        }
        content = {"image_data": glyphs.images, "class_dict": class_dict}
        replace_file(path, pickle.dumps(content))
    return folder


@cache
def _check_disjoint(name: str, root: Path) -> None:
    for one, other in combinations(SPLITS, 2):
        names = [set(_content(name, root, split).classes) for split in (one, other)]
        common = sorted(names[0] & names[1])
        if common:
            raise ValueError(
                f"dataset={name!r} with root={str(root)!r} has classes that are both in {one} and "
                f"in {other}: {listed(common)}"
            )
        same = name == "folder" and same_images(_folder(root, one), _folder(root, other))
        if same:
            say(root, [f"{len(same)} images of {other!r} are in {one!r} too: {listed(same)}"])


@cache
def _content(name: str, root: Path, split: str) -> Content:
    if name == "folder":
        folder = _folder(root, split)
        return Content(folder.files, folder.targets, folder.classes)
    return read_split(name, root, split)


@cache
def _folder(root: Path, split: str) -> ImageFolder:
    others = VALIDATION_NAMES if split == VALIDATION_NAMES[0] else ()
    folder = read_folder(find_split(root, split, others))
    notes = remarks(folder)
    check_readable(folder, "RGB")
    say(root, notes)
    return folder


def _open(name: str, config: DataConfig, split: str) -> ClassSplit:
    root = Path(config.data_dir or "~/data")
    size = config.image_size
    return open_split(name, root, split, download=config.dataset_download, image_size=size)


for _name in NAMES:
    _hflip = 0.0 if _name == "glyphs" else 0.5  # characters are not the same in a mirror
    register_dataset(PREFIX + _name, partial(_open, _name), _hflip)
