"""Files of learn2learn's data sets: where they are, what they must hold, and their downloads."""

import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.request import urlopen
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewshot.pickles import load_plain

SPLITS = ("train", "validation", "test")
ZENODO = "https://zenodo.org/record/7978538/files"  # the record that learn2learn's source names
_TIMEOUT = 60  # seconds without a byte


class Content(NamedTuple):
    """Images of a split, as the file has them, and the classes."""

    images: Sequence[Any]
    targets: list[int]
    classes: list[str]


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder that an archive holds."""

    place: str  # below the data set's root
    source: str | None  # its name or its archive's in the Zenodo record; None if it is made here
    check: Callable[[Path], Any]  # reads it; a ValueError says what is wrong, without its name

    @property
    def url(self) -> str:
        """The address to download it from."""
        return f"{ZENODO}/{self.source}"

    def read(self, root: Path) -> Any:
        """Checks and reads the file, and names it in the error."""
        try:
            return self.check(root / self.place)
        except (OSError, ValueError) as error:
            raise self.wrong(root, str(error)) from error

    def wrong(self, root: Path, what: str) -> ValueError:
        """Makes the error that says what is wrong with the file and what to do."""
        anew = f"let --download fetch it anew from {self.url}" if self.source else "start again"
        return ValueError(f"{root / self.place} {what}. Delete it and {anew}")


def data_files(name: str, split: str) -> list[DataFile]:
    """Lists the files of a split."""
    short = "val" if split == "validation" else split
    if name == "cifarfs":
        return [DataFile("cifarfs/cifar100", "cifar100.zip", partial(_cifarfs, split=short))]
    if name == "fc100":
        return [DataFile(f"FC100_{short}.pickle", "fc100.zip", _fc100)]
    if name == "tiered-imagenet":
        return [
            DataFile(f"{name}/{short}_{part}.pkl", f"{name}-{short}_{part}.pkl", check)
            for part, check in (("labels", _tiered_labels), ("images_png", _tiered_images))
        ]
    place = f"mini-imagenet-cache-{split}.pkl"
    return [DataFile(place, None if name == "glyphs" else place, _mini_imagenet)]


def read_split(name: str, root: Path, split: str) -> Content:
    """Checks and reads a split's files; raises a ValueError if one is not what it should be."""
    first, *more = data_files(name, split)
    content: Content = first.read(root)
    for file in more:  # tiered-ImageNet's images
        images = file.read(root)
        if len(images) != len(content.targets):
            count = f"has {len(images)} images, but its labels' file has {len(content.targets)}"
            raise file.wrong(root, count)
        content = content._replace(images=images)
    return content


def ensure_files(name: str, root: Path, fetch: bool) -> None:
    """Checks that all files of a data set are there, or fetches them; does not open them."""
    missing = defaultdict(list)
    for split in SPLITS:
        for file in data_files(name, split):
            if not (root / file.place).exists():
                missing[file.url].append(file)
    for url, files in missing.items():
        if not fetch:
            first = root / files[0].place
            way = f"unpack {url} in {first.parent}" if url.endswith(".zip") else f"put {url} there"
            raise ValueError(
                f"dataset={name!r} with root={str(root)!r} lacks {first}: --download fetches it, "
                f"or {way} yourself"
            )
        _download(url, root, files)


def _download(url: str, root: Path, files: list[DataFile]) -> None:
    """Downloads a file, or an archive of several; each gets its place once all are checked."""
    places = [root / file.place for file in files]
    parent = places[0].parent
    parent.mkdir(parents=True, exist_ok=True)
    # Beside the places, so that a rename is at once.
    with TemporaryDirectory(prefix="unfinished-", dir=parent) as folder:
        came = [Path(folder, place.name) for place in places]
        part = Path(folder, "archive.zip") if url.endswith(".zip") else came[0]
        _fetch(url, part)
        try:
            if url.endswith(".zip"):
                _unpack(part)
            for file, part in zip(files, came, strict=True):
                file.check(part)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{url} is not the file that it should be, so it was not kept: {part.name} {error}"
            ) from error
        for part, place in zip(came, places, strict=True):
            if not place.exists():  # else another process was faster
                os.replace(part, place)


def _fetch(url: str, place: Path) -> None:
    # Not torchvision's download_url, which takes a file that breaks off for whole, waits for a
    # silent server without end, and tries http where https fails.
    try:
        with urlopen(url, timeout=_TIMEOUT) as answer, place.open("wb") as file:
            size = int(answer.headers.get("Content-Length", 0))
            title = url.rpartition("/")[2]
            with tqdm.wrapattr(answer, "read", size or None, desc=title, disable=None) as shown:
                shutil.copyfileobj(shown, file)
            if file.tell() < size:
                raise OSError(f"the connection broke off after {file.tell()} of {size} bytes")
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"cannot download {url}: {error}. Try again later, or from another network"
        ) from error


def _unpack(archive: Path) -> None:
    try:
        with archive.open("rb") as file:
            _require(file.read(1) != b"<", "is a web page (HTML), no archive")
        with ZipFile(archive) as content:
            content.extractall(archive.parent)
    except (BadZipFile, zlib.error) as error:
        raise ValueError(f"is no whole archive: {error}") from error


def _mini_imagenet(path: Path) -> Content:
    content = load_plain(path)
    images = _images(content, "image_data")
    classes = _value(content, "class_dict")
    _require(isinstance(classes, dict) and classes, "class_dict is no dictionary of classes")
    listed = [_integers(indices, f"class {name!r}") for name, indices in classes.items()]
    order, count = np.concatenate(listed), len(images)
    whole = np.array_equal(np.sort(order), np.arange(count))
    _require(whole, f"class_dict does not give each of the {count} images to one class")
    targets = np.empty(count, dtype=int)
    targets[order] = np.repeat(np.arange(len(listed)), list(map(len, listed)))
    return Content(images, targets.tolist(), _names(list(classes)))


def _fc100(path: Path) -> Content:
    content = load_plain(path, "latin1")
    images, labels = _images(content, "data"), _integers(_value(content, "labels"), "labels")
    counts = f"has {len(images)} images and {len(labels)} labels"
    _require(len(labels) == len(images), counts)
    numbers, targets = np.unique(labels, return_inverse=True)  # numbered over all splits
    return Content(images, targets.tolist(), [f"class {number}" for number in numbers])


def _tiered_labels(path: Path) -> Content:
    content = load_plain(path)
    names = np.asarray(_value(content, "label_specific_str")).ravel()
    targets = _integers(_value(content, "label_specific"), "label_specific")
    classes = _names([str(name) for name in names])
    known = np.array_equal(np.unique(targets), np.arange(len(classes)))
    last = len(classes) - 1
    _require(known, f"label_specific is not in 0 ... {last}, as label_specific_str says")
    return Content([], targets.tolist(), classes)


def _tiered_images(path: Path) -> list[Any]:
    content = load_plain(path)
    _require(isinstance(content, list) and content, "is no list of images")
    images = [image if isinstance(image, bytes) else np.asarray(image) for image in content]
    for index, image in enumerate(images):
        known = isinstance(image, bytes) or image.dtype == np.uint8
        _require(known, f"image {index} is neither bytes nor uint8")
    return images


def _cifarfs(folder: Path, split: str) -> Content:
    """Reads ``data/CLASS/*.png`` of the classes in ``splits/bertinetto/{train,val,test}.txt``."""
    listing = folder / "splits" / "bertinetto" / f"{split}.txt"
    _require(listing.is_file(), f"lacks {listing.relative_to(folder)}")
    images, targets = [], []
    classes = sorted(_names(listing.read_text().split()))
    for target, name in enumerate(classes):
        files = sorted((folder / "data" / name).glob("*.png"))
        _require(files, f"has no images in data/{name}, which {listing.name} lists")
        images += files
        targets += [target] * len(files)
    return Content(images, targets, classes)


def _value(content: Any, key: str) -> Any:
    _require(isinstance(content, dict) and key in content, f"has no {key!r}")
    return content[key]


def _images(content: Any, key: str) -> NDArray[np.uint8]:
    images = np.asarray(_value(content, key))
    known = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and images.size
    kind = f"{images.dtype} {list(images.shape)}"
    _require(known, f"{key} is not uint8 [N, H, W, 3], but {kind}")
    return images


def _integers(value: Any, name: str) -> NDArray[Any]:
    numbers = np.asarray(value)
    known = numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iu"
    _require(known, f"{name} is no list of integers")
    return numbers


def _names(names: list[Any]) -> list[str]:
    _require(names and all(isinstance(name, str) for name in names), "names no classes")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"names the class {twice[0]!r} twice")
    return names


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise ValueError(what)
