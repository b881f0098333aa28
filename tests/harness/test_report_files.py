import base64
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import t as student

import harness.measures
from harness.commands import Report, folders
from tests.report_inputs import config, report, result, table, write_lines


def test_foreign_lines_are_named_on_the_page_and_do_no_harm(tmp_path, capsys):
    lines = [json.dumps(result("none", seed, 50.0 + seed)) for seed in (0, 1)]
    foreign = ["", '{"step": 1}', "half a li", json.dumps({**result("sage", 0), "config": "none"})]
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], *foreign, lines[1], ""]))
    text = report(tmp_path)
    assert table(text, "Accuracy and time")["none"]["top-1, %"] == "50.50 ± 0.71"
    said = "skipped line 2 (blank) and lines 3 to 5 (not a JSON object with method, seed, config)"
    assert text.endswith(f"## Lines that were skipped\n\n- {tmp_path}/results.jsonl: {said}")
    assert capsys.readouterr().err == f"{tmp_path}/results.jsonl: {said}\n"


def dynamics_line(method, seed, epoch, weight, **mixing):
    line = {"method": method, "seed": seed, "config": config(method, seed, **mixing)}
    return {**line, "images": 500, "epoch": epoch, "label_weight": weight, "shift": 0.25}


def test_dynamics(tmp_path):
    lines = [
        dynamics_line("none", 0, 10, 0.3),
        dynamics_line("sage", 0, 10, 9.0),
        dynamics_line("sage", 0, 10, 0.25),  # of two lines the later counts
        dynamics_line("sage", 1, 10, 0.75),
        dynamics_line("sage", 2, 10, None),
        dynamics_line("sage", 0, 10, 0.4, lambda_max=1.0),
    ]
    text = report(tmp_path, dynamics=lines)
    title = "glyphs, 1000 training images, preactresnet8_cifar, 40 epochs"
    assert re.findall("^#+ (.*)$", text, re.MULTILINE)[1:] == [
        title, "Dynamics", "Dynamics, lambda_max 1.0"
    ]  # fmt: skip
    assert [[*row.values()] for row in table(text, "Dynamics").values()] == [
        ["none", "0", "10", "0.300", "0.250"],
        ["sage", "0 1 diverged 2", "10", "0.500", "0.250"],
    ]
    rows = table(text, "Dynamics, lambda_max 1.0")
    assert rows["sage"]["label weight"] == "0.400"
    assert "Means over seeds and 500 of the run's training images each" in text
    results = [result("sage", seed) for seed in (0, 1)]
    both = report(tmp_path, dynamics=lines, results=results)
    assert both.count("\n## ") == 1  # beside the accuracy of the same networks


def test_agreement(tmp_path):
    def line(worth, network="none", **changes):
        figures = {"rank_correlation": worth, "objective_reached": 0.75, "same_translation": None}
        variant = {"search": "all", "search_fraction": 0.01, "saliency_size": None}
        variant |= {"saliency_dtype": None, "saliency_fraction": 1.0, **changes}
        errors = {"rank_correlation": 0.01, "objective_reached": 0.0, "same_translation": None}
        worst = {"rank_correlation": -0.5, "objective_reached": 0.5}
        line = {"seed": 0, "pairs": 300, "config": config(network, 0), "standard_error": errors}
        return {**variant, **figures, **line, "worst": worst}

    lines = [line(0.1), line(0.875), line(0.5, saliency_size=16), line(0.25, "mixup")]
    text = report(tmp_path, results=[result("none", 0)], agreement=lines)
    tables = text.split("### Agreement with the full method\n\n")[1:]
    half = student.ppf(0.975, 2) * 0.01  # 300 pairs in batches of 100
    rest = "-0.5000 | 0.7500 ± 0.0000 | 0.5000 | - ± - |"
    rows = [[row for row in part.splitlines() if " all | " in row] for part in tables]
    assert rows == [
        [f"| {name} | all | {worth:.4f} ± {half:.4f} | {rest}" for name, worth in of_network]
        for of_network in ([("full", 0.875), ("16 pixels", 0.5)], [("full", 0.25)])
    ]
    assert (
        "on 300 pairs of validation images, by the saliency of a network trained with none" in text
    )
    assert text.count("\n## ") == 1
    assert "has diverged" not in text
    bad = result("none", 0, train_loss=None, diverged=True)
    assert report(tmp_path, results=[bad]).count("\n- The network has diverged") == 1


def test_the_gallery_is_shown_as_it_is(tmp_path):
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    contents = []
    for folder, colour in ((one, "red"), (other, "blue")):
        folder.mkdir()
        Image.new("RGB", (8, 4), colour).save(folder / "gallery.png")
        contents.append((folder / "gallery.png").read_bytes())
    Report((one, other), out)()
    names = ["gallery-1.png", "gallery-2.png"]
    assert [(out / name).read_bytes() for name in names] == contents
    page, text = ((out / f"report.{kind}").read_text() for kind in ("html", "md"))
    for content, name in zip(contents, names, strict=True):
        assert base64.b64encode(content).decode() in page
        assert f"]({name})" in text
    Report((one,))()  # onto itself
    assert (one / "gallery.png").read_bytes() == contents[0]


def test_a_pattern_names_the_folders_that_hold_something(tmp_path, capsys, monkeypatch):
    for index, name in enumerate(("b", "a", "c/d")):
        write_lines(
            tmp_path / "runs" / name / "results.jsonl", [result("none", index, 10.0 * index)]
        )
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "file.txt").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders(Path("runs/*")) == [Path("runs/a"), Path("runs/b")]
    (named,) = Report((Path("~/runs/**"),)).directories
    assert folders(named) == [tmp_path / "runs" / name for name in ("a", "b", "c/d")]
    Report((Path("runs/*"), Path("runs/a")))()
    assert table(capsys.readouterr().out, "Accuracy and time")["none"]["seeds"] == "0 1"
    assert (tmp_path / "runs" / "a" / "report.html").exists()
    assert not (tmp_path / "runs" / "b" / "report.html").exists()
    (tmp_path / "[x]").mkdir()
    assert folders(Path("[x]")) == [Path("[x]")]  # a folder's own name is no pattern


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ("run?/*", r"no folder that 'run\?/\*' matches holds any of runs.jsonl, "),
        ("runs", "no such folder: runs"),
    ],
)
def test_what_matches_nothing_is_refused_by_name(tmp_path, monkeypatch, named, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run1" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=text):
        Report((Path(named),))()


def test_the_page_says_how_images_are_shown_and_what_was_odd(tmp_path):
    note = "2 files of 'train' are no image of a class: a.txt, b.txt"
    results = [result("none", seed, notes=[note], broken_images=seed) for seed in (0, 1)]
    text = report(tmp_path, results=results)
    assert text.count(note) == 1
    assert "1 training images could not be read; others stood in for them" in text
    assert "; images: 32 pixels, crop_mode squash, crop_pct 1, in training also" in text
    assert "could not be read" not in report(tmp_path / "tidy", results=results[:1])


def test_one_more_measurement_is_one_more_file(tmp_path, monkeypatch):
    module = tmp_path / "package" / "sharpness.py"
    module.parent.mkdir()
    module.write_text(
        "from harness.figures import Table\n"
        "from harness.measures import Measurement\n"
        "from harness.store import RUN\n"
        "def table(lines):\n"
        "    rows = [[line['label'], str(line['sharpness'])] for line in lines]\n"
        "    return Table('Sharpness', ['method', 'sharpness'], rows)\n"
        "MEASUREMENT = Measurement('sharpness.jsonl', table, 'mixes', ('label', 'seed'), "
        "holds={**RUN, 'sharpness': int})\n"
    )
    monkeypatch.setattr(
        harness.measures, "__path__", [*harness.measures.__path__, str(module.parent)]
    )
    monkeypatch.setitem(sys.modules, "harness.measures.sharpness", None)
    del sys.modules["harness.measures.sharpness"]
    line = {"method": "sage", "seed": 0, "config": config("sage", 0, search="none")}
    lines = [{**line, "sharpness": 3}, {**line, "sharpness": 4}]  # the later counts
    text = report(tmp_path, sharpness=lines, results=[result("sage", 0)])
    rows = table(text, "Sharpness")
    assert rows == {"sage, search none": {"method": "sage, search none", "sharpness": "4"}}
    assert text.count("\n## ") == 1
