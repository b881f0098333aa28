import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from fewshot.__main__ import main
from fewshot.commands import Evaluate, FewShot
from fewshot.measure import EvaluationConfig
from harness.config import ScheduleConfig
from harness.methods.base import METHODS, register
from harness.store import read_results

ROOT = Path(__file__).parents[2]


def test_it_trains_measures_and_ends_with_a_table(tiny, capsys):
    schedule = ScheduleConfig(epochs=1)
    command = tiny(methods=("none", "sage"), seeds=(0, 1), schedule=schedule)
    command()
    results = read_results(command.out / "results.jsonl")
    figures = read_results(command.out / "episodes.jsonl")
    assert [(r["method"], r["seed"]) for r in results] == [
        ("none", 0), ("sage", 0), ("none", 1), ("sage", 1)
    ]  # fmt: skip
    assert len(figures) == 4 * 2
    means = {
        (method, shots): sum(
            f["accuracy"] for f in figures if (f["method"], f["shots"]) == (method, shots)
        )
        / 2
        for method in ("none", "sage")
        for shots in (1, 2)
    }
    table = capsys.readouterr().out
    for method in ("none", "sage"):
        one, two = (re.escape(f"{means[method, shots]:.2f} ± ") for shots in (1, 2))
        assert re.search(rf"\| {method} +\| {one}\S+ +\| {two}\S+ +\|", table)
    command()
    assert read_results(command.out / "results.jsonl") == results
    assert read_results(command.out / "episodes.jsonl") == figures


def test_saved_backbones_are_measured_again(tiny, capsys):
    command = tiny()
    command()
    before = (command.out / "results.jsonl").read_bytes()
    evaluation = EvaluationConfig(shots=(3,), episodes=20, normalizations=("un", "l2n"))
    Evaluate(command.out, command.root, evaluation)()
    lines = read_results(command.out / "episodes.jsonl")[2:]
    assert {(line["shots"], line["normalization"]) for line in lines} == {(3, "un"), (3, "l2n")}
    assert {line["classifier"] for line in lines} == set(evaluation.classifiers)
    assert (command.out / "results.jsonl").read_bytes() == before
    assert "3-shot centroid" in capsys.readouterr().out


def test_a_network_of_timms_is_a_backbone_too(tiny):
    command = tiny(backbone="resnet10t", schedule=ScheduleConfig(epochs=1))
    command()
    lines = read_results(command.out / "episodes.jsonl")
    assert [line["shots"] for line in lines] == [1, 2]
    assert all(0 < line["accuracy"] < 100 for line in lines)


def test_a_method_that_fails_does_not_stop_the_others(tiny):
    def broken(*_args):
        raise RuntimeError("no luck")

    register("broken")(broken)
    try:
        command = tiny(methods=("broken", "none"))
        with pytest.raises(SystemExit, match="1"):
            command()
    finally:
        del METHODS["broken"]
    assert [r["method"] for r in read_results(command.out / "results.jsonl")] == ["none"]
    (failure,) = read_results(command.out / "failures.jsonl")
    assert failure["method"] == "broken"
    assert failure["error"] == "RuntimeError: no luck"


@pytest.mark.parametrize("command", [(), ("evaluate",)])
def test_help_has_examples(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fewshot", *command, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    _, _, text = capsys.readouterr().out.partition("\n")  # less the usage line
    assert " ".join(["python -m fewshot", *command]) in text


def test_bad_input_ends_with_one_line_and_no_traceback(tmp_path):
    flags = ["--dataset", "mini-imagenet", "--root", str(tmp_path), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "fewshot", *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    message = r"fewshot: .*mini-imagenet-cache-train\.pkl.*--download.*\n"
    assert re.fullmatch(message, result.stderr)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--device foo", "device='foo' is not there: .+"),
        ("--seeds 123456", r"seed must be in \[0, 42938\], got 123456"),
        ("--episode-seed -1", "episode_seed must be at least 0, got -1"),
        ("--shots 0", "shots must be at least 1, got 0"),
        ("--classifiers forest", r"classifiers must be of centroid, .*, got \['forest'\]"),
        ("--validation.episodes 1", "validation.episodes must be at least 2, got 1"),
        ("--learner protonet --tasks.ways 1", "tasks.ways must be at least 2, got 1"),
        (
            "--learner maml --tasks.adaptation-lr nan",
            r"tasks.adaptation_lr must be in \(0, inf\).*",
        ),
        ("--methods none --lambda-max 3", r"lambda_max must be in \(0, 1\], got 3.0"),
        ("--image-size 0", "image_size must be at least 1, got 0"),
        ("--backbone resnet12", "model='resnet12' does not go with image_size=16: .*got 16: .*"),
        ("--train-size 7", "train_size must be a multiple of the 64 classes, got 7"),
        ("--train-size 64 --batch-size 66", "batch_size=66 is more than the 64 training images"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    glyph_root, tmp_path, capsys, monkeypatch, options, text
):
    small = f"--image-size 16 --train-size 64 --root {glyph_root} --out {tmp_path}/out"
    monkeypatch.setattr(sys, "argv", ["fewshot", *small.split(), *options.split()])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.fullmatch(f"fewshot: {text}\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def documented():
    """The arguments of all commands in the documents, and of the options in their tables."""
    for name in ("README.md", "docs/fewshot.md", "docs/results.md"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        yield from re.findall(r"^ *(?:\w+=\w+ )*python -m fewshot\b(.*)$", text, flags=re.MULTILINE)
        yield from re.findall(r"\| `(--[^`]+)`", text)


@pytest.mark.parametrize("arguments", list(documented()))
def test_the_documented_options_are_there(arguments):
    parts = shlex.split(arguments)
    command = Evaluate if parts[:1] == ["evaluate"] else FewShot
    tyro.cli(command, args=parts[command is Evaluate :])


def test_a_folder_without_few_shot_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no few-shot results in .*results.jsonl"):
        Evaluate(tmp_path)()
