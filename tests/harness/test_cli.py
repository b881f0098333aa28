import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewshot.__main__
import harness.__main__
from fewshot.commands import data_folder
from harness.methods import METHODS
from harness.store import read_results

ROOT = Path(__file__).parents[2]
SMALL = "--image-size 8 --batch-size 20 --epochs 2 --train-size 100"
HEAVY = {"torch", "torchvision", "timm", "learn2learn", "matplotlib", "scipy", "sklearn", "numpy"}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command in this process: its exit code, what it printed, and its errors."""

    def run(line, package=harness):
        monkeypatch.setattr(sys, "argv", [package.__name__, *shlex.split(line)])
        code = 0
        try:
            package.__main__.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    "command",
    [
        "init",
        "train",
        "robustness",
        "overhead",
        "foreground",
        "agreement",
        "dynamics",
        "report",
        "gallery",
    ],
)
def test_help_has_examples(call, command):
    code, printed, _ = call(f"{command} --help")
    assert code == 0
    _, _, text = printed.partition("\n")  # less the usage line
    assert f"python -m harness {command}" in text


@pytest.mark.parametrize("words", ["harness train", "harness init", "fewshot", "fewshot evaluate"])
def test_help_waits_for_no_heavy_module(words):
    """What takes seconds to import is imported once a command runs."""
    package, *command = words.split()
    script = f"""
import json, sys
sys.argv = [{package!r}, *{command!r}, "--help"]
from {package}.__main__ import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert HEAVY & set(json.loads(made.stderr)) == set()


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param("--device cuda", r"device='cuda' is not there: .+", marks=NO_CUDA),
        ("--device foo", r"device='foo' is not there: .+"),
        ("--device meta", r"device='meta' is not there: .+"),
        ("--seeds 0 20240101", r"seed must be in \[0, 42938\], got 20240101"),
        ("--seeds -1", r"seed must be in \[0, 42938\], got -1"),
        ("--seeds", "seeds must name at least one, got none"),
        ("--methods", "methods must name at least one, got none"),
        ("--methods none nosuchmix", "method must be one of none, .*, got 'nosuchmix'"),
        ("--lr -1", r"lr must be in \(0, inf\), got -1.0"),
        ("--lr nan", r"lr must be in \(0, inf\), got nan"),
        ("--lr inf", r"lr must be in \(0, inf\), got inf"),
        ("--momentum 1", r"momentum must be in \(0, 1\), got 1.0"),
        ("--weight-decay -1", r"weight_decay must be in \[0, inf\), got -1.0"),
        ("--decay-milestones 5 3", r"decay_milestones must be epochs .*, got \(5, 3\)"),
        ("--epochs 0", r"epochs must be in \(0, 100000\), got 0"),
        ("--train-size 7", "train_size must be a multiple of the 100 classes, got 7"),
        ("--num-classes 101", r"num_classes must be in \[2, 100\], got 101"),
        ("--image-size 0", "image_size must be at least 8, got 0"),
        ("--batch-size 25", "batch_size must be even on each of 1 .*, got 25"),
        ("--batch-size 102", "batch_size=102 is more than the 100 training images"),
        ("--workers -1", "workers must be at least 0, got -1"),
        ("--crop-pct 1.5", r"crop_pct must be in \(0, 1\], got 1.5"),
        ("--scale 1 0.5", r"scale must be two shares .*, got \(1.0, 0.5\)"),
        ("--ratio 0 1", r"ratio must be two numbers .*, got \(0.0, 1.0\)"),
        ("--methods mixup --lambda-max 3", r"lambda_max must be in \(0, 1\], got 3.0"),
        ("--methods mixup --saliency-size 0", "saliency_size must be at least 1, got 0"),
        ("--alpha 0", r"alpha must be in \(0, inf\), got 0.0"),
        ("--label-smoothing 1", r"label_smoothing must be in \[0, 1\), got 1.0"),
        ("--model no_such_net", "model must be one that timm.list_models.* got 'no_such_net'"),
        ("--model vgg11", "model='vgg11' does not go with image_size=8: .*"),
        ("--methods none picky", "picky needs another network"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    call, tmp_path, monkeypatch, options, text
):
    def picky(*_):
        raise ValueError("picky needs another network")

    monkeypatch.setitem(METHODS, "picky", picky)
    out = tmp_path / "out"
    code, _, errors = call(f"train {SMALL} --methods none --out {out} {options}")
    assert code == 2
    assert re.fullmatch(f"harness: {text}\n", errors)
    assert not out.exists()


def test_what_is_asked_for_twice_is_trained_once(call, tmp_path):
    line = f"train {SMALL} --methods none none --seeds 1 1 --out {tmp_path}"
    code, printed, _ = call(line)
    assert (code, printed.count("none  seed 1")) == (0, 1)
    assert len(read_results(tmp_path / "results.jsonl")) == 1


@pytest.mark.parametrize("place", ["", "/below"])
def test_a_file_in_the_place_of_the_folder_is_refused(call, tmp_path, place):
    (tmp_path / "out").write_text("mine")
    code, _, errors = call(f"train {SMALL} --methods none --out {tmp_path}/out{place}")
    assert code == 2
    assert re.fullmatch("harness: out='.*' cannot be written to: .+\n", errors)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("foreground --pairs 30", "pairs must be a multiple of 20, at least 40, got 30"),
        (
            "agreement --sizes 4 --pairs 30",
            "pairs must be a multiple of batch_size=20, at least 40, got 30",
        ),
        ("dynamics --measured 3", r"measured must be epochs in \[1, 2\], got \(3,\)"),
        ("gallery --pairs 0", "pairs must be at least 1, got 0"),
    ],
)
def test_other_commands_train_nothing_that_they_cannot_measure(call, tmp_path, line, text):
    code, _, errors = call(f"{line} {SMALL} --out {tmp_path}")
    assert code == 2
    assert re.fullmatch(f"harness: {text}\n", errors)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("overhead --device foo", "device='foo' is not there: .+"),
        ("overhead --methods none --lambda-max 3", r"lambda_max must be in \(0, 1\], got 3.0"),
        ("overhead --batch-sizes", "batch_sizes must name at least one, got none"),
        ("overhead --out FILE", "out='.*' cannot be written to: .+"),
        ("report . --out FILE", "out='.*' cannot be written to: .+"),
    ],
)
def test_commands_that_train_nothing_refuse_alike(call, tmp_path, line, text):
    (tmp_path / "file").touch()
    code, _, errors = call(line.replace("FILE", str(tmp_path / "file")))
    assert code == 2
    assert re.fullmatch(f"harness: {text}\n", errors)


@pytest.mark.parametrize("line", ["robustness", "report"])
def test_a_folder_that_is_not_there_is_named(call, tmp_path, line):
    code, _, errors = call(f"{line} {tmp_path}/runs")
    assert (code, errors) == (2, f"harness: no such folder: {tmp_path}/runs\n")


@pytest.mark.parametrize(
    ("package", "line", "names"),
    [
        (harness, "train --out=~/runs --data-dir=~/runs", ("out", "data.data_dir")),
        (harness, "overhead --out=~/runs", ("out",)),
        (harness, "robustness ~/runs", ("directory",)),
        (harness, "report ~/runs --out ~/runs", ("directories", "out")),
        (fewshot, "--out=~/runs", ("out",)),
        (fewshot, "evaluate ~/runs", ("directory",)),
    ],
)
def test_a_tilde_is_the_home_folder(monkeypatch, package, line, names):
    monkeypatch.setenv("HOME", "/the/home")
    monkeypatch.setattr(sys, "argv", [package.__name__, *line.split()])
    command = package.__main__.parse()
    for name in names:
        value = command
        for part in name.split("."):
            value = getattr(value, part)
        (path,) = value if isinstance(value, tuple) else (value,)
        assert str(path) == "/the/home/runs"
    assert data_folder("folder", Path("~/runs"), Path("out")) == "/the/home/runs"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_line_and_the_same_command_goes_on(
    call, tmp_path, monkeypatch, sent, code
):
    before = signal.getsignal(sent)

    def build(training):
        mix = METHODS["none"](training)
        batches = iter(range(1000))

        def signalled(images, targets):
            if next(batches) == 7:  # in the second epoch
                os.kill(os.getpid(), sent)
            return mix(images, targets)

        return signalled

    line = f"train {SMALL} --methods mixed --out {tmp_path}"
    monkeypatch.setitem(METHODS, "mixed", build)
    ended, _, errors = call(line)
    assert ended == code
    assert errors.endswith("\nharness: interrupted: the same command goes on where it was\n")
    assert not (tmp_path / "failures.jsonl").exists()
    assert signal.getsignal(sent) is before
    monkeypatch.setitem(METHODS, "mixed", METHODS["none"])
    ended, _, errors = call(line)
    assert ended == 0
    assert "mixed  seed 0  resumed at epoch 1 of 2\n" in errors
    assert len(read_results(tmp_path / "results.jsonl")) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_sign_gets_another(monkeypatch, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("out", "err")}
    monkeypatch.setattr(sys, "argv", ["harness", "train", "--epochs", "x"])
    for name, stream in streams.items():
        monkeypatch.setattr(sys, f"std{name}", stream)
    with pytest.raises(SystemExit, match="2"):
        harness.__main__.main()
    print("λ ± ρ →")
    streams["out"].flush()
    assert streams["out"].buffer.getvalue().endswith("λ ± ρ →\n".encode(encoding, "replace"))


def test_import_brings_networks_and_data_sets_too(call, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(harness.data, "_REGISTERED", {})
    (tmp_path / "brought.py").write_text(
        """
import timm
from harness.data import register_dataset
from harness.glyphs import Glyphs
from harness.models import preactresnet8_cifar
from timm.models import register_model


@register_model
def brought_net(pretrained=False, **options):
    return preactresnet8_cifar(pretrained, **options)


register_dataset("brought", lambda settings, split: Glyphs(split, 40, 8, classes=2), hflip=0)
"""
    )
    asked = f"{SMALL} --train-size 40 --methods none --model brought_net --dataset brought"
    code, _, errors = call(f"train --import brought {asked} --out {tmp_path}/out")
    assert code == 0, errors
    (line,) = read_results(tmp_path / "out/results.jsonl")
    assert (line["model"], line["dataset"], line["train_size"]) == ("brought_net", "brought", 40)
    code, _, errors = call("report . --import no_such_module")
    assert (code, errors) == (
        2,
        "harness: import='no_such_module': No module named 'no_such_module'\n",
    )
