"""The commands of ``python -m harness``: their options with their help, and what they run.

Nothing here imports torch at the top, for which --help would have to wait.
"""

import glob
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tqdm import tqdm

from harness.config import (
    COMPARED,
    DataConfig,
    MethodConfig,
    OverheadConfig,
    check_directory,
    make_directory,
)
from harness.settings import Command, Settings, each_run


@dataclass(frozen=True)
class Check(Command):
    """Say what a folder of images holds, before anything is trained on it.

    Prints the classes with their counts, the images' sizes and types, and what is odd: files that
    are no images, the same images in both splits, an EXIF orientation. What would keep a training
    from running, or make its figures wrong, ends with one line and exit code 2. Every command that
    opens a folder makes the same check first.

    Usage examples:

      python -m harness check photographs

      python -m harness check photographs --val-split test
    """

    data_dir: Annotated[Path, tyro.conf.Positional]
    """Folder that holds SPLIT/CLASS/, with images at any depth."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "validation"
    """Split to measure on; where there is none called validation, val, valid or test."""
    in_chans: Literal[1, 3] = 3
    """Channels that images are converted to: 3 for RGB, 1 for grey."""

    def __call__(self) -> None:
        from harness.check import check_folder, describe
        from harness.folders import image_mode

        mode = image_mode(self.in_chans)
        checked = check_folder(self.data_dir, self.train_split, self.val_split, mode)
        print(describe([checked.train, checked.validation]))
        print(f"\n{self.data_dir} can be trained on: {len(checked.notes)} remarks")


@dataclass(frozen=True)
class Init(Command):
    """Say which training to begin with on a folder of images, why, and how long it will take.

    Makes the same check as the check command, chooses network, image size, schedule and methods by
    what the folder holds, times a few steps of each method on this machine, and prints the train
    command. Nothing is trained or written.

    Usage examples:

      python -m harness init photographs

      python -m harness init photographs --val-split test --device cuda

      python -m harness init photographs --model resnet50 --initial-checkpoint resnet50.pt
    """

    data_dir: Annotated[Path, tyro.conf.Positional]
    """Folder that holds SPLIT/CLASS/, with images at any depth."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "validation"
    """Split to measure on; where there is none called validation, val, valid or test."""
    device: str | None = None
    """Where to train: cpu, cuda, cuda:1, ...; if None, cuda where there is one."""
    model: str | None = None
    """The network, by its name in timm; if None, one is chosen."""
    initial_checkpoint: Path | None = None
    """A file of weights to start from; if None, those that timm downloads, where they can be
    had."""

    GOES_ON: ClassVar[bool] = False

    def __call__(self) -> None:
        from harness.init import propose

        data = DataConfig("folder", str(self.data_dir), self.train_split, self.val_split)
        print(propose(data, self.device, self.model, self.initial_checkpoint))


@dataclass(frozen=True)
class Train(Settings):
    r"""Train every method with every seed, and append one line a run to OUT/results.jsonl.

    A run that stands there already is skipped, and one that was cut off goes on from its last
    epoch. One that fails is written to OUT/failures.jsonl, and the others go on. Several devices
    are used by one run under torchrun; the same command, started several times, divides the runs.

    Usage examples:

      python -m harness train --methods none mixup cutmix sage --epochs 10

      python -m harness train --preset cifar10-preactresnet18 --data-dir DIR --dataset-download \
        --methods none mixup sage --device cuda --amp bfloat16 --channels-last

      python -m harness train --dataset folder --data-dir DIR --val-split test --train-size 1000

      torchrun --nproc-per-node 2 -m harness train --device cuda
    """

    methods: tuple[str, ...] = COMPARED
    """Methods to train with; there are also cutout, keep-cutout, keep-randaugment, manifold,
    hypmix, resizemix, smoothmix, recursivemix, catchupmix, saliencymix, guidedmixup-sr,
    guidedmixup-ap, rmix, puzzlemix and comixup, those of --import, and SAGE's ablations and
    controls: docs/harness.md has a table of all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""
    tensorboard: bool = False
    """Write loss, learning rate and accuracy after each epoch to OUT/tensorboard, a folder a run;
    needs the package tensorboard."""
    submit: Literal["slurm", "local", "debug"] | None = None
    """Hand each run that is not done to a cluster as a job of its own, through submitit; local
    starts a process a run on this machine and waits for them, debug runs them in this one. A job
    that is cut off goes on from its last epoch."""
    submit_settings: tuple[str, ...] = ()
    """submit: NAME=VALUE as submitit takes them: timeout_min=600 gpus_per_node=1
    slurm_partition=gpu ..."""

    def __call__(self) -> None:
        if self.submit is not None:
            self._submit(self.submit)
            return
        import torch
        from timm.utils.distributed import init_distributed_device_so

        from harness.run_config import RunConfig
        from harness.runs import note_runs, run_all
        from harness.tensorboard import Curves, summary_writer
        from harness.train import Progress, train

        if self.tensorboard:
            summary_writer()
        runs = each_run(self.run, self.methods, self.seeds)
        self.begin(runs)
        place = init_distributed_device_so(self.device)
        device, rank = torch.device(place["device"]), place["global_rank"]
        if rank == 0:
            note_runs(runs, self.out)

        def call(run: RunConfig, progress: Progress) -> None:
            with Curves(run, self.out) as curves:
                log = curves if self.tensorboard else None
                line = train(run, self.out, device, rank, log=log, progress=progress)
            if rank == 0:
                tqdm.write(
                    f"{line['method']:>8}  seed {line['seed']}  top-1 {line['top1']:5.2f} %  "
                    f"step {line['step_ms']:.1f} ms{'  diverged' if 'diverged' in line else ''}"
                )

        try:
            run_all(runs, call, self.out, rank)
        finally:
            if rank == 0:
                tqdm.write(f"results: {self.out / 'results.jsonl'}")
        if place["distributed"]:
            torch.distributed.destroy_process_group()

    def _submit(self, cluster: Literal["slurm", "local", "debug"]) -> None:
        from harness.runs import check_runs, note_runs
        from harness.submit import submit

        if self.tensorboard:
            raise ValueError("tensorboard=True does not go with submit")
        runs = each_run(self.run, self.methods, self.seeds)
        check_runs(runs, self.out)
        note_runs(runs, self.out)
        jobs = submit(runs, self.out, self.device, cluster, self.submit_settings, self.modules)
        print(f"{len(jobs)} of {len(runs)} runs submitted, logs in {self.out / 'jobs'}")
        if cluster == "slurm":
            print(*(f"job {job.job_id}" for job in jobs), sep="\n")
            return
        failed = 0
        for job in tqdm(jobs, desc="jobs", disable=None):
            failed += job.exception() is not None
        tqdm.write(f"results: {self.out / 'results.jsonl'}")
        if failed:
            tqdm.write(f"{failed} of {len(jobs)} jobs failed: start the same command again")
            sys.exit(1)


@dataclass(frozen=True)
class Robustness(Command):
    """Measure the runs in DIR/results.jsonl on perturbed images, from their checkpoints.

    The accuracy under Gaussian noise, with a region replaced, and under the attacks FGSM and PGD is
    appended to DIR/robustness.jsonl, one line a figure. A figure that stands there already is
    skipped. A run that cannot be measured is named, and the others go on; the exit code is 1 then.

    Usage examples:

      python -m harness robustness runs

      python -m harness robustness runs --data-dir DIR --images 1000 --device cuda
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl and checkpoints/."""
    data_dir: str | None = None
    """Where the data set is (not for glyphs)."""
    images: int | None = None
    """Measure on so many validation images, drawn once for all runs; on all if None."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __call__(self) -> None:
        from harness.device import open_device
        from harness.measures.robustness import FIGURES, measure_robustness, table, torchattacks
        from harness.store import RUN, read_results

        check_directory(self.directory)
        path = self.directory / "results.jsonl"
        results = read_results(path, RUN)
        if not results:
            raise ValueError(f"no results in {path}")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        torchattacks()
        device = open_device(self.device)
        failed, lines = 0, []
        with tqdm(total=len(results) * len(FIGURES), desc="figures", disable=None) as bar:
            for number, result in enumerate(results, start=1):
                run = f"{result['method']:>8}  seed {result['seed']}"
                try:
                    for line in measure_robustness(
                        result, self.directory, self.data_dir, self.images, device
                    ):
                        lines.append(line)
                        figure = f"{line['kind']} {line['strength']:g}"
                        tqdm.write(f"{run}  {figure:<16}  top-1 {line['top1']:5.2f} %")
                        bar.update()
                except (ValueError, ImportError) as error:
                    failed += 1
                    tqdm.write(f"{run}  not measured: {error}")
                bar.update(number * len(FIGURES) - bar.n)
        if lines:
            print(table(lines))
        tqdm.write(f"figures: {self.directory / 'robustness.jsonl'}")
        if failed:
            raise SystemExit(1)


@dataclass(frozen=True)
class Overhead(OverheadConfig, Command):
    r"""Measure what a training step costs with each method, as a ratio to a step without mixing.

    Also the mixing alone, for SAGE apart from its saliency pass, and the peak memory. Writes
    OUT/overhead.json, which pytest-benchmark compare reads. A method that fails leaves the others
    measured; the exit code is 1 then.

    Usage examples:

      python -m harness overhead --methods none mixup cutmix puzzlemix sage

      python -m harness overhead --models preactresnet18_cifar resnet50 --batch-sizes 128 256 \
        --image-sizes 32 64 --channels-last --device cuda

      pytest-benchmark compare runs/overhead.json other/overhead.json
    """

    mixing: Annotated[MethodConfig, tyro.conf.arg(name="")] = field(default_factory=MethodConfig)
    out: Path = Path("runs")
    """Folder for overhead.json."""

    GOES_ON: ClassVar[bool] = False

    def __call__(self) -> None:
        from harness.measures.overhead import MEASUREMENT, benchmarks, measure_overhead

        outcome = measure_overhead(self, self.out)
        if outcome.written:
            path = self.out / "overhead.json"
            tables = MEASUREMENT.tables(benchmarks(path))
            print(*(table.text() for table in tables), sep="\n\n")
            print(f"results: {path}")
        if not outcome.all_passed:
            sys.exit(1)


@dataclass(frozen=True)
class Foreground(Settings):
    """Measure how much of both images' foregrounds survives in the mix, on glyphs.

    Appends one line a method and seed to OUT/foreground.jsonl, and prints a table; what stands
    there already is skipped. The saliency is that of a network trained by the same settings; it is
    trained first where OUT does not hold it.

    Usage examples:

      python -m harness foreground --epochs 15 --out runs/foreground

      python -m harness foreground --methods mixup cutmix sage --seeds 0 1 2 --pairs 5000
    """

    methods: tuple[str, ...] | None = None
    """Methods to measure; if None, all that are installed and that make the pixels of a mix of
    those of the batch."""
    method: str = "none"
    """The method that the network is trained with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the network, of the images and of what the methods draw."""
    pairs: int = 2_000
    """The number of mixes a method, a multiple of 20."""

    def __call__(self) -> None:
        from harness.measures.foreground import measurable_methods, measure_foreground, table

        methods = measurable_methods() if self.methods is None else self.methods
        lines = []
        for run, device, progress in self.in_turn([self.method], self.seeds):
            lines += measure_foreground(run, methods, self.out, self.pairs, device, progress)
        print(table(lines))
        print(f"results: {self.out / 'foreground.jsonl'}")


@dataclass(frozen=True)
class Agreement(Settings):
    """Measure what cheaper saliency and cheaper searches cost in agreement with the full method.

    Appends one line a variant to OUT/agreement.jsonl, and prints a table; what stands there already
    is skipped. The saliency is that of a network trained by the same settings; it is trained first
    where OUT does not hold it.

    Usage examples:

      python -m harness agreement --epochs 15 --out runs/agreement

      python -m harness agreement --sizes 16 --dtypes bfloat16 --fractions 0.25 0.5 --pairs 2000
    """

    method: str = "none"
    """The method that the network is trained with."""
    seed: int = 0
    """Seed of the network, of the images, of their weights and of the random translations."""
    pairs: int = 1_000
    """The number of pairs, a multiple of the batch size."""
    sizes: tuple[int, ...] = (8, 16, 24)
    """Pixels of the shorter side to which images are shrunk for their saliency."""
    dtypes: tuple[Literal["bfloat16", "float16"], ...] = ("bfloat16", "float16")
    """Types in which autocast computes the saliency."""
    fractions: tuple[float, ...] = (0.5,)
    """Shares of the batch whose saliency is computed."""

    def __call__(self) -> None:
        from harness.measures.agreement import measure_agreement, table, variants

        for run, device, progress in self.in_turn([self.method], [self.seed]):
            listed = variants(run, self.sizes, self.dtypes, self.fractions)
            lines = measure_agreement(run, listed, self.out, self.pairs, device, progress)
        print(table(lines))
        print(f"results: {self.out / 'agreement.jsonl'}")


@dataclass(frozen=True)
class Dynamics(Settings):
    """Follow SAGE's saliency, shifts, masks and label weights over the course of trainings.

    Trains each method with each seed, and after some epochs measures how SAGE would mix the
    training images by the network's saliency. Appends one line an epoch to OUT/dynamics.jsonl,
    saves a picture of some mixes of each, OUT/mixes-METHOD-seedN-epochE.png, and prints a table of
    means over the seeds. What stands there already is skipped, and a run that was cut off goes on.

    Usage examples:

      python -m harness dynamics --epochs 15 --measured 1 5 15 --out runs/dynamics
    """

    methods: tuple[str, ...] = ("sage",)
    """Methods to train with."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""
    measured: tuple[int, ...] = (1, 10, 30)
    """Epochs after which to measure."""
    images: int = 500
    """The number of training images to mix, a multiple of the batch size."""

    def __call__(self) -> None:
        from harness.measures.dynamics import follow, table

        lines: list[dict[str, Any]] = []
        for run, device, progress in self.in_turn(self.methods, self.seeds):
            lines += follow(run, self.measured, self.out, self.images, device, progress)
        print(table(lines))
        print(f"results: {self.out / 'dynamics.jsonl'}")


@dataclass(frozen=True)
class Report(Command):
    """Show what the other commands measured: tables, plots, and one page that holds them all.

    Reads runs.jsonl, failures.jsonl, results.jsonl, robustness.jsonl, foreground.jsonl,
    dynamics.jsonl, agreement.jsonl, episodes.jsonl, overhead.json and gallery.png, as far as they
    are there; several folders are read as if they were one. Prints the tables, and writes
    report.html, report.md, the pictures (PNG), and results.csv with a row a run.

    Usage examples:

      python -m harness report runs

      python -m harness report runs runs-on-another-machine --out report

      python -m harness report 'runs/*' --out report
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that hold what was measured, or patterns of them in quotes: 'runs/*'."""
    out: Path | None = None
    """Folder to write to; the first of the others if not given."""

    def __call__(self) -> None:
        from harness.report import markdown, read, sections, write, write_rows

        if not self.directories:
            raise ValueError("name at least one folder that holds a results.jsonl")
        found = [folder for named in self.directories for folder in folders(named)]
        out = self.out or found[0]
        make_directory(out)
        lines = read([*dict.fromkeys(found)])
        contents = sections(lines)
        print(markdown(contents, pictures=False))
        print()
        for path in [*write(contents, out), *write_rows(lines, out)]:
            print(f"written: {path}")


def folders(named: Path) -> list[Path]:
    """Gives a folder, or in order those that a pattern matches and that hold what is read."""
    from harness.report import holds_any, names

    if named.is_dir():
        return [named]
    if not glob.has_magic(str(named)):
        raise ValueError(f"no such folder: {named}")
    matched = [Path(name) for name in sorted(glob.glob(str(named), recursive=True))]
    found = [folder for folder in matched if folder.is_dir() and holds_any(folder)]
    if not found:
        raise ValueError(f"no folder that {str(named)!r} matches holds any of {', '.join(names())}")
    return found


@dataclass(frozen=True)
class Gallery(Settings):
    """Save OUT/gallery.png: pairs of images, their saliency, SAGE's mask, and every method's mix.

    The saliency is that of a network trained by the same settings; it is trained first where OUT
    does not hold it.

    Usage examples:

      python -m harness gallery --epochs 15 --out runs/gallery

      python -m harness gallery --image-size 64 --pairs 8
    """

    method: str = "none"
    """The method that the network is trained with."""
    methods: tuple[str, ...] = ("mixup", "cutmix", "saliencymix", "puzzlemix", "sage")
    """Methods whose mixes are shown; SAGE's always are, with their masks."""
    seed: int = 0
    """The run's seed, which the pairs are drawn with, too."""
    pairs: int = 6
    """Rows of the picture."""

    def __call__(self) -> None:
        from harness.measures.gallery import save_gallery

        for run, device, progress in self.in_turn([self.method], [self.seed]):
            path = save_gallery(run, self.methods, self.out, self.pairs, device, progress)
        print(f"picture: {path}")


# fmt: off
COMMANDS: tuple[type[Command], ...] = (
    Check, Init, Train, Robustness, Overhead, Foreground, Agreement, Dynamics, Report, Gallery,
)
# fmt: on
"""The commands in the order of the help."""
