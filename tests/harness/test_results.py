import json
import math
import os

import pytest
import torch

from harness.store import (
    RUN,
    append_result,
    load_checkpoint,
    read_results,
    save_checkpoint,
)


def test_lines_are_appended_one_object_each(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    assert read_results(path) == []
    lines = [{"seed": 0, "name": "ä\n"}, {"seed": 1}]
    for line in lines:
        append_result(path, line)
    assert read_results(path) == lines
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"seed": 0})
    with path.open("a") as file:
        file.write('{"seed": 1, "top')
    assert read_results(path) == [{"seed": 0}]
    append_result(path, {"seed": 2})
    assert path.read_text() == '{"seed": 0}\n{"seed": 2}\n'


def test_figures_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "results.jsonl"
    line = {"nll": math.nan, "history": [{"loss": math.inf, "top1": 1.5}], "config": {"lr": 1e9}}
    append_result(path, line)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    (read,) = [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]
    expected = {"nll": None, "history": [{"loss": None, "top1": 1.5}], "config": {"lr": 1e9}}
    assert read == expected == read_results(path)[0]
    assert math.isnan(line["nll"])  # the caller's own is left alone


def test_older_lines_with_nan_are_read(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"nll": NaN, "top1": 10.0}\n')
    (line,) = read_results(path)
    assert math.isnan(line["nll"])
    assert line["top1"] == 10


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_nothing_but_a_line_feed_ends_a_line(tmp_path, separator):
    path = tmp_path / "results.jsonl"
    lines = [{"error": f"before{separator}after"}, {"error": "the next"}]
    for line in lines:
        append_result(path, line)
    assert read_results(path) == lines


def test_blank_and_foreign_lines_are_skipped_and_named_once(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    good = {"method": "none", "seed": 0, "config": {}}
    with path.open("wb") as file:
        for text in (
            json.dumps(good).encode(), b"", b"not json", b"\xff\xfe{}", b"[1]", b"  \r",
            b'{"method": "none", "seed": "0", "config": {}}', b'{"method": "none"}',
            json.dumps({**good, "seed": 1}).encode() + b"\r",
        ):  # fmt: skip
            file.write(text + b"\n")
    for _ in range(2):
        assert [line["seed"] for line in read_results(path, RUN)] == [0, 1]
    assert capsys.readouterr().err == (
        f"{path}: skipped lines 2, 6 (blank) and lines 3 to 5, 7 to 8 (not a JSON object with "
        "method, seed, config)\n"
    )
    append_result(path, {**good, "seed": 2})
    assert [line["seed"] for line in read_results(path, RUN)] == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_file_that_holds_nothing_of_results_is_one_error(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(ValueError, match=r"results.jsonl is not a file of results: lines 1 to 2"):
        read_results(path)
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="each be a JSON object with method, seed, config"):
        read_results(path, RUN)
    path.write_text("\n\n")
    assert read_results(path) == []


def test_several_processes_may_append(tmp_path):
    path = tmp_path / "results.jsonl"
    text = "x" * 20_000
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            for index in range(20):
                append_result(path, {"child": child, "index": index, "text": text})
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    results = read_results(path)
    assert sorted((r["child"], r["index"]) for r in results) == [
        (child, index) for child in range(4) for index in range(20)
    ]


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "run.pt"
    device = torch.device("cpu")
    assert load_checkpoint(path, device) is None
    save_checkpoint(path, {"epoch": 1})

    def dies(_state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path, device) == {"epoch": 1}
