import json
import os

import pytest
import torch

from harness.results import append_result, load_checkpoint, read_results, save_checkpoint


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


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"seed": 0}\nnot json\n{"seed": 1}\n')
    with pytest.raises(ValueError, match=r"results.jsonl, line 2: not a JSON object"):
        read_results(path)


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
