import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

import harness.runs
from harness.config import DataConfig, ScheduleConfig
from harness.run_config import RunConfig
from harness.runs import in_turn, note_runs
from harness.store import read_results

ROOT = Path(__file__).parents[2]
RUNS = [
    RunConfig(
        "none",
        seed,
        data=DataConfig(train_size=100, image_size=8, batch_size=20),
        schedule=ScheduleConfig(epochs=4),
    )
    for seed in range(3)
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(harness.runs, "_LOOKED_AGAIN", 0.01)


def lock_of(run, out):
    return FileLock(out / "locks" / f"{run.name()}.lock", timeout=0)


def test_a_run_that_another_process_is_at_comes_last(tmp_path, capsys):
    (tmp_path / "locks").mkdir()
    other = lock_of(RUNS[0], tmp_path)
    other.acquire()
    seen = []
    for run, _ in in_turn(RUNS, tmp_path):
        seen.append(run.seed)
        if len(seen) == 2:
            other.release()
    assert seen == [1, 2, 0]
    assert capsys.readouterr().err == "waiting for another process: none seed 0\n"


def test_no_other_process_gets_a_run_until_it_is_done(tmp_path):
    turns = in_turn(RUNS, tmp_path)
    first, _ = next(turns)
    with pytest.raises(TimeoutError):
        lock_of(first, tmp_path).acquire()
    next(turns)
    lock_of(first, tmp_path).acquire()


def test_a_run_that_throws_is_free_again(tmp_path):
    with pytest.raises(RuntimeError):
        _throw(in_turn(RUNS, tmp_path))
    lock_of(RUNS[0], tmp_path).acquire()


def _throw(turns):
    for _ in turns:
        raise RuntimeError


def test_what_is_asked_for_is_noted_once(tmp_path):
    note_runs(RUNS[:2], tmp_path)
    note_runs(RUNS, tmp_path)
    assert [line["seed"] for line in read_results(tmp_path / "runs.jsonl")] == [0, 1, 2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_all_epochs_and_the_time_left(tmp_path, monkeypatch):
    """A skipped run and epochs of an earlier call count as done, and not as quickly done."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for run, progress in in_turn(RUNS, tmp_path):
        first = {0: 4, 1: 2, 2: 0}[run.seed]
        if first:
            progress(first)
        for epoch in range(first, 4):
            time.sleep(0.11)  # tqdm draws ten times a second
            progress(epoch + 1)
    text = terminal.getvalue()
    assert re.search(r"run 2 of 3: +58%.* 7/12 \[00:00<00:0[01],", text)
    assert re.search(r"run 3 of 3: 100%.* 12/12 ", text)


QUICK = """
import harness.data
harness.data._GLYPHS_VALIDATION = 200
from harness.__main__ import main
main()
"""


def test_three_processes_divide_the_runs_and_one_that_is_killed_leaves_its_to_the_others(tmp_path):
    out = tmp_path / "out"
    flags = "--train-size 100 --image-size 8 --batch-size 20 --epochs 12 --methods none mixup"
    call = [sys.executable, "-c", QUICK, "train", *flags.split(), "--seeds", "0", "1"]
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    processes = []
    for log in logs:
        with log.open("w") as file:
            processes.append(
                subprocess.Popen([*call, "--out", str(out)], cwd=ROOT, stdout=file, stderr=file)
            )
    try:
        killed, run = kill_in_a_run(processes, logs)
        for process in processes:
            assert process is killed or process.wait(timeout=120) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    asked = Counter((method, seed) for method in ("none", "mixup") for seed in range(2))
    for name in ("results", "runs"):
        lines = read_results(out / f"{name}.jsonl")
        assert Counter((line["method"], line["seed"]) for line in lines) == asked
    assert not (out / "failures.jsonl").exists()
    text = "".join(log.read_text() for log in logs)
    trained = Counter(re.findall(r"(\w+)  seed (\d)  epoch \d+/12", text))
    assert trained.pop(run) >= 12
    assert set(trained.values()) == {12}  # by one process each
    survivors = "".join(
        log.read_text() for log, p in zip(logs, processes, strict=True) if p is not killed
    )
    assert re.search(rf"{run[0]}  seed {run[1]}  resumed at epoch \d+ of 12\n", survivors)


def kill_in_a_run(processes, logs):
    """Kills the first process that is seen in the midst of a run; tells which, and the run."""
    while True:
        for process, log in zip(processes, logs, strict=True):
            assert process.poll() is None, log.read_text()
            found = re.search(r"(\w+)  seed (\d)  epoch 3/12", log.read_text())
            if found:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return process, found.groups()
        time.sleep(0.02)
