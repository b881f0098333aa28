import zlib
from base64 import b64decode, b64encode

import numpy as np
import pytest

from harness.episode_counts import pack, unpack


@pytest.mark.parametrize(("most", "width"), [(75, "u1"), (255, "u1"), (256, "u2"), (65_535, "u2")])
def test_counts_come_back_from_the_narrowest_type_that_holds_them(most, width):
    counts = np.random.default_rng(most).integers(0, most + 1, 10_000)
    counts[17] = most
    text = pack(counts)
    found, _, content = text.partition(":")
    assert found == width
    raw = zlib.decompress(b64decode(content))
    assert len(raw) == 10_000 * int(width[1])
    # Low byte first, whatever the machine.
    assert int.from_bytes(raw[17 * int(width[1]) :][: int(width[1])], "little") == most
    np.testing.assert_array_equal(unpack(text), counts)
    assert (unpack(text) - most).min() < 0  # signed: differences do not wrap


def test_a_list_is_packed_as_an_array():
    assert pack([0, 3, 255]) == pack(np.array([0, 3, 255], dtype=np.uint8))
    assert unpack(pack([0, 3, 255])).tolist() == [0, 3, 255]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([-1, 3], "from 0 to 65535, got -1 to 3"),
        ([0, 65_536], "from 0 to 65535, got 0 to 65536"),
        ([0.5], "whole numbers, got float64"),
        ([], "whole numbers, got float64 of shape"),
        ([[1, 2]], r"whole numbers, got int64 of shape \(1, 2\)"),
    ],
)
def test_what_are_no_counts_is_refused(counts, text):
    with pytest.raises(ValueError, match=text):
        pack(counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with u1: or u2:, got ''"),
        (None, "must begin with u1: or u2:, got None"),
        ("u4:AAAA", "must begin with u1: or u2:, got 'u4:AAAA'"),
        ("AAAA", "must begin with u1: or u2:, got 'AAAA'"),
        ("u1:***", r"must be base64 of zlib, got 'u1:\*\*\*'"),
        ("u1:AAAA", "must be base64 of zlib"),
        ("u1:é", "must be base64 of zlib"),
        ("u1:" + "A" * 1000, r"got 'u1:A{36}…: "),
        ("u2:" + b64encode(zlib.compress(b"123")).decode(), "must be base64 of zlib"),
        (pack(range(300))[:-8], "must be base64 of zlib"),
    ],
)
def test_garbage_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        unpack(text)
