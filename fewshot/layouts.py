"""What each data set's files must hold, and the names of the classes in them.

Each function reads one file or folder, keeps nothing of it in memory, and says in a ValueError what
is wrong with it, without its name.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.pickles import load_plain


def mini_imagenet(path: Path) -> list[str]:
    """Reads ``mini-imagenet-cache-*.pkl``, and the classes' names in their order.

    Raises:
        ValueError: If it is not ``image_data``, uint8 ``[N, H, W, 3]``, and ``class_dict``, which
            gives each image to one class.
    """
    content = _dictionary(load_plain(path), "image_data", "class_dict")
    count = len(_images(content["image_data"], "image_data"))
    classes = content["class_dict"]
    if not isinstance(classes, dict) or not classes:
        raise ValueError("class_dict is no dictionary of classes")
    listed = [_integers(indices, f"class {name!r}") for name, indices in classes.items()]
    if not np.array_equal(np.sort(np.concatenate(listed)), np.arange(count)):
        raise ValueError(f"class_dict does not give each of the {count} images to one class")
    return _names(list(classes))


def tiered_labels(path: Path) -> list[str]:
    """Reads ``tiered-imagenet/*_labels.pkl``, and the classes' names by their number.

    Raises:
        ValueError: If it is not ``label_specific``, the class of each image, and
            ``label_specific_str``, the classes' names.
    """
    content = _dictionary(load_plain(path), "label_specific", "label_specific_str")
    names = _names([str(name) for name in np.asarray(content["label_specific_str"]).ravel()])
    there = np.unique(_integers(content["label_specific"], "label_specific"))
    if not np.array_equal(there, np.arange(len(names))):
        raise ValueError(
            f"label_specific is not in 0 ... {len(names) - 1}, as label_specific_str says"
        )
    return names


def tiered_images(path: Path) -> int:
    """Reads ``tiered-imagenet/*_images_png.pkl``, and the number of its images.

    Raises:
        ValueError: If it is no list of image files, each as bytes or uint8.
    """
    content = load_plain(path)
    if not isinstance(content, list) or not content:
        raise ValueError("is no list of images")
    for index, image in enumerate(content):
        if not isinstance(image, bytes) and np.asarray(image).dtype != np.uint8:
            raise ValueError(f"image {index} is neither bytes nor uint8")
    return len(content)


def fc100(path: Path) -> list[str]:
    """Reads ``FC100_*.pickle``, and the classes' names: it has only numbers, over all splits.

    Raises:
        ValueError: If it is not ``data``, uint8 ``[N, H, W, 3]``, and ``labels``, as many integers.
    """
    content = _dictionary(load_plain(path, "latin1"), "data", "labels")
    count = len(_images(content["data"], "data"))
    labels = _integers(content["labels"], "labels")
    if len(labels) != count:
        raise ValueError(f"has {count} images and {len(labels)} labels")
    return [fc100_name(number) for number in np.unique(labels).tolist()]


def fc100_name(number: int) -> str:
    """The name of a class that has only a number, the same in all splits."""
    return f"class {number}"


def cifarfs(folder: Path, split: str) -> list[str]:
    """Reads the names of a split's classes in ``cifarfs/cifar100``.

    Args:
        folder: It holds ``data/CLASS/*.png`` and ``splits/bertinetto/{train,val,test}.txt``.
        split: train, validation or test.

    Raises:
        ValueError: If a file is missing, or a class has no images.
    """
    listing = folder / "splits" / "bertinetto" / f"{short(split)}.txt"
    if not listing.is_file():
        raise ValueError(f"lacks {listing.relative_to(folder)}")
    names = _names(listing.read_text().split())
    for name in names:
        if not any((folder / "data" / name).glob("*.png")):
            raise ValueError(f"has no images in data/{name}, which {listing.name} lists")
    return sorted(names)


def short(split: str) -> str:
    """The split as these data sets' files are called."""
    return "val" if split == "validation" else split


def _dictionary(content: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"has no {key!r}")
    return content


def _images(value: Any, name: str) -> NDArray[Any]:
    images = np.asarray(value)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(
            f"{name} is not uint8 [N, H, W, 3], but {images.dtype} {list(images.shape)}"
        )
    return images


def _integers(value: Any, name: str) -> NDArray[Any]:
    numbers = np.asarray(value)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} is no list of integers")
    return numbers


def _names(names: list[Any]) -> list[str]:
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("names no classes")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names the class {twice!r} twice")
    return names
