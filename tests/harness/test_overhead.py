import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.utils import random_seed

import harness.measures.overhead
from harness.config import OverheadConfig, ScheduleConfig
from harness.measures.overhead import (
    MEASUREMENT,
    SaliencyClock,
    TrainingStep,
    benchmarks,
    measure_overhead,
    peak_memory,
)
from harness.methods import METHODS
from sage_timm import sage
from sage_timm.gradient import input_gradient

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = OverheadConfig(
    methods=("none", "sage"), batch_sizes=(4,), image_sizes=(8,), classes=5, rounds=2
)


class Ticks:
    """A clock that stands still until somebody moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def read(out):
    return json.loads((out / "overhead.json").read_text())["benchmarks"]


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_in_a_worker():
    """Lets pytest-benchmark measure in a worker of pytest-xdist, where it would turn itself off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A command in which one method fails: Puzzle Mix cannot cut 9 pixels in two."""
    out = tmp_path_factory.mktemp("overhead")
    command = [sys.executable, "-m", "harness", "overhead", "--out", str(out), "--rounds", "2"]
    command += ["--methods", "none", "puzzlemix", "sage", "--update-ratio", "0.7"]
    command += ["--batch-sizes", "4", "--image-sizes", "9", "16", "--classes", "7"]
    return out, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


class TestCommand:
    def test_a_failing_method_leaves_the_others_measured(self, measured):
        out, result = measured
        assert result.returncode == 1
        assert "puzzlemix needs images of even height and width, got 9x9" in result.stdout
        expected = {
            (part, method, batch_size, image_size)
            for part, method, batch_size, image_size in itertools.product(
                ("step", "mixing", "saliency"),
                ("none", "puzzlemix", "sage"),
                (4,),
                (9, 16),
            )
            if (method, image_size) != ("puzzlemix", 9) and (part != "saliency" or method == "sage")
        }
        names = ("part", "method", "batch_size", "image_size")
        found = [tuple(b["extra_info"][name] for name in names) for b in read(out)]
        assert set(found) == expected
        assert len(found) == len(expected)

    def test_each_benchmark_says_what_was_measured(self, measured):
        for benchmark in read(measured[0]):
            facts = benchmark["extra_info"]
            assert facts["model"] == "preactresnet8_cifar"
            assert (facts["classes"], facts["channels_last"]) == (7, False)
            assert facts["mixing"]["update_ratio"] == 0.7
            assert facts["device"].startswith("cpu")
            assert facts["milliseconds"] == pytest.approx(1000 * benchmark["stats"]["median"])
            assert benchmark["stats"]["rounds"] == 2
            figures = [facts[name] for name in ("ratio", "none_milliseconds", "peak_memory_ratio")]
            if facts["part"] == "step":
                assert min(figures) > 0
            else:
                assert figures == [None] * 3

    def test_pytest_benchmark_reads_the_file_and_names_its_groups(self, measured):
        command = ["pytest_benchmark", "compare", str(measured[0] / "overhead.json")]
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        for group in ("step", "mixing", "saliency"):
            assert f"'{group}, preactresnet8_cifar, 4x3x16x16'" in result.stdout
        assert "test_step[sage-preactresnet8_cifar-4x9]" in result.stdout

    def test_a_table_of_each_setting_is_printed(self, measured):
        out, result = measured
        tables = MEASUREMENT.tables(benchmarks(out / "overhead.json"))
        assert len(tables) == 2  # of two sizes
        assert all(table.text() in result.stdout for table in tables)
        facts = [benchmark["extra_info"] for benchmark in read(out)]
        ratios = {
            (x["image_size"], x["method"]): f"{x['ratio']:.2f}"
            for x in facts
            if x["part"] == "step"
        }
        found = {
            (size, row[0]): row[1]
            for table, size in zip(tables, (9, 16), strict=True)
            for row in table.rows
        }
        assert found == ratios
        assert "batch of 4, 16 × 16 pixels" in tables[1].title

    def test_no_unfinished_file_is_left(self, measured):
        assert [path.name for path in measured[0].iterdir()] == ["overhead.json"]


class TestRatio:
    @pytest.fixture
    def clock(self, monkeypatch):
        """The harness's clock, which only the two methods below move."""
        clock = Ticks()
        monkeypatch.setattr(harness.measures.overhead, "make_clock", lambda _device: clock)
        return clock

    def takes(self, monkeypatch, clock, name, ticks):
        """Lets a method take so many ticks in its first call, its second, and so on."""

        def build(training):
            calls = iter(ticks)

            def mix(images, targets):
                clock.now += next(calls, 0)
                return images, torch.eye(training.classes)[targets]

            return mix

        monkeypatch.setitem(METHODS, name, build)

    def config(self, rounds):
        return OverheadConfig(
            methods=("slow",), batch_sizes=(4,), image_sizes=(8,), classes=5, rounds=rounds
        )

    def test_three_ticks_to_two_are_one_and_a_half(self, monkeypatch, clock, tmp_path):
        self.takes(monkeypatch, clock, "slow", itertools.repeat(3))
        self.takes(monkeypatch, clock, "none", itertools.repeat(2))
        assert measure_overhead(self.config(4), tmp_path) == (True, True)
        step, mixing = (benchmark["extra_info"] for benchmark in read(tmp_path))
        assert step["ratio"] == 1.5
        assert (step["milliseconds"], step["none_milliseconds"]) == (3000, 2000)
        assert mixing["milliseconds"] == 3000

    def test_each_round_is_compared_with_the_step_before_it(self, monkeypatch, clock, tmp_path):
        """Nine rounds are three draws, three times each; the first three calls are a warm-up."""
        random = np.random.default_rng(0)
        slow, none = random.integers(1, 100, (2, 12)).astype(float)
        self.takes(monkeypatch, clock, "slow", slow.tolist())
        self.takes(monkeypatch, clock, "none", none.tolist())
        assert measure_overhead(self.config(9), tmp_path).all_passed
        step = read(tmp_path)[0]["extra_info"]
        slow, none = (ticks[3:].reshape(3, 3) for ticks in (slow, none))  # repeats x draws
        assert step["ratio"] == pytest.approx(np.median(slow / none, axis=0).mean())
        assert step["milliseconds"] == pytest.approx(1000 * np.median(slow, axis=0).mean())
        assert step["none_milliseconds"] == pytest.approx(1000 * np.median(none, axis=0).mean())

    def test_every_draw_comes_three_times(self, monkeypatch, clock, tmp_path):
        drawn = []
        self.takes(monkeypatch, clock, "none", itertools.repeat(1))

        def build(training):
            def mix(images, targets):
                clock.now += 1
                drawn.append((np.random.rand(), torch.rand(1).item()))
                return images, torch.eye(training.classes)[targets]

            return mix

        monkeypatch.setitem(METHODS, "slow", build)
        assert measure_overhead(self.config(9), tmp_path).all_passed
        rounds = drawn[3:12]
        assert rounds[:3] == rounds[3:6] == rounds[6:]
        assert len(set(rounds)) == 3

    @pytest.mark.filterwarnings("ignore:Not saving anything")
    @pytest.mark.parametrize("when", ["made", "called"])
    def test_all_failing_leaves_an_earlier_file_alone(self, monkeypatch, clock, tmp_path, when):
        def fail(*_):
            raise ImportError("slow needs a module")

        monkeypatch.setitem(METHODS, "slow", fail if when == "made" else lambda *_: fail)
        (tmp_path / "overhead.json").write_text("earlier")
        assert measure_overhead(self.config(2), tmp_path) == (False, False)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def make_step(method="none"):
    return TrainingStep(SMALL, method, "preactresnet8_cifar", 4, 8)


def moving(clock, ticks, function):
    def moved(*args, **kwargs):
        clock.now += ticks
        return function(*args, **kwargs)

    return moved


class TestSaliencyClock:
    def test_splits_sages_call_in_two(self, monkeypatch):
        """The gradient moves the clock by 5, the search by 2, the blend by 1."""
        clock = Ticks()
        step, other = make_step("sage"), make_step("sage")
        gradient = moving(clock, 5, input_gradient)
        monkeypatch.setattr(sys.modules["sage_timm.saliency"], "input_gradient", gradient)
        for name, ticks in (("best_translation", 2), ("blend", 1)):
            monkeypatch.setattr(sage, name, moving(clock, ticks, getattr(sage, name)))
        watch = SaliencyClock(clock)
        watch.watch(step.mix.sage)
        for _ in range(3):
            step.mix(*step.batch())
        assert (watch.saliency(), watch.rest(), clock.now) == (15, 9, 24)
        other.mix(*other.batch())
        assert watch.saliency() == 15

    def test_leaves_the_mix_as_it_is(self):
        results = []
        for watch in (SaliencyClock(Ticks()).watch, lambda _sage: None):
            step = make_step("sage")
            watch(step.mix.sage)
            random_seed(3)
            results.append(step.mix(*step.batch()))
        for watched, plain in zip(*results, strict=True):
            assert torch.equal(watched, plain)


class TestStep:
    @pytest.mark.parametrize("method", ["none", "cutmix", "sage"])
    def test_trains_the_network(self, method):
        step = make_step(method)
        before = {name: value.clone() for name, value in step.model.state_dict().items()}
        step(*step.batch())
        for name, value in step.model.named_parameters():
            assert not torch.equal(value, before[name]), name

    def test_is_one_step_of_nesterov_momentum(self):
        """By hand, in which the momentum's first value is the gradient."""
        step, schedule = make_step(), ScheduleConfig()
        images, targets = step.batch()
        loss = torch.nn.functional.cross_entropy(step.model(images), targets)
        weights = dict(step.model.named_parameters())
        gradients = torch.autograd.grad(loss, weights.values())
        expected = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            decayed = gradient + schedule.weight_decay * weight.detach() * (weight.dim() > 1)
            expected[name] = weight.detach() - schedule.lr * (1 + schedule.momentum) * decayed
        step(images, targets)
        for name, weight in step.model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name], atol=1e-6, rtol=1e-5)

    def test_a_batch_is_not_changed_by_a_method_that_mixes_in_place(self):
        step = make_step("mixup")
        before = step.batch()[0]
        step(*step.batch())
        assert torch.equal(step.batch()[0], before)


class TestPeakMemory:
    """Against bytes that a method holds on purpose."""

    HELD = 2**25

    def hoard(self, monkeypatch, during_step):
        def build(training):
            held = []

            def mix(images, targets):
                held[:] = [torch.empty(self.HELD, dtype=torch.uint8)]
                if not during_step:
                    held.clear()
                return images, torch.eye(training.classes)[targets]

            return mix

        monkeypatch.setitem(METHODS, "hoard", build)

    def peak(self, method):
        return peak_memory(lambda: make_step(method), CPU)

    def test_counts_what_is_held_during_the_step(self, monkeypatch):
        self.hoard(monkeypatch, during_step=True)
        # The second call allocates before it lets go of the first one's.
        assert self.HELD < self.peak("hoard") - self.peak("none") <= 2 * self.HELD

    def test_counts_what_is_held_for_a_moment(self, monkeypatch):
        """Before the forward pass, there are weights, momentum, gradients and images, no more."""
        self.hoard(monkeypatch, during_step=False)
        step = make_step()
        weights = sum(p.numel() * 4 for p in step.model.parameters())
        images = step.images.numel() * 4
        own = self.peak("hoard") - self.HELD
        assert 3 * weights + 2 * images <= own <= 3 * weights + 2 * images + 50_000

    def test_is_the_same_again(self):
        assert self.peak("sage") == self.peak("sage")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": ("none", "nosuchmix")}, "methods must be of none, mixup, .* got 'nosuchmix'"),
        ({"models": ("no_such_net",)}, r"models must be of timm.list_models\(\), got 'no_such"),
        ({"batch_sizes": (4, 5)}, "batch_sizes must be even, since timm's Mixup mixes .* got 5"),
        ({"image_sizes": (7,)}, "image_sizes must be at least 8, got 7"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"device": "nowhere"}, "device='nowhere' is not there"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_measured(tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        measure_overhead(replace(SMALL, **change), tmp_path)
    assert not list(tmp_path.iterdir())
