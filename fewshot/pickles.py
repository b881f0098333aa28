"""Reads a pickle that holds data and nothing else: a pickle is code, and this runs none of it.

The NumPy constructors that a pickle names are replaced by ones that take only what NumPy itself
writes. So a file that passes is also safe to open with ``pickle.load``: NumPy's own constructors do
not check what they are given, and corrupt memory on some of it.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPE = re.compile(r"[?biufcSUO]\d*")  # numbers, strings and objects; no records


def load_plain(path: Path, encoding: str = "ASCII") -> Any:
    """Reads a pickle of dictionaries, lists, tuples, strings, numbers and NumPy arrays.

    An array may come as an ``Array``, for ``numpy.asarray``. ``encoding`` is that of strings
    from Python 2. A ValueError says what is wrong with the file, without its name.
    """
    with path.open("rb") as file:
        if file.peek(1)[:1] == b"<":
            page = "a download has stored the host's warning page"
            raise ValueError(f"is a web page (HTML), no pickle: {page}")
        try:
            return _PlainUnpickler(file, encoding=encoding).load()
        except _ForbiddenError as error:
            raise ValueError(f"is not safe to open: {error}") from error
        except Exception as error:  # a broken pickle can raise anything
            raise ValueError(f"is no whole pickle: {type(error).__name__}: {error}") from error


class Array:
    """An array: a pickle may first make it, and fill it later."""

    def __init__(self, values: NDArray[Any] | None = None) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        """Fills it, once, with ``(version, shape, dtype, is_fortran, content)``."""
        _require(self.values is None and type(state) is tuple, "fills an array in an unknown way")
        _, shape, dtype, fortran, content = state
        if type(content) is list and type(dtype) is _Dtype and dtype.value.hasobject:
            values = np.fromiter(content, object, len(content))
        else:
            values = _from_bytes(content, dtype)
        self.values = _reshape(values, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Gives the NumPy array."""
        if self.values is None:
            raise ValueError("an array without content")
        return np.asarray(self.values, dtype)


class _ForbiddenError(Exception):
    """The pickle does something that no data needs."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Looks the name up in a fixed list, and nowhere else."""
        _require((module, name) in _CONSTRUCTORS, f"it names {module}.{name}, which is not data")
        return _CONSTRUCTORS[module, name]


class _Constructor:
    """Stands in a constructor's place; it can be called, and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _ForbiddenError("sets attributes of a function")


class _Dtype:
    def __init__(self, name: Any, align: Any, copy: Any) -> None:
        known = type(name) is str and (align, copy) == (False, True)
        _require(known and _DTYPE.fullmatch(name), f"makes a dtype of {name!r:.80}")
        self.value = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Sets the byte order; all else in the state must be what the type has anyway."""
        ordered = {value.__reduce__()[2]: value for value in map(self.value.newbyteorder, "<>")}
        _require(type(state) is tuple and state in ordered, "changes a dtype")
        self.value = ordered[state]


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> Array:
    known = kind is _NDARRAY and shape == (0,) and typecode in ("b", b"b")
    _require(known, "makes an array in an unknown way")
    return Array()


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> Array:
    values = _reshape(_from_bytes(content, dtype), shape, "C" if axes else order)
    return Array(values.transpose(*axes) if axes else values)


def _scalar(dtype: Any, content: Any) -> Any:
    return _reshape(_from_bytes(content, dtype), (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    known = type(text) is str and encoding == "latin1"
    _require(known, "_codecs.encode with another encoding than latin1")
    return text.encode("latin1")


def _from_bytes(content: Any, dtype: Any) -> NDArray[Any]:
    if type(content) is str:  # written by Python 2
        content = content.encode("latin1")
    known = type(dtype) is _Dtype and type(content) in (bytes, bytearray)
    _require(known and not dtype.value.hasobject, "makes an array of something else than bytes")
    return np.frombuffer(content, dtype.value)


def _reshape(values: NDArray[Any], shape: Any, order: Any) -> NDArray[Any]:
    known = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
    _require(known, "an array of an unknown shape")
    return values.reshape(shape, order=order)


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise _ForbiddenError(what)


_NDARRAY = _Constructor(lambda *_args: _require(False, "calls numpy.ndarray itself"))
_CONSTRUCTORS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Constructor(_Dtype),
    ("_codecs", "encode"): _Constructor(_encode),
}
for _core in ("numpy.core", "numpy._core"):
    _CONSTRUCTORS |= {
        (f"{_core}.multiarray", "_reconstruct"): _Constructor(_reconstruct),
        (f"{_core}.multiarray", "scalar"): _Constructor(_scalar),
        (f"{_core}.numeric", "_frombuffer"): _Constructor(_frombuffer),
    }
