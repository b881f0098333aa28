"""``harness init``: the command to begin with on a folder of images, and what it will take."""

import itertools
import re
import shlex
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import harness.__main__
import harness.init
import harness.train
from harness.config import COMPARED, DataConfig, ScheduleConfig
from harness.init import Times, describe, duration, measure_times
from harness.methods import METHODS
from harness.plan import (
    Facts,
    Option,
    as_settings,
    command_line,
    has_weights,
    network_for,
    plan,
)
from harness.run_config import RunConfig
from harness.settings import Settings
from harness.store import read_results
from harness.train import train
from harness.weights import InitialWeights

CPU = torch.device("cpu")


def make_folder(root, counts, size=(24, 20), mode="RGB", validation="validation"):
    """Classes with so many training images, and two to measure on."""
    draw = np.random.default_rng(0)
    for split, (number, count) in itertools.product(
        ("train", validation), enumerate(counts, start=1)
    ):
        for index in range(count if split == "train" else 2):
            path = root / split / f"class {number}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)
    return root


@pytest.fixture
def hub(monkeypatch):
    """Stands for timm's hub: a set of the networks whose weights it has, none at first."""
    create, there = timm.create_model, set()

    def create_model(name, pretrained=False, **options):
        if pretrained and name not in there:
            raise OSError("no connection")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(harness.init, "_ROUNDS", 1)
    InitialWeights.from_timm.cache_clear()
    yield there
    InitialWeights.from_timm.cache_clear()


@pytest.fixture
def call(hub, monkeypatch, capsys):
    """Runs a command in this process: its exit code, what it printed, and its errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        code = 0
        try:
            harness.__main__.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def printed_command(text):
    """The words of the command, as a shell reads them."""
    (block,) = re.findall(r"```\n(.*?)\n```", text, flags=re.DOTALL)
    assert all(line.endswith(" \\") for line in block.splitlines()[:-1])
    python, *words = shlex.split(block.replace("\\\n", ""))
    assert (python, words[:3]) == ("python", ["-m", "harness", "train"])
    return words[2:]


def test_the_command_runs_as_it_is_printed(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "my photographs", (5, 9), mode="L", validation="test")
    code, printed, _ = call("init", "my photographs", "--val-split", "test", "--device", "cpu")
    assert code == 0
    words = printed_command(printed)
    assert words.count("--epochs") == 1
    code, _, errors = call(*words, "--epochs", "1")
    assert code == 0, errors
    lines = read_results(tmp_path / "runs/results.jsonl")
    runs = sorted((line["method"], line["seed"]) for line in lines)
    assert runs == sorted(itertools.product(COMPARED, (0, 1, 2)))
    assert {line["dataset_name"] for line in lines} == {"my photographs"}
    assert {line["config"]["data"]["in_chans"] for line in lines} == {1}
    assert not (tmp_path / "runs/failures.jsonl").exists()


class TestFineTuning:
    """Images of 60 pixels and more: networks start from published weights, if they are there."""

    @pytest.fixture
    def birds(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return make_folder(tmp_path / "birds", (4, 4), size=(70, 66))

    @pytest.fixture
    def checkpoint(self, tmp_path):
        """Weights of another number of classes."""
        path = tmp_path / "weights.pt"
        torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), path)
        return path

    def test_the_command_starts_from_published_weights(self, call, hub, birds):
        hub.add("resnet18")
        code, printed, _ = call("init", "birds", "--device", "cpu")
        assert code == 0
        assert "cannot be had" not in printed
        words = printed_command(printed)
        assert words[words.index("--preset") + 1] == "finetune"
        few = re.search("add `(.*)`", printed)[1].split()
        code, _, errors = call(*words, *few, "--methods", "none", "--epochs", "1")
        assert code == 0, errors
        (line,) = read_results(birds.parent / "runs/first-try/results.jsonl")
        weights = InitialWeights.from_timm("resnet18")
        assert (line["model"], line["config"]["initial_weights"]) == ("resnet18", weights.digest)

    def test_where_the_hub_is_out_of_reach_a_file_is_the_way(self, call, birds, checkpoint):
        code, printed, _ = call("init", "birds", "--device", "cpu")
        assert code == 0
        assert "timm's weights of resnet18 cannot be had from here" in printed
        assert "--initial-checkpoint PATH" in printed
        assert not {"--preset", "--pretrained"} & {*printed_command(printed)}
        own = "--model", "resnet10t", "--initial-checkpoint", checkpoint
        code, printed, _ = call("init", "birds", "--device", "cpu", *own)
        assert code == 0
        assert "cannot be had" not in printed
        words = printed_command(printed)
        assert words[words.index("--preset") + 1] == "finetune"
        short = "--methods", "none", "--seeds", "0", "--epochs", "1", "--warmup-epochs", "0"
        code, _, errors = call(*words, *short)
        assert code == 0, errors
        (line,) = read_results(birds.parent / "runs/results.jsonl")
        digest = InitialWeights.from_file(checkpoint).digest
        assert (line["model"], line["config"]["initial_weights"]) == ("resnet10t", digest)

    def test_weights_of_another_network_are_refused(self, call, birds, checkpoint):
        own = "--model", "resnet18", "--initial-checkpoint", checkpoint
        code, printed, errors = call("init", "birds", "--device", "cpu", *own)
        assert (code, printed) == (2, "")
        assert "does not fit the network" in errors


def test_what_is_chosen_has_a_reason_and_a_time(call, tmp_path):
    make_folder(tmp_path / "birds", (6, 12), size=(40, 33))
    code, printed, _ = call("init", tmp_path / "birds", "--device", "cpu")
    assert code == 0
    assert (
        "18 images to train on and 4 to measure on, 2 classes with 6 to 12 training images, RGB, "
        "shorter side 33 pixels" in printed
    )
    reasons = dict(re.findall(r"^\| `(--[a-z-]+)[^`]*` \| (.+) \|$", printed, flags=re.MULTILINE))
    words = printed_command(printed)
    flags = {word for word in words if word.startswith("--")}
    assert flags - {"--dataset", "--data-dir"} == reasons.keys()
    assert all(reason.strip() for reason in reasons.values())
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \| about (.+) \|$", printed, flags=re.MULTILINE)
    assert [method for method, _, _ in rows] == [*COMPARED]
    assert "All 15 runs: about" in printed
    assert "Mixing needs longer schedules" in printed


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda root: (root / "train").rename(root / "other"), "has no folder train"),
        (lambda root: (root / "train/class 2").rename(root / "train/ant"), "has classes that"),
        (lambda root: (root / "validation/class 1/0.png").write_text("x"), "cannot be read"),
    ],
)
def test_what_check_refuses_is_refused_alike(call, tmp_path, spoil, text):
    spoil(make_folder(tmp_path / "birds", (3, 3)))
    harness.check.check_folder.cache_clear()
    answers = [call(name, tmp_path / "birds") for name in ("check", "init")]
    assert answers[0] == answers[1]
    code, printed, errors = answers[1]
    assert (code, printed) == (2, "")
    assert text in errors


def test_a_folder_of_one_class_is_refused(call, tmp_path):
    make_folder(tmp_path / "birds", (4,))
    code, printed, errors = call("init", tmp_path / "birds", "--device", "cpu")
    assert (code, printed) == (2, "")
    assert "one class" in errors


def test_facts_are_those_of_the_files(tmp_path):
    make_folder(tmp_path, (2, 4, 3), size=(50, 30))
    picture = Image.new("RGB", (10, 200))
    picture.save(tmp_path / "train/class 1/0.png")
    checked = harness.check.check_folder(tmp_path, "train", "validation", "RGB")
    facts = Facts.of(checked, "cpu")
    assert facts == Facts(9, 6, 3, (2, 4), side=30, grey=False, device="cpu")


anything = st.builds(
    lambda each, classes, validation, side, grey, device: Facts(
        each[0] * (classes - 1) + max(each),
        validation,
        classes,
        (each[0], max(each)),
        side,
        grey,
        device,
    ),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(2, 100),
    st.integers(1, 50_000),
    st.integers(1, 6000),
    st.booleans(),
    st.sampled_from(["cpu", "cuda", "cuda:1"]),
)


@given(anything, st.sampled_from([False, True, Path("resnet18.pt")]))
@settings(max_examples=50, deadline=None)
def test_any_folder_has_a_plan_that_the_runs_take(facts, weights):
    network = network_for(facts, None, weights if isinstance(weights, Path) else None)
    options = plan(facts, network, has_weights(network.value) and weights)
    made = as_settings(options)
    run = replace(made, pretrained=False, initial_checkpoint=None).run("sage", 0)
    assert run.data.batch_size <= facts.train
    assert (run.data.in_chans == 1) == facts.grey
    assert made.device == facts.device
    assert made.preset == ("finetune" if weights and has_weights(network.value) else None)
    assert len({option.name for option in options}) == len(options)
    assert parsed(command_line(options)) == made


def parsed(text):
    """What the command line's own parser makes of the command."""
    words = shlex.split(text.replace("\\\n", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        command = harness.__main__.parse()
    return Settings(**{each.name: getattr(command, each.name) for each in fields(Settings)})


def test_options_are_written_as_a_shell_takes_them():
    assert str(Option("on_device", True)) == "--on-device"
    assert str(Option("seeds", (0, 1))) == "--seeds 0 1"
    assert str(Option("data_dir", "it's here")) == """--data-dir 'it'"'"'s here'"""


class TestTime:
    @pytest.fixture
    def runs(self, tmp_path):
        make_folder(tmp_path, (8, 8), size=(8, 8))
        data = DataConfig("folder", str(tmp_path), image_size=8, batch_size=4, on_device=True)
        schedule = ScheduleConfig(epochs=3)
        return [
            RunConfig(method, 0, data=data, schedule=schedule, measured_epochs=2)
            for method in ("none", "mixup")
        ]

    def test_a_slow_method_is_seen(self, runs, monkeypatch):
        def build(training):
            mix = METHODS["none"](training)

            def mixing(images, targets):
                time.sleep(0.2)
                return mix(images, targets)

            return mixing

        monkeypatch.setitem(METHODS, "slow", build)
        times = measure_times([*runs, replace(runs[0], method="slow")], CPU)
        assert [*times.steps] == ["none", "mixup", "slow"]
        assert 0.2 < times.steps["slow"] < 0.2 + 5 * times.steps["none"] + 0.1
        assert 0 < times.forward < times.steps["none"]
        assert times.load > 0
        assert times.decode > 0

    def test_a_run_is_as_many_steps_and_passes_as_its_training(self, runs, tmp_path, monkeypatch):
        """Counts those of a real run."""
        taken, passed = [], []
        step, measure = harness.train.training_step, harness.train.update_bn

        def counted(*arguments, **options):
            taken.append(1)
            return step(*arguments, **options)

        def passes(batches, model):
            batches = list(batches)
            passed.extend(len(images) for images in batches)
            return measure(batches, model)

        monkeypatch.setattr(harness.train, "training_step", counted)
        monkeypatch.setattr(harness.train, "update_bn", passes)
        run = runs[0]
        result = train(run, tmp_path / "out", CPU)
        validated = run.measured_epochs * result["validation_size"]
        facts = Facts(16, result["validation_size"], 2, (8, 8), 8, False, "cpu")
        nothing = Times({"none": 0.0}, 0.0, 0.0, 0.0)

        def seconds(**changes):
            return replace(nothing, **changes).run(run, facts, run.schedule.epochs)

        batches = (sum(passed) + validated) / run.data.batch_size
        assert seconds(steps={"none": 1.0}) == len(taken) == 12
        assert seconds(forward=1.0) == batches == 10
        assert seconds(load=1.0) == len(taken) + batches
        assert seconds(decode=1.0) == 16 + 4

    def test_all_runs_and_a_first_try_are_summed(self, runs):
        """Four steps in each of three epochs, at 1 and 2 seconds; the try takes two epochs."""
        facts = Facts(16, 4, 2, (8, 8), 8, False, "cpu")
        times = Times({"none": 1.0, "mixup": 2.0}, 0.0, 0.0, 0.0)
        text = describe(runs, 3, facts, times, CPU)
        assert "| none | 1000 | about 12 seconds |\n| mixup | 2000 | about 24 seconds |" in text
        assert "All 6 runs: about 108 seconds." in text
        assert "`--methods none sage --seeds 0 --epochs 2 --out runs/first-try`, about 8 " in text
        assert "Reading" not in text
        slow = describe(runs, 3, facts, replace(times, load=0.6), CPU)
        assert "Reading a batch takes 600 ms of each step" in slow

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "about 1 seconds"),
            (119.0, "about 119 seconds"),
            (121.0, "about 2 minutes"),
            (7199.0, "about 120 minutes"),
            (7201.0, "about 2 hours"),
            (4_000_000.0, "about 1,100 hours"),
        ],
    )
    def test_it_is_written_in_the_unit_that_fits(self, seconds, text):
        assert duration(seconds) == text
