"""Correct answers an episode, as a text short enough for a line of ``episodes.jsonl``."""

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TYPES = {"u1": np.dtype("<u1"), "u2": np.dtype("<u2")}


def pack(counts: NDArray[np.integer] | Sequence[int]) -> str:
    """Packs counts as base64 of zlib of one or two bytes each, with their width before a colon.

    Args:
        counts: Whole numbers from 0 to 65,535, ``[episodes]``.

    Raises:
        ValueError: If they are of another type, shape or range.
    """
    array = np.asarray(counts)
    whole = np.issubdtype(array.dtype, np.integer)
    if array.ndim != 1 or not array.size or not whole:
        raise ValueError(
            f"counts must be a row of one or more whole numbers, got {array.dtype} "
            f"of shape {array.shape}"
        )
    least, most = int(array.min()), int(array.max())
    if least < 0 or most > np.iinfo(np.uint16).max:
        raise ValueError(f"counts must be from 0 to 65535, got {least} to {most}")
    width = "u1" if most <= np.iinfo(np.uint8).max else "u2"
    content = zlib.compress(array.astype(_TYPES[width]).tobytes(), level=9)
    return f"{width}:{b64encode(content).decode()}"


def unpack(text: str) -> NDArray[np.int64]:
    """Gives back what :func:`pack` was given.

    Raises:
        ValueError: If the text is none of its texts.
    """
    width, colon, content = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or width not in _TYPES:
        raise ValueError(f"must begin with u1: or u2:, got {_start(text)}")
    try:
        raw = zlib.decompress(b64decode(content, validate=True))
        return np.frombuffer(raw, dtype=_TYPES[width]).astype(np.int64)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"must be base64 of zlib, got {_start(text)}: {error}") from error


def _start(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
