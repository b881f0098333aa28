"""Small made-up files in the layouts of learn2learn's data sets."""

import io
import pickle
import struct
import zipfile
from typing import ClassVar

import numpy as np
from PIL import Image

SPLITS = ("train", "validation", "test")
SHORT = {"train": "train", "validation": "val", "test": "test"}
# A split's classes: more in the base split, as in the real data.
CLASSES = {
    "train": ["n01", "n02", "n03", "n04"],
    "validation": ["n05", "n06"],
    "test": ["n07", "n08", "n09"],
}
EACH = 5  # images of a class
SIDE = 12  # pixels


def pixels(split, seed=0):
    """Returns images uint8 [N, H, W, 3] and the class index of each, in a shuffled order."""
    random = np.random.default_rng([seed, SPLITS.index(split)])
    count = EACH * len(CLASSES[split])
    images = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return images, random.permutation(count) % len(CLASSES[split])


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class _Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did: bytes, of no known encoding."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_string(self, text):
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = _save_string


def python2_pickle(content):
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def mini_imagenet(root, protocol=4, classes=CLASSES):
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, targets = pixels(split)
        class_dict = {
            name: np.flatnonzero(targets == index).tolist()
            for index, name in enumerate(classes[split])
        }
        content = {"image_data": images, "class_dict": class_dict}
        path = root / f"mini-imagenet-cache-{split}.pkl"
        path.write_bytes(pickle.dumps(content, protocol))


def tiered_imagenet(root, classes=CLASSES):
    folder = root / "tiered-imagenet"
    folder.mkdir(parents=True)
    for split in SPLITS:
        images, targets = pixels(split)
        encoded = [np.frombuffer(png(image), np.uint8) for image in images]
        labels = {
            "label_specific": targets.astype(np.int32),
            "label_general": np.zeros(len(targets), np.int32),
            "label_specific_str": classes[split],
            "label_general_str": [split],
        }
        for name, content in (("images_png", encoded), ("labels", labels)):
            path = folder / f"{SHORT[split]}_{name}.pkl"
            path.write_bytes(pickle.dumps(content))


def fc100(root):
    """Classes are numbers over all splits, in files that Python 2 wrote."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, targets = pixels(split)
        labels = [int(CLASSES[split][target][1:]) for target in targets]
        content = python2_pickle({"data": images, "labels": labels})
        (root / f"FC100_{SHORT[split]}.pickle").write_bytes(content)


def cifarfs(root):
    folder = root / "cifarfs" / "cifar100"
    listings = folder / "splits" / "bertinetto"
    listings.mkdir(parents=True)
    for split in SPLITS:
        (listings / f"{SHORT[split]}.txt").write_text("\n".join(CLASSES[split]) + "\n")
        images, targets = pixels(split)
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            place = folder / "data" / CLASSES[split][target] / f"{index:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png(image))


def folder(root, classes=CLASSES):
    for split in SPLITS:
        images, targets = pixels(split)
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            place = root / split / classes[split][target] / f"{index:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png(image))


MAKERS = {
    "mini-imagenet": mini_imagenet,
    "tiered-imagenet": tiered_imagenet,
    "fc100": fc100,
    "cifarfs": cifarfs,
    "folder": folder,
}


def zenodo_files(name, root):
    """Returns the files of the Zenodo record for a data set made in ``root``, by name."""
    MAKERS[name](root)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    if name == "mini-imagenet":
        return {path.name: path.read_bytes() for path in paths}
    if name == "tiered-imagenet":
        return {f"tiered-imagenet-{path.name}": path.read_bytes() for path in paths}
    file = io.BytesIO()
    top = root / "cifarfs" if name == "cifarfs" else root
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(top))
    return {"cifar100.zip" if name == "cifarfs" else "fc100.zip": file.getvalue()}
