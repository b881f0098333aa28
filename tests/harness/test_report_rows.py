"""``results.csv``: the runs for other programs, beside the report's page."""

import csv
import re
import sys
from pathlib import Path

import pytest

import harness.__main__
from tests.report_inputs import benchmark, failure, report, result, table, write_benchmarks

ROOT = Path(__file__).parents[2]
RESULTS = [
    result("sage", 0, 51.5),
    result("sage", 1, 52.5, config={"lambda_max": 0.7}, device="an accelerator"),
    result("none", 0, 50.0, dataset_name="jays, and owls"),
    result("none", 1, 40.0),
    result("none", 1, 51.0),  # the same run once more
    result("mixup", 0, 1.0, nll=None, diverged=True),
    result("none", 0, 9.0, config={"epochs": 80}),
]
del RESULTS[-1]["config"]["schedule"]["lr"]
RESULTS[0]["config"]["data"]["scale"] = [0.08, 1.0]  # the default, which the others do not tell


@pytest.fixture
def written(tmp_path, monkeypatch, capsys):
    """The rows that ``harness report`` writes for RESULTS and a failure, read by the csv module."""
    report(tmp_path, results=RESULTS, failures=[failure("cutmix", 0, "ValueError: no")])
    monkeypatch.setattr(sys, "argv", ["harness", "report", str(tmp_path)])
    harness.__main__.main()
    path = tmp_path / "results.csv"
    assert f"written: {path}" in capsys.readouterr().out
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_a_run_in_the_tables_order(written):
    runs = [(row["label"], row["seed"], row["epochs"], row["top1"]) for row in written]
    assert runs == [
        ("none", "0", "40", "50.0"),
        ("none", "1", "40", "51.0"),
        ("mixup", "0", "40", "1.0"),
        ("sage", "0", "40", "51.5"),
        ("sage, lambda_max 0.7", "1", "40", "52.5"),
        ("none", "0", "80", "9.0"),
    ]
    assert [row["method"] for row in written][3:5] == ["sage", "sage"]


def test_headings_and_labels_are_the_pages(written, tmp_path):
    text = report(tmp_path)
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert [*dict.fromkeys(row["setting"] for row in written)] == titles
    first = text.split("\n## ")[1]
    rows = table(first, "Accuracy and time")
    assert {row["label"] for row in written} <= rows.keys()


def test_the_columns_are_flat_and_settings_younger_than_a_line_have_their_default(written):
    columns = [*written[0]]
    assert columns[:7] == [
        *("setting", "label", "method", "seed", "dataset", "dataset_name", "model")
    ]
    assert not {"history", "class_accuracy", "classes", "notes", "config"} & {*columns}
    for row in written:
        line = next(
            x
            for x in reversed(RESULTS)
            if [x["method"], str(x["seed"]), str(x["epochs"]), str(x["top1"])]
            == [row["method"], row["seed"], row["epochs"], row["top1"]]
        )
        for name in ("dataset", "model", "top5", "ece", "train_loss", "train_seconds", "device"):
            assert row[name] == str(line[name])
        assert row["config.data.image_size"] == "32"
        assert row["config.schedule.lr"] == "0.1"  # the last line does not say so
        assert row["config.mixing.lambda_max"] == str(line["config"]["mixing"]["lambda_max"])
        assert row["config.batch_norm"] == "running"  # what lines without it were measured with
        assert row["config.schedule.sched"] == "cosine"
        assert row["config.schedule.opt"] == "sgd"  # left out of lines, where it has its default
        assert row["config.data.scale"] == "[0.08, 1.0]"
    assert "config.pretrained" not in columns
    assert written[0]["dataset_name"] == "jays, and owls"


def test_a_run_that_diverged_says_why_and_no_other(written):
    assert [bool(row["diverged"]) for row in written] == [False, False, True, False, False, False]
    assert written[2]["diverged"] == "a figure is not finite"
    assert written[2]["nll"] == ""


def test_where_there_is_no_result_there_is_no_file(tmp_path, monkeypatch):
    write_benchmarks(tmp_path / "overhead.json", [benchmark("none", "step", 1.0, 1.0)])
    monkeypatch.setattr(sys, "argv", ["harness", "report", str(tmp_path)])
    harness.__main__.main()
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.usefixtures("written")
def test_the_lines_of_pandas_that_the_docs_show(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/harness.md").read_text()
    (block,) = re.findall(r"```python\n(import pandas.*?)```", text, flags=re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "results.csv").rename(tmp_path / "runs/results.csv")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    printed = capsys.readouterr().out
    assert "mixup" not in printed
    means = {"none": "50.5", "sage": "51.5", "sage, lambda_max 0.7": "52.5"}
    for label, mean in means.items():
        assert re.search(rf"{label} +{mean} ", printed), printed
