"""Which files each of learn2learn's data sets needs, where they come from and where they go."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fewshot import layouts
from fewshot.downloads import download, download_zip

ZENODO = "https://zenodo.org/record/7978538/files"  # the record that learn2learn's source names
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder that an archive holds, at its place below the root."""

    place: str
    source: str | None
    """The file's name in the Zenodo record; None if it is made here."""
    check: Callable[[Path], Any]
    """Reads it, and raises a ValueError that says what is wrong with it."""

    @property
    def url(self) -> str:
        """Where it can be downloaded."""
        return f"{ZENODO}/{self.source}"

    def read(self, root: Path) -> Any:
        """Checks the file and returns what the check makes of it.

        Raises:
            ValueError: If the file is not what it should be.
        """
        path = root / self.place
        try:
            return self.check(path)
        except (OSError, ValueError) as error:
            anew = f"let --download fetch it anew from {self.url}" if self.source else "start again"
            raise ValueError(f"{path} {error}. Delete it and {anew}") from error


def ensure_files(name: str, root: Path, fetch: bool) -> None:
    """Sees that all files of a data set are there; does not look into those that were.

    Args:
        name: mini-imagenet, tiered-imagenet, cifarfs or fc100.
        root: The folder that learn2learn's classes get.
        fetch: Download what is missing.

    Raises:
        ValueError: If a file is missing, or cannot be downloaded.
    """
    missing = defaultdict(list)
    for file in data_files(name):
        if not (root / file.place).exists():
            missing[file.url].append(file)
    for url, files in missing.items():
        places = {root / file.place: file.check for file in files}
        if not fetch:
            first = next(iter(places))
            way = f"unpack {url} in {first.parent}" if url.endswith(".zip") else f"put {url} there"
            raise ValueError(
                f"dataset={name!r} with root={str(root)!r} lacks {first}: --download fetches it, "
                f"or {way} yourself"
            )
        if url.endswith(".zip"):
            download_zip(url, places)
        else:
            ((place, check),) = places.items()
            download(url, place, check)


def data_files(name: str) -> list[DataFile]:
    """Lists a data set's files."""
    if name == "cifarfs":
        return [DataFile("cifarfs/cifar100", "cifar100.zip", _all_of_cifarfs)]
    files = [names_file(name, split) for split in SPLITS]
    if name == "tiered-imagenet":
        files += [tiered_images(split) for split in SPLITS]
    return files


def names_file(name: str, split: str) -> DataFile:
    """The file whose check gives the names of a split's classes."""
    short = layouts.short(split)
    if name in ("glyphs", "mini-imagenet"):
        place = f"mini-imagenet-cache-{split}.pkl"
        source = None if name == "glyphs" else place
        return DataFile(place, source, layouts.mini_imagenet)
    if name == "tiered-imagenet":
        return _tiered(f"{short}_labels.pkl", layouts.tiered_labels)
    if name == "fc100":
        return DataFile(f"FC100_{short}.pickle", "fc100.zip", layouts.fc100)
    return DataFile("cifarfs/cifar100", "cifar100.zip", partial(layouts.cifarfs, split=split))


def tiered_images(split: str) -> DataFile:
    """The file of a split's images."""
    return _tiered(f"{layouts.short(split)}_images_png.pkl", layouts.tiered_images)


def _tiered(file: str, check: Callable[[Path], Any]) -> DataFile:
    return DataFile(f"tiered-imagenet/{file}", f"tiered-imagenet-{file}", check)


def _all_of_cifarfs(folder: Path) -> None:
    for split in SPLITS:
        layouts.cifarfs(folder, split)
