import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.commands import Train
from harness.config import ScheduleConfig
from harness.data import DataConfig
from harness.methods import METHODS, Training
from harness.methods.base import MethodConfig
from harness.settings import PRESETS, Settings
from harness.store import read_results

ROOT = Path(__file__).parents[2]
FLAGS = [
    *("--train-size", "100", "--image-size", "8", "--batch-size", "20", "--epochs", "2"),
    *("--seeds", "0", "1"),
]


def command(out, *methods):
    return Train(
        methods=methods,
        seeds=(0, 1),
        data=DataConfig(train_size=100, image_size=8, batch_size=20),
        schedule=ScheduleConfig(epochs=2),
        out=out,
    )


@pytest.fixture
def failing(monkeypatch):
    """A method that throws in the middle of its second epoch."""

    def build(training):
        mix = METHODS["none"](training)
        batches = iter(range(1000))

        def mixing(images, targets):
            if next(batches) == 7:
                raise RuntimeError("no more batches <here>")
            return mix(images, targets)

        return mixing

    monkeypatch.setitem(METHODS, "failing", build)
    return "failing"


def test_a_method_that_throws_does_not_keep_the_others_from_finishing(tmp_path, failing, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(tmp_path, "none", failing, "mixup")()
    assert exit_.value.code == 1
    done = [(line["method"], line["seed"]) for line in read_results(tmp_path / "results.jsonl")]
    assert done == [("none", 0), ("mixup", 0), ("none", 1), ("mixup", 1)]
    failures = read_results(tmp_path / "failures.jsonl")
    assert [(line["method"], line["seed"]) for line in failures] == [(failing, 0), (failing, 1)]
    assert failures[0]["error"] == "RuntimeError: no more batches <here>"
    assert "in mixing" in failures[0]["traceback"]
    asked = read_results(tmp_path / "runs.jsonl")
    assert len(asked) == 6
    assert failures[0]["config"] in [line["config"] for line in asked]
    assert "2 of 6 runs failed" in capsys.readouterr().out


def test_a_run_that_failed_is_tried_again_from_its_last_epoch(tmp_path, failing, monkeypatch):
    with pytest.raises(SystemExit):
        command(tmp_path, failing)()
    monkeypatch.setitem(METHODS, failing, METHODS["none"])  # mended
    command(tmp_path, failing)()
    lines = read_results(tmp_path / "results.jsonl")
    assert [len(line["history"]) for line in lines] == [2, 2]
    assert len(read_results(tmp_path / "runs.jsonl")) == 2


def run(out, *flags, **options):
    call = [sys.executable, "-m", "harness", "train", *FLAGS, "--out", str(out), *flags]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_a_full_disk_loses_no_finished_run(tmp_path):
    """No file may grow beyond 20 kB: no checkpoint fits, the results do."""
    assert run(tmp_path, "--methods", "none").returncode == 0
    before = (tmp_path / "results.jsonl").read_text()
    limit = 20_000

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = run(tmp_path, "--methods", "none", "mixup", preexec_fn=full)
    assert result.returncode == 1
    assert "2 of 4 runs failed" in result.stdout
    assert (tmp_path / "results.jsonl").read_text() == before
    assert len(read_results(tmp_path / "failures.jsonl")) == 2
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))
    assert run(tmp_path, "--methods", "none", "mixup").returncode == 0
    assert len(read_results(tmp_path / "results.jsonl")) == 4


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_each_makes_a_run(self, name):
        """But for finetune's weights, which a test cannot download."""
        run = Settings(preset=name, **PRESETS[name] | {"pretrained": False}).run("sage", 0)
        assert run.model == PRESETS[name]["model"]
        assert run.schedule == PRESETS[name]["schedule"]

    @pytest.mark.parametrize(
        ("name", "lambda_max", "ratio"),
        [
            ("cifar10-preactresnet18", 0.6, 0.7),
            ("cifar100-preactresnet18", 0.5, 0.7),
            ("cifar100-wrn16-8", 0.7, 0.5),
            ("cifar100-resnext29-4-24", 0.7, 0.5),
        ],
    )
    def test_the_papers_settings_reach_the_run(self, name, lambda_max, ratio):
        run = Settings(preset=name, **PRESETS[name]).run("sage", 0)
        mixing = {"lambda_max": lambda_max, "update_ratio": ratio}
        assert run.mixing == MethodConfig(**mixing, search="random", search_fraction=0.01)
        assert (run.schedule.epochs, run.schedule.lr, run.schedule.weight_decay) == (300, 0.2, 1e-4)
        assert (run.schedule.sched, run.schedule.decay_milestones) == ("multistep", (100, 200))
        assert (run.data.batch_size, run.data.train_size) == (100, None)

    def test_a3_is_that_of_resnet_strikes_back(self):
        """Its Table 2."""
        run = Settings(preset="timm-a3", **PRESETS["timm-a3"]).run("mixup-cutmix", 0)
        schedule, data = run.schedule, run.data
        assert (schedule.epochs, schedule.warmup_epochs, schedule.sched) == (100, 5, "cosine")
        assert (schedule.opt, schedule.lr, schedule.weight_decay) == ("lamb", 8e-3, 0.02)
        assert (data.batch_size, data.image_size, data.crop_pct) == (2048, 160, 0.95)
        assert (data.train_crop_mode, data.aa) == ("rrc", "rand-m6-mstd0.5-inc1")
        assert (schedule.bce_loss, schedule.model_ema, run.drop_path) == (True, False, None)
        assert (run.mixing.label_smoothing, data.reprob) == (0, 0)
        mix = METHODS["mixup-cutmix"](Training(run.mixing, None, None, 10))
        assert (mix.mixup_alpha, mix.cutmix_alpha) == (0.1, 1.0)

    def test_finetune_starts_from_published_weights(self):
        settings = Settings(preset="finetune", **PRESETS["finetune"])
        assert settings.pretrained
        assert (settings.schedule.opt, settings.schedule.warmup_epochs) == ("adamw", 5)
        assert (settings.drop_path, settings.data.scale) == (0.1, (0.35, 1.0))

    def test_flags_override_the_preset(self, tmp_path):
        flags = ["--preset", "cpu", "--dataset", "glyphs", "--methods", "none", "--seeds", "0"]
        assert run(tmp_path, *flags).returncode == 0
        (line,) = read_results(tmp_path / "results.jsonl")
        assert (line["dataset"], line["epochs"], line["train_size"]) == ("glyphs", 2, 100)
        assert line["config"]["channels_last"]  # the preset's

    def test_an_unknown_one_is_refused(self, tmp_path):
        result = run(tmp_path, "--preset", "imagenet")
        assert result.returncode == 2
        assert result.stderr.startswith("harness: preset must be one of cifar10-preactresnet18, ")


def test_two_devices_train_one_network(tmp_path):
    """Under torchrun: one result, both processes with the same weights, gradients averaged."""
    script = tmp_path / "two.py"
    script.write_text(
        f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import copy
import torch, torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so
import harness.learner, harness.train
from harness.config import ScheduleConfig
from harness.run_config import RunConfig
from harness.data import DataConfig
from harness.methods.base import MethodConfig

rank = init_distributed_device_so("cpu")["global_rank"]
net = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
net.weight.grad = torch.full_like(net.weight, rank + 1.0)
beside = torch.nn.Linear(2, 2)
if rank == 0:
    beside.weight.grad = torch.ones_like(beside.weight)
harness.learner.average_gradients(net, beside, 2)
assert (net.weight.grad == 1.5).all() and net.bias.grad is None
assert (beside.weight.grad == 0.5).all() and (beside.bias.grad == 0).all()

# Half a batch each, averaged, is one process's step on the whole batch.
torch.manual_seed(0)
whole = torch.nn.Conv2d(2, 4, 3).double()
own = copy.deepcopy(whole)
images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
whole_loss = whole(images).square().mean()
whole_loss.backward()
loss = own(images[3 * rank : 3 * rank + 3]).square().mean()
loss.backward()
harness.learner.average_gradients(own, None, 2)
for name, parameter in own.named_parameters():
    torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad)
both = loss.detach().clone()
dist.all_reduce(both)
torch.testing.assert_close(both / 2, whole_loss.detach())

kept = []
Run = harness.train._Run
class Kept(Run):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        kept.append(self)
harness.train._Run = Kept
for method in ("none", "sage", "comixup", "recursivemix"):
    config = RunConfig(
        method, 1, data=DataConfig(train_size=100, image_size=8, batch_size=20),
        schedule=ScheduleConfig(epochs=2), mixing=MethodConfig(update_ratio=0.7),
        channels_last=True, devices=2,
    )
    harness.train.train(config, Path({str(tmp_path)!r}), torch.device("cpu"), rank)
    linear = getattr(kept[-1].module, "linear", torch.nn.Identity())
    for name, value in [*kept[-1].model.state_dict().items(), *linear.state_dict().items()]:
        if value.is_floating_point():
            both = [torch.empty_like(value).contiguous() for _ in range(2)]
            dist.all_gather(both, value.contiguous())
            torch.testing.assert_close(both[0], both[1], rtol=0, atol=0, msg=name)
dist.destroy_process_group()
"""
    )
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = read_results(tmp_path / "results.jsonl")
    assert [line["method"] for line in lines] == [
        "none",
        "sage",
        "comixup",
        "recursivemix",
    ]
    assert all(line["config"]["devices"] == 2 for line in lines)
    assert all(torch.tensor(line["train_loss"]).isfinite() for line in lines)
