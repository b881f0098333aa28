"""Reads a pickle that holds data and nothing else: a pickle is code, and this runs none of it.

The NumPy constructors that a pickle names are replaced by ones of our own, which take only what
NumPy itself writes. So a file that passes is also safe to open with ``pickle.load``: NumPy's own
constructors do not check what they are given, and corrupt memory on some of it.
"""

import pickle
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPE = re.compile(r"[?biufcSUO]\d*")  # numbers, strings and objects; no records


def load_plain(path: Path, encoding: str = "ASCII") -> Any:
    """Reads a pickle of dictionaries, lists, tuples, strings, numbers and NumPy arrays.

    Args:
        path: The file.
        encoding: How the strings of a pickle from Python 2 are read, as in ``pickle.load``.

    Returns:
        What the pickle holds. An array may come as an :class:`Array`, for ``numpy.asarray``.

    Raises:
        ValueError: If the file is no whole pickle, or holds anything else. Says what is wrong with
            the file, without its name.
    """
    with path.open("rb") as file:
        if file.peek(1)[:1] == b"<":
            raise ValueError(
                "is a web page (HTML), no pickle: a download has stored the host's warning page"
            )
        try:
            return _PlainUnpickler(file, encoding=encoding).load()
        except _ForbiddenError as error:
            raise ValueError(f"is not safe to open: {error}") from error
        except Exception as error:  # a broken pickle can raise anything
            raise ValueError(f"is no whole pickle: {type(error).__name__}: {error}") from error


class Array:
    """An array in the making: a pickle first makes it, then fills it."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        """Fills it, once, with ``(version, shape, dtype, is_fortran, content)``."""
        _require(self.values is None, "fills an array twice")
        _require(type(state) is tuple and len(state) == 5, "fills an array in an unknown way")
        _, shape, dtype, fortran, content = state
        if type(dtype) is _Dtype and dtype.value.hasobject:
            _require(type(content) is list, "an object array without a list")
            values = np.empty(len(content), dtype=object)
            for index, value in enumerate(content):
                values[index] = value
        else:
            values = _from_bytes(content, dtype)
        self.values = _reshape(values, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Gives the NumPy array."""
        if self.values is None:
            raise ValueError("an array without content")
        return self.values if dtype is None else self.values.astype(dtype)


class _ForbiddenError(Exception):
    """The pickle does something that no data needs."""


class _Dtype:
    def __init__(self, name: str) -> None:
        self.value = np.dtype(name)
        self.filled = False

    def __setstate__(self, state: Any) -> None:
        """Sets the byte order; all else in the state must be what the type has anyway."""
        known = type(state) is tuple and len(state) == 8 and state[1] in ("<", ">", "|", "=")
        _require(known and not self.filled, "changes a dtype")
        value = self.value.newbyteorder(state[1])
        _require(state[2:] == value.__reduce__()[2][2:], "changes a dtype")
        self.value, self.filled = value, True


class _Constructor:
    """What a pickle gets in a constructor's place; it can be called, and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        """Refuses what BUILD would do to a function."""
        raise _ForbiddenError("sets attributes of a function")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Looks the name up in a fixed list, and nowhere else."""
        if (module, name) not in _CONSTRUCTORS:
            raise _ForbiddenError(f"it names {module}.{name}, which is not data")
        return _CONSTRUCTORS[module, name]


def _ndarray(*args: Any) -> Any:
    raise _ForbiddenError("calls numpy.ndarray itself")


def _dtype(*args: Any) -> _Dtype:
    known = len(args) == 3 and type(args[0]) is str and args[1:] == (False, True)
    _require(known and _DTYPE.fullmatch(args[0]), f"numpy.dtype{args!r:.80}")
    return _Dtype(args[0])


def _reconstruct(*args: Any) -> Array:
    _require(
        len(args) == 3 and args[0] is _NDARRAY and args[1] == (0,) and args[2] in ("b", b"b"),
        "makes an array in an unknown way",
    )
    return Array()


def _frombuffer(*args: Any) -> Array:
    _require(len(args) in (4, 5), "makes an array in an unknown way")
    content, dtype, shape, order, *axes = args
    _require(order in ("C", "F", "K") and (order == "K") == bool(axes), "an unknown order of axes")
    array = Array()
    array.values = _reshape(_from_bytes(content, dtype), shape, "C" if axes else order)
    if axes:
        _require(_is_shape(axes[0]), "an unknown order of axes")
        array.values = array.values.transpose(axes[0])
    return array


def _scalar(*args: Any) -> Any:
    _require(len(args) == 2, "makes a number in an unknown way")
    return _reshape(_from_bytes(args[1], args[0]), (), "C")[()]


def _encode(*args: Any) -> bytes:
    known = len(args) == 2 and type(args[0]) is str and args[1] == "latin1"
    _require(known, "_codecs.encode with another encoding than latin1")
    return args[0].encode("latin1")


def _from_bytes(content: Any, dtype: Any) -> NDArray[Any]:
    _require(type(dtype) is _Dtype and not dtype.value.hasobject, "makes objects of bytes")
    if type(content) is str:  # written by Python 2
        content = content.encode("latin1")
    _require(type(content) in (bytes, bytearray), "an array of something else than bytes")
    return np.frombuffer(content, dtype.value)


def _reshape(values: NDArray[Any], shape: Any, order: Any) -> NDArray[Any]:
    _require(_is_shape(shape) and prod(shape) == values.size, "an array that its bytes do not fill")
    return values.reshape(shape, order=order)


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise _ForbiddenError(what)


_NDARRAY = _Constructor(_ndarray)
_CONSTRUCTORS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Constructor(_dtype),
    ("_codecs", "encode"): _Constructor(_encode),
    **{
        (f"numpy.{core}.{module}", name): _Constructor(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}
