"""The launcher, with a small script that imports and calls timm as timm's own does."""

import inspect
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sage_timm import SageMixup
from sage_timm.timm_script.launcher import launch
from sage_timm.timm_script.options import parse

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("train_script.py")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of eight images."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / label / f"{number}.png")
    return folder


@pytest.fixture
def run(images, tmp_path):
    """Runs the script under the launcher, and returns what it ends with."""

    def start(*arguments, out="out"):
        output = tmp_path / out
        output.mkdir(exist_ok=True)
        own = ["--data-dir", str(images), "--output", str(output)]
        launch(parse([*arguments[:2], str(SCRIPT), *own, *arguments[2:]]))
        return torch.load(output / "rank0.pt")

    return start


def assert_equal(one, other, **tolerance):
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(value, other["state_dict"][name], msg=name, **tolerance)


def differ(one, other):
    return any(not torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())


OPTIONS = [
    [],
    ["--channels-last"],
    ["--amp-dtype", "bfloat16"],
    ["--amp-dtype", "float16"],
    ["--amp-dtype", "float16", "--clip-grad", "1.0", "--grad-accum-steps", "2"],
    ["--grad-accum-steps", "2"],
    ["--clip-grad", "0.1"],
    ["--model-ema"],
    ["--torchcompile", "aot_eager"],
    ["--mixup-mode", "pair"],
    ["--mixup-mode", "elem"],
    ["--cutmix", "1.0", "--mixup-switch-prob", "0.5"],
    ["--smoothing", "0"],
    ["--bce-loss"],
    ["--drop-path", "0.2"],
]


@pytest.mark.parametrize(("prefetcher", "update_ratio"), [(True, "0.6"), (False, "1.0")])
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_trains_with_each_option_of_the_script(run, caplog, options, update_ratio, prefetcher):
    caplog.set_level(logging.INFO, "sage_timm")
    loader = [] if prefetcher else ["--no-prefetcher"]
    common = ["--mixup", "1.0", *loader, *options]
    ended = run("--sage-update-ratio", update_ratio, *common)
    noted = "NotedCollate" if prefetcher else "NotedMixup"
    assert [r.getMessage() for r in caplog.records if r.name == "sage_timm"] == [
        f"SAGE in the place of {noted}: update_ratio={update_ratio}"
    ]
    for name, value in ended["state_dict"].items():
        assert value.isfinite().all(), name
    assert ended["task_state"]["sage"] == {"update_ratio": float(update_ratio)}


@pytest.mark.parametrize("options", [[], ["--cutmix", "1.0"], ["--mixup-mode", "elem"]])
def test_is_the_loop_with_sage_mixup_in_it(run, images, tmp_path, monkeypatch, options):
    launched = run("--sage-search", "all", "--mixup", "1", "--no-prefetcher", *options)
    arguments = ["--data-dir", str(images), "--output", str(tmp_path), "--mixup", "1", *options]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--no-prefetcher", "--by-hand"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert_equal(launched, torch.load(tmp_path / "rank0.pt"))


def test_the_prefetchers_batches_are_mixed_alike(run):
    """Its images differ by the rounding of another order of operations."""
    arguments = ["--sage-search", "all", "--mixup", "1", "--model", "test_convnext"]
    one = run(*arguments)
    other = run(*arguments, "--no-prefetcher", out="other")
    assert_equal(one, other, rtol=1e-3, atol=1e-5)
    assert differ(one, run(*arguments, "--sage-lambda-max", "1", out="another"))


@pytest.mark.parametrize("loader", [[], ["--no-prefetcher"]])
def test_mixup_off_epoch_turns_it_off(run, loader):
    arguments = ["--mixup", "1", *loader, "--epochs", "2", "--mixup-off-epoch"]
    for off, same in (("1", False), ("0", True)):
        one = run("--sage-lambda-max", "1", *arguments, off, out=f"one{off}")
        other = run("--sage-lambda-max", "1", *arguments, "0", out=f"other{off}")
        assert differ(one, other) is not same


def test_a_run_that_is_resumed_goes_on_with_its_settings(run, tmp_path):
    arguments = ["--mixup", "1", "--no-prefetcher", "--epochs"]
    whole = run("--sage-update-ratio", "0.6", *arguments, "2", out="whole")
    run("--sage-update-ratio", "0.6", *arguments, "1", out="first")
    resume = ["--resume", str(tmp_path / "first" / "rank0.pt")]
    again = run("--sage-update-ratio", "0.6", *arguments, "2", *resume, out="again")
    assert_equal(again, whole)
    assert again["task_state"] == whole["task_state"]
    with pytest.raises(SystemExit, match=r"--sage-update-ratio is 0\.7, and was 0\.6 in"):
        run("--sage-update-ratio", "0.7", *arguments, "2", *resume)
    with pytest.raises(SystemExit, match="--sage-search is none, and was not given in the run"):
        run("--sage-search", "none", *arguments, "2", *resume)


def test_options_that_a_resumed_run_leaves_out_are_the_checkpoints(run, images, tmp_path):
    arguments = ["--mixup", "1", "--no-prefetcher", "--epochs", "2"]
    whole = run("--sage-search", "none", *arguments, out="whole")
    run("--sage-search", "none", *arguments[:-1], "1", out="first")
    own = ["--data-dir", str(images), "--output", str(tmp_path), *arguments]
    launch(parse([str(SCRIPT), *own, "--resume", str(tmp_path / "first" / "rank0.pt")]))
    assert_equal(torch.load(tmp_path / "rank0.pt"), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixup", "0"], "built neither timm's Mixup nor its FastCollateMixup"),
        (["--mixup", "0", "--cutmix", "1"], "which --mixup 0 turns off: pass --mixup 1.0"),
        (["--mixup", "1", "--naflex"], "NaFlex loaders mix patches, which SAGE can't"),
        (["--mixup", "1", "--distill"], "does not work with timm's LogitDistillationTask"),
        (["--mixup", "1", "--no-task"], "built no ClassificationTask of timm's"),
        (["--mixup", "1", "--no-task", "--no-prefetcher"], "built no ClassificationTask"),
    ],
)
def test_says_where_it_cannot_take_mixups_place(run, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run("--sage-search", "all", *arguments)


def test_leaves_timm_and_the_interpreter_as_they_were(run):
    import timm.data
    import timm.task

    before = timm.data.Mixup, timm.data.FastCollateMixup, timm.task.ClassificationTask
    argv, path = sys.argv, list(sys.path)
    with pytest.raises(SystemExit):
        run("--sage-search", "all", "--mixup", "0")
    run("--sage-search", "all", "--mixup", "1")
    assert before == (timm.data.Mixup, timm.data.FastCollateMixup, timm.task.ClassificationTask)
    assert (sys.argv, sys.path) == (argv, path)


def test_bad_options_are_refused_before_the_script_runs(run):
    with pytest.raises(SystemExit, match=r"update_ratio must be in \(0, 1\], got 2.0"):
        run("--sage-update-ratio", "2", "--mixup", "0")


def test_a_script_that_is_not_there():
    with pytest.raises(SystemExit, match=r"no train script nowhere\.py"):
        launch(parse(["nowhere.py"]))


class TestOptions:
    def test_stand_anywhere_and_leave_the_others_as_they_are(self):
        line = parse(
            ["--sage-search", "none", "t.py", "-b", "8", "--sage-lambda-max=0.5", "--sage", "x"]
        )
        assert line.options == {"search": "none", "lambda_max": 0.5}
        assert (line.script, line.arguments) == ("t.py", ["-b", "8", "--sage", "x"])

    def test_help_is_the_launchers_before_the_script_and_the_scripts_after(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            parse(["--help"])
        assert not stopped.value.code
        shown = capsys.readouterr().out
        signature = inspect.signature(SageMixup).parameters
        own = [n for n, p in signature.items() if p.kind is p.KEYWORD_ONLY]
        for name in set(own) - {"model", "loss_fn", "generator"}:
            assert "--sage-" + name.replace("_", "-") in shown
        assert parse(["t.py", "--help"]).arguments == ["--help"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "the train script's path is missing"),
            (["--model", "x"], "the train script's path is missing"),
            (["t.py", "--sage-lamda", "1"], "unknown option --sage-lamda"),
            (["--sage-search", "best", "t.py"], "invalid choice: 'best'"),
        ],
    )
    def test_errors(self, capsys, arguments, message):
        with pytest.raises(SystemExit):
            parse(arguments)
        assert message in capsys.readouterr().err


def test_two_processes_end_with_the_same_parameters(images, tmp_path):
    """The whole of it: torchrun, the launcher, the script; SyncBatchNorm takes no CPU tensors."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "sage_timm", "--sage-update-ratio", "0.6"]
    command += [str(SCRIPT), "--data-dir", str(images), "--output", str(tmp_path), "--mixup", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    one, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    running = [name for name in one["state_dict"] if "running" in name]
    for name in running:  # each process has its own images
        del one["state_dict"][name]
    assert_equal(one, other, rtol=0, atol=0)
