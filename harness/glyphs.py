"""An embedded data set of characters over crops of photographs, drawn when it is opened.

The faces are the ones that matplotlib ships (DejaVu, STIX), the photographs scikit-learn's
(``china.jpg`` and ``flower.jpg``, CC BY). Nothing is downloaded, any image size can be had, the
same seed gives the same bits, and each image's foreground is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset
from tqdm import tqdm

# Characters that every face holds and that no other one resembles at any size, rotated by up to 30
# degrees: C but not c, O and 0 neither.
CLASSES = tuple(
    "123456789"
    "ABCDEFGHJKLMNPQRSTUVWXYZ"
    "abdefghmnqrt"
    "ΓΔΘΛΞΠΣΦΨΩ"
    "βγδζλμξπσω"
    "БДЖИЦЧШЫЭЮЯЉѢ"
    "@#$%&?+§¶£¥€‡©"
    "Æßþðø"
    "÷«¿"
)
FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
SPLITS = ("train", "validation", "test")
_DRAWN_SIZE = 96  # pixels; each character is drawn once a face, then scaled down
_LEAST_CONTRAST = 0.3  # of the character's colour to the background's, in [0, 1]


@dataclass(frozen=True)
class _Drawing:
    """The random properties of one image; lengths and places are shares of its size."""

    face: int
    rotation: float
    scale: float
    place: tuple[float, float]
    photograph: int
    crop: tuple[float, float, float]
    colours: NDArray[np.float64]


class Glyphs(Dataset):
    """Images of characters, ``(PIL image, class index)`` each, the classes in turn.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``; no image is in two of them.
        samples: The number of images.
        size: Height and width in pixels, at least 8.
        seed: The same seed gives the same images.
        classes: Take so many characters, the first ones; or these characters.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        split: str = "train",
        samples: int = 10_000,
        size: int = 32,
        seed: int = 0,
        classes: int | Sequence[str] = len(CLASSES),
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels, got {size}")
        self.classes = _choose(classes)
        self.transform = None
        self.targets = [index % len(self.classes) for index in range(samples)]
        self.images = np.empty((samples, size, size, 3), dtype=np.uint8)
        self.masks = np.empty((samples, size, size), dtype=np.uint8)
        for index in tqdm(range(samples), desc=f"glyphs {split}", leave=False, disable=None):
            random = np.random.default_rng([seed, SPLITS.index(split), index])
            self.images[index], self.masks[index] = _render(
                self.classes[self.targets[index]], _draw(random), size
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index])
        return image if self.transform is None else self.transform(image), self.targets[index]


def _choose(classes: int | Sequence[str]) -> list[str]:
    if isinstance(classes, int):
        if not 2 <= classes <= len(CLASSES):
            raise ValueError(f"classes must be in [2, {len(CLASSES)}], got {classes}")
        return list(CLASSES[:classes])
    if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(CLASSES):
        raise ValueError(f"classes must be two or more different glyphs, got {classes!r}")
    return list(classes)


def _draw(random: np.random.Generator) -> _Drawing:
    return _Drawing(
        face=int(random.integers(len(FACES))),
        rotation=random.uniform(-30, 30),
        scale=random.uniform(0.45, 0.75),
        place=(random.random(), random.random()),
        photograph=int(random.integers(len(_photographs()))),
        crop=(random.uniform(0.2, 0.8), random.random(), random.random()),
        colours=random.random((16, 3)),
    )


def _render(character: str, drawing: _Drawing, size: int):
    """Renders an image ``[size, size, 3]`` and the mask of its character ``[size, size]``."""
    background = _background(drawing, size)
    stencil = _stencil(character, drawing.face).rotate(
        drawing.rotation, resample=Image.Resampling.BICUBIC, expand=True
    )
    stencil = stencil.crop(stencil.getbbox())
    shrink = drawing.scale * size / max(stencil.size)
    width, height = (max(1, round(side * shrink)) for side in stencil.size)
    stencil = stencil.resize((width, height), resample=Image.Resampling.BOX)
    top = round(drawing.place[0] * (size - height))
    left = round(drawing.place[1] * (size - width))
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + height, left : left + width] = np.asarray(stencil)
    opacity = mask[:, :, None] / 255
    colour = _contrasting(drawing.colours, (background * opacity).sum((0, 1)) / opacity.sum() / 255)
    image = background * (1 - opacity) + 255 * colour * opacity
    return np.round(image).astype(np.uint8), mask


def _background(drawing: _Drawing, size: int) -> NDArray[np.float64]:
    photograph = _photographs()[drawing.photograph]
    share, down, right = drawing.crop
    side = share * min(photograph.size)
    left = right * (photograph.width - side)
    top = down * (photograph.height - side)
    crop = photograph.resize(
        (size, size), resample=Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    return np.asarray(crop, dtype=np.float64)


def _contrasting(colours: NDArray[np.float64], behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the first colour that stands out from what is behind, else the one that does most."""
    contrast = np.abs((colours - behind) @ [0.299, 0.587, 0.114])
    enough = np.flatnonzero(contrast >= _LEAST_CONTRAST)
    return colours[enough[0] if len(enough) else contrast.argmax()]


@cache
def _stencil(character: str, face: int) -> Image.Image:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FACES[face]}.ttf")
    font = ImageFont.truetype(str(path), _DRAWN_SIZE, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(character)
    stencil = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(stencil).text((1 - left, 1 - top), character, fill=255, font=font)
    return stencil


@cache
def _photographs() -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(image) for image in load_sample_images().images)
