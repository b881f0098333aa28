import copyreg
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewshot.pickles import load_plain
from tests.fewshot_inputs import python2_pickle

try:
    from numpy._core import multiarray, numeric
except ImportError:
    from numpy.core import multiarray, numeric

DTYPES = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    arrays.boolean_dtypes(),
    arrays.unicode_string_dtypes(endianness="?", min_len=1),
)


class Call:
    """Pickles as a call of a function, and what is then set on its result."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args, state)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def read(tmp_path):
    def make(content, **kwargs):
        path = tmp_path / "file.pkl"
        path.write_bytes(content)
        return load_plain(path, **kwargs)

    return make


@pytest.mark.parametrize("protocol", range(6))
def test_reads_what_pickle_reads(read, protocol):
    @settings(deadline=None, max_examples=30)
    @given(arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0)), st.booleans())
    def check(array, transposed):
        array = array.T if transposed else array
        number = array.flat[0] if array.dtype.kind != "U" else np.int16(-3)
        content = {"a": [array, number, (1, 2.5, None, True)], "b": ["c", 10**30]}
        ours = read(pickle.dumps(content, protocol))
        theirs = pickle.loads(pickle.dumps(content, protocol))
        assert ours["b"] == theirs["b"]
        assert ours["a"][2] == theirs["a"][2]
        for one, other in zip(ours["a"][:2], theirs["a"][:2], strict=True):
            np.testing.assert_array_equal(np.asarray(one), other)
            assert np.asarray(one).dtype.newbyteorder("=") == other.dtype.newbyteorder("=")

    check()


@pytest.mark.parametrize("protocol", range(6))
def test_reads_an_array_of_objects(read, protocol):
    array = np.empty((2, 2), object)
    array[:] = [["a", [1]], [{"b": 2}, 3.5]]
    got = np.asarray(read(pickle.dumps(array, protocol)))
    assert got.dtype == object
    assert got.tolist() == array.tolist()


def test_reads_pickles_of_python_2(read):
    content = {"data": np.arange(250, 262, dtype=np.uint8).reshape(3, 4), "labels": [1, 2]}
    text = python2_pickle(content)
    theirs = pickle.loads(text, encoding="latin1")
    ours = read(text, encoding="latin1")
    assert ours["labels"] == theirs["labels"] == [1, 2]
    np.testing.assert_array_equal(np.asarray(ours["data"]), theirs["data"])
    with pytest.raises(ValueError, match="is no whole pickle: UnicodeDecodeError"):
        read(text)


def object_array(value):
    array = np.empty(1, object)
    array[0] = value
    return array


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", [lambda call: call, object_array, lambda c: {"a": [(c,)]}])
def test_runs_no_code(read, tmp_path, protocol, place):
    marker = tmp_path / "ran"
    content = pickle.dumps(place(Call(os.system, f"touch {marker}")), protocol)
    with pytest.raises(ValueError, match=r"is not safe to open: it names \w+\.system"):
        read(content)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # it would have run


def test_runs_no_code_of_older_opcodes(read, tmp_path):
    marker = tmp_path / "ran"
    command = f"touch {marker}".encode()
    text = b"(S'" + command + b"'\n"
    for content in (text + b"ios\nsystem\n.", b"(cos\nsystem\n" + text[1:] + b"o."):
        with pytest.raises(ValueError, match=r"it names os\.system"):
            read(content)
        assert not marker.exists()
        pickle.loads(content)
        assert marker.exists()
        marker.unlink()


def test_runs_no_code_by_a_registered_number(read):
    copyreg.add_extension("posix", "getcwd", 240)
    try:
        content = pickle.dumps(Call(os.getcwd), 2)
        assert b"getcwd" not in content
        with pytest.raises(ValueError, match=r"it names posix\.getcwd"):
            read(content)
    finally:
        copyreg.remove_extension("posix", "getcwd", 240)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.__class__"),
        ("numpy", "dtype.__new__"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("numpy._core.multiarray", "_reconstruct.__call__"),
        ("numpy._core.numeric", "_frombuffer.__globals__"),
        ("numpy._core", "multiarray"),
        ("_codecs", "decode"),
        ("builtins", "getattr"),
        ("builtins", "bytes"),
        ("fewshot.pickles", "_CONSTRUCTORS"),
    ],
)
def test_no_other_name_is_looked_up(read, module, name):
    def text(word):
        return b"\x8c" + bytes([len(word)]) + word.encode()

    content = b"\x80\x04" + text(module) + text(name) + b"\x93."
    with pytest.raises(ValueError, match=f"it names {module}.{name}, which is not data"):
        read(content)


UINT8 = np.dtype("u1")
POINTER = b"\x08\x07\x06\x05\x04\x03\x02\x01"
EMPTY = (np.ndarray, (0,), b"b")


@pytest.mark.parametrize(
    "hostile",
    [
        Call(np.ndarray, (1,), "O", POINTER),
        Call(multiarray.scalar, np.dtype("O"), pickle.dumps([1])),
        Call(multiarray.scalar, np.dtype("O"), [1]),
        Call(multiarray._reconstruct, *EMPTY, state=(1, (1,), np.dtype("O"), False, POINTER)),
        Call(multiarray._reconstruct, *EMPTY, state=(1, (9,), UINT8, False, POINTER)),
        Call(multiarray._reconstruct, *EMPTY, state=(1, (-1,), UINT8, False, POINTER)),
        Call(multiarray._reconstruct, *EMPTY, state=(1, (2,), np.dtype("O"), False, [1])),
        Call(multiarray._reconstruct, np.ndarray, (10**9,), b"b"),
        Call(multiarray._reconstruct, np.ndarray, (1,), b"O"),
        Call(numeric._frombuffer, POINTER, np.dtype("O"), (1,), "C"),
        Call(numeric._frombuffer, POINTER, UINT8, (9,), "C"),
        Call(np.dtype, [("a", "O")], False, True),
        Call(np.dtype, "O,u1", False, True),
        Call(np.dtype, "u1", False, True, state=(3, "|", None, None, None, 999, 1, 0)),
        Call(np.dtype, "u8", False, True, state=(3, "|", None, ("a",), {"a": (UINT8, 9)}, 8, 1, 0)),
        Call(np.dtype, "u8", False, True, state=(3, "|", None, None, None, -1, -1, 63)),
        Call(np.dtype, "S4", False, True, state=(3, "|", None, None, None, 999, 1, 0)),
    ],
)
def test_numpys_constructors_get_only_what_numpy_writes(read, hostile):
    with pytest.raises(ValueError, match=r"is not safe to open|is no whole pickle"):
        read(pickle.dumps(hostile, 4))


def test_sets_nothing_on_a_function(read):
    content = b"cnumpy._core.numeric\n_frombuffer\n}S'__doc__'\nS'changed'\nsb."
    with pytest.raises(ValueError, match="sets attributes of a function"):
        read(content)


def test_encodes_only_as_latin1(read):
    import _codecs

    with pytest.raises(ValueError, match="another encoding than latin1"):
        read(pickle.dumps(Call(_codecs.encode, "a", "rot13"), 2))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"nothing of the kind", b"P123\n."])
def test_what_is_no_pickle_is_refused(read, content):
    with pytest.raises(ValueError, match="is no whole pickle"):
        read(content)


def test_a_truncated_pickle_is_refused(read):
    content = pickle.dumps({"image_data": np.zeros((4, 8, 8, 3), np.uint8)})
    for length in range(0, len(content), 37):
        with pytest.raises(ValueError, match="is no whole pickle"):
            read(content[:length])


def test_a_web_page_is_recognised(read):
    with pytest.raises(ValueError, match=r"is a web page \(HTML\), no pickle: a download has stor"):
        read(b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>")
