import time

import psutil
import pytest

from harness.config import DataConfig, ScheduleConfig
from harness.methods import METHODS
from harness.run_config import RunConfig
from harness.store import read_results
from harness.submit import Job, submit

TINY = DataConfig(train_size=100, image_size=8, batch_size=20)


def runs(methods, seeds, epochs=2):
    schedule = ScheduleConfig(epochs=epochs)
    return [RunConfig(m, s, data=TINY, schedule=schedule) for m in methods for s in seeds]


def test_a_sweep_of_jobs_survives_the_kill_of_one(tmp_path):
    """Six processes of submitit's local executor; one is killed, and the same call ends its run."""
    sweep = runs(("none", "mixup", "cutmix"), (0, 1))
    (sweep[0],) = runs(("none",), (0,), epochs=40)
    first, *others = submit(sweep, tmp_path, "cpu", "local")
    while not list((tmp_path / "checkpoints").glob("none-seed0-*.pt")):
        time.sleep(0.1)
    (training,) = psutil.Process(int(first.job_id)).children()
    training.kill()
    assert first.exception() is not None
    assert [job.exception() for job in others] == [None] * 5
    assert len(read_results(tmp_path / "results.jsonl")) == 5
    (again,) = submit(sweep, tmp_path, "cpu", "local")
    again.result()
    assert "none  seed 0  resumed at epoch " in again.stderr()
    lines = read_results(tmp_path / "results.jsonl")
    assert {(line["method"], line["seed"]) for line in lines} == {
        (run.method, run.seed) for run in sweep
    }
    assert len(lines) == 6


def test_the_debug_executor_trains_what_is_not_done(tmp_path):
    sweep = runs(("none", "mixup"), (0,))
    (first,) = submit(sweep[:1], tmp_path, "cpu", "debug")
    first.result()
    (second,) = submit(sweep, tmp_path, "cpu", "debug")
    second.result()
    lines = read_results(tmp_path / "results.jsonl")
    assert [line["method"] for line in lines] == ["none", "mixup"]
    assert submit(sweep, tmp_path, "cpu", "debug") == []


def test_a_run_that_fails_leaves_the_others_and_says_why(tmp_path, monkeypatch):
    def broken(_training):
        raise RuntimeError("broken method")

    monkeypatch.setitem(METHODS, "broken", broken)
    first, second = submit(runs(("broken", "none"), (0,)), tmp_path, "cpu", "debug")
    assert "the run failed, see" in str(first.exception())
    assert second.exception() is None
    (failure,) = read_results(tmp_path / "failures.jsonl")
    assert "broken method" in failure["error"]


def test_a_job_that_is_cut_off_is_asked_for_again(tmp_path):
    job = Job(*runs(("none",), (0,)), tmp_path, "cpu")
    delayed = job.checkpoint()
    assert (delayed.function, delayed.args, delayed.kwargs) == (job, (), {})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["timeout_min"], "submit_settings must be NAME=VALUE each, got 'timeout_min'"),
        (["patience=3"], "submit_settings.*patience"),
        (["timeout_min=soon"], "submit_settings.*timeout_min"),
    ],
)
def test_a_setting_that_submitit_does_not_know_is_refused(tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        submit(runs(("none",), (0,)), tmp_path, "cpu", "local", settings)


def test_what_would_end_jobs_early_or_hide_gpus_is_refused(tmp_path):
    (run,) = runs(("none",), (0,))
    with pytest.raises(ValueError, match="timeout_min=MINUTES"):
        submit([run], tmp_path, "cpu", "slurm")
    with pytest.raises(ValueError, match="submit='local' hides GPUs"):
        submit([run], tmp_path, "cuda", "local")
    with pytest.raises(ValueError, match="submit='slurm': "):  # there is none here
        submit([run], tmp_path, "cuda", "slurm", ["timeout_min=60"])
