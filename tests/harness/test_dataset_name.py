"""What a data set is called in results and on the report's page; no run depends on it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from harness.commands import Train
from harness.config import DataConfig, ScheduleConfig
from harness.data import dataset_name
from harness.run_config import RunConfig
from harness.store import read_results
from tests.report_inputs import report, result


@pytest.fixture
def birds(tmp_path):
    """A folder of two classes, eight images of 8 pixels each in both splits."""
    draw = np.random.default_rng(0)
    places = itertools.product(("train", "validation"), ("jay", "owl"), range(8))
    for split, name, index in places:
        path = tmp_path / "birds" / split / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path / "birds"


def command(birds, out, name=None, seeds=(0,)):
    data = DataConfig("folder", str(birds), name=name, image_size=8, batch_size=8)
    return Train(
        methods=("none",), seeds=seeds, data=data, schedule=ScheduleConfig(epochs=1), out=out
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dataset": "folder", "data_dir": "photographs/birds"}, "birds"),
        ({"dataset": "folder", "data_dir": "photographs/birds/"}, "birds"),
        ({"dataset": "torch/folder", "data_dir": "birds"}, "birds"),
        ({"dataset": "tar", "data_dir": "birds"}, "birds"),
        ({"dataset": "folder", "data_dir": "/"}, "folder"),
        ({"dataset": "folder", "data_dir": "birds", "name": "my birds"}, "my birds"),
        ({"dataset": "torch/cifar10", "data_dir": "birds"}, "torch/cifar10"),
        ({"dataset": "glyphs"}, "glyphs"),
        ({"dataset": "glyphs", "name": "characters"}, "characters"),
    ],
)
def test_a_folder_has_its_own_name_unless_it_is_given_one(settings, expected):
    assert dataset_name(DataConfig(**settings)) == expected


def test_the_folder_that_one_is_in_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    assert dataset_name(DataConfig("folder", ".")) == "birds"


def test_a_run_is_the_same_under_any_name(birds):
    run = RunConfig("none", 0, data=DataConfig("folder", str(birds), batch_size=8))
    named = replace(run, data=replace(run.data, name="my birds"))
    assert named.identity() == run.identity()
    assert named.name() == run.name()
    assert "name" not in run.identity()["data"]


def test_a_name_without_a_letter_is_refused():
    with pytest.raises(ValueError, match="name must be a word or more, got ' '"):
        DataConfig(name=" ").check()


def test_results_and_the_page_show_the_name_given_last(birds, tmp_path):
    out = tmp_path / "out"
    command(birds, out)()
    (line,) = read_results(out / "results.jsonl")
    assert (line["dataset"], line["dataset_name"]) == ("folder", "birds")
    assert "\n## birds, 16 training images" in report(out)
    for name in ("jays and owls", "owls", "jays and owls", "jays and owls"):
        command(birds, out, name)()
        assert f"\n## {name}, 16 training images" in report(out)
    assert len(read_results(out / "results.jsonl")) == 1
    noted = [line["dataset_name"] for line in read_results(out / "runs.jsonl")]
    assert noted == ["birds", "jays and owls", "owls", "jays and owls"]


def lines_of(dataset, fingerprint, **changes):
    line = result("none", 0, config={"dataset": dataset}, **changes)
    line["config"]["data"]["fingerprint"] = fingerprint
    return line


def titles(text):
    return [line for line in text.splitlines() if line.startswith("## ")]


def test_lines_without_a_name_read_as_before(tmp_path):
    lines = [lines_of("folder", "a1"), lines_of("folder", "b2")]
    rest = "1000 training images, 2000 to measure on, preactresnet8_cifar, 40 epochs"
    assert titles(report(tmp_path, results=lines)) == [
        f"## folder, {rest}, fingerprint a1",
        f"## folder, {rest}, fingerprint b2",
    ]


def test_names_stand_in_the_place_of_fingerprints_where_they_tell(tmp_path):
    lines = [
        lines_of("folder", print_, dataset_name=name)
        for print_, name in (("a1", "jays"), ("b2", "owls"))
    ]
    rest = "1000 training images, 2000 to measure on, preactresnet8_cifar, 40 epochs"
    assert titles(report(tmp_path, results=lines)) == [f"## jays, {rest}", f"## owls, {rest}"]
    lines[1]["dataset_name"] = "jays"
    assert titles(report(tmp_path, results=lines)) == [
        f"## jays, {rest}, fingerprint a1",
        f"## jays, {rest}, fingerprint b2",
    ]
