"""The commands: training with every method, and measuring what was trained.

Nothing here imports torch at the top, for which --help would have to wait.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from fewshot.config import (
    PREFIX,
    DatasetName,
    EpisodeConfig,
    EvaluationConfig,
    LearnerName,
    TaskConfig,
)
from harness.config import (
    COMPARED,
    Amp,
    DataConfig,
    MethodConfig,
    ScheduleConfig,
    check_directory,
    expanded,
)
from harness.settings import Command, each_run

if TYPE_CHECKING:
    from fewshot.run_config import FewShotConfig

_SIZES = {"glyphs": 32, "cifarfs": 32, "fc100": 32}  # pixels; of the others 84, as is usual


def data_folder(dataset: str, root: Path | None, out: Path) -> str:
    """Gives a data set's folder: beside the results for glyphs, else as for learn2learn."""
    return str(expanded(root or (out / "data" if dataset == "glyphs" else Path("~/data"))))


@dataclass(frozen=True)
class FewShot(Command):
    r"""Train a backbone with every method and seed, and measure it on episodes of new classes.

    The backbone learns the base classes; the epoch is chosen by episodes of the validation classes;
    then the backbone is frozen and measured on episodes of the novel classes, the same ones for
    each method. One line a backbone is appended to OUT/results.jsonl, one a figure to
    OUT/episodes.jsonl; what stands there already is skipped, and a training that was cut off goes
    on from its last epoch. `python -m fewshot evaluate OUT` measures saved backbones on other
    episodes, `python -m harness report OUT` shows everything.

    Usage examples:

      python -m fewshot

      python -m fewshot --dataset mini-imagenet --root DIR --download --backbone resnet12 \
        --epochs 90 --batch-size 128 --lr 0.1 --seeds 0 1 2 --device cuda --amp bfloat16

      python -m fewshot --dataset folder --root DIR --image-size 64 --methods none sage

      python -m fewshot --learner protonet --tasks.shots 5

      python -m fewshot --learner anil --lr 0.01 --validation.episodes 200 \
        --adaptation-episodes 600
    """

    dataset: DatasetName = "glyphs"
    """glyphs is embedded; folder is train|validation|test/CLASS/*.jpg in ROOT, no class in two of
    them; the others are learn2learn's."""
    root: Path | None = None
    """Where the data set is, or is downloaded to: ~/data if None, for glyphs OUT/data."""
    download: bool = False
    """Download what is missing."""
    backbone: str = "cnn4_32"
    """learn2learn's cnn4, cnn4_32 (half as many channels), resnet12 or wrn28, or any network that
    timm knows."""
    pretrained: bool = False
    """Start from the weights that timm downloads for the backbone; learn2learn's have none."""
    initial_checkpoint: Path | None = None
    """Start from the weights in this file, in the place of published ones: a state_dict, or a
    checkpoint of timm's or of this command's. A head of another size is left out."""
    learner: LearnerName = "classifier"
    """classifier learns to tell all base classes apart; protonet, maml and anil learn from
    episodes of them, whose queries are mixed. An epoch is then tasks.steps steps."""
    tasks: TaskConfig = field(default_factory=TaskConfig)
    methods: tuple[str, ...] = COMPARED
    """Mixing methods to train with: any of the harness's."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train with."""
    train_size: int | None = None
    """Train on so many base images, the same number of each class, drawn with the run's seed."""
    image_size: int | None = None
    """Height and width in pixels to which images are resized; if None, 32 for glyphs, cifarfs and
    fc100, else 84."""
    crop_mode: Literal["squash", "center", "border"] = "squash"
    """How an image that is not square becomes square, as in timm; the same in all splits."""
    crop_pct: float = 1.0
    """Share of the resized image's side that the square takes, as in timm."""
    batch_size: int = 32
    """Images in a batch of the classifier's."""
    workers: int = 0
    """Processes that load data."""
    schedule: Annotated[ScheduleConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: ScheduleConfig(epochs=6, lr=0.02)
    )
    mixing: Annotated[MethodConfig, tyro.conf.arg(name="")] = field(default_factory=MethodConfig)
    validation: EpisodeConfig = field(default_factory=lambda: EpisodeConfig(shots=5, episodes=1000))
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )
    channels_last: bool = False
    """Lay images and weights out with channels last."""
    amp: Amp = "none"
    """Compute in this type where torch's autocast deems it safe."""
    compile: bool = False
    """Compile the network's forward and backward pass with torch.compile."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    out: Path = Path("runs/fewshot")
    """Folder for results.jsonl, episodes.jsonl and checkpoints."""

    def __call__(self) -> None:
        from fewshot.learners import LEARNERS
        from fewshot.measure import check_episodes, epoch_measure, evaluate
        from harness.data import load_splits
        from harness.device import open_device
        from harness.runs import check_runs, note_runs
        from harness.train import Validation, train

        runs = each_run(self.run, self.methods, self.seeds)
        device = open_device(self.device)
        check_episodes(runs[0], self.evaluation)
        check_runs(runs, self.out)
        note_runs(runs, self.out)

        def measured(run: "FewShotConfig", progress: Any) -> Iterator[dict[str, Any]]:
            targets = load_splits(run.data, run.seed).validation.targets
            validation = Validation(epoch_measure(run, targets), best=True)
            learner = LEARNERS[run.learner]
            result = train(
                run, self.out, device, learner=learner, validation=validation, progress=progress
            )
            tqdm.write(
                f"{run.method:>8}  seed {run.seed}  best epoch {result['best_epoch']}  "
                f"validation {result['top1']:5.2f} %  step {result['step_ms']:.1f} ms"
            )
            yield from evaluate(run, self.evaluation, self.out, device)

        files = f"results: {self.out / 'results.jsonl'} and {self.out / 'episodes.jsonl'}"
        _measure_all(runs, measured, self.out, files)

    def run(self, method: str, seed: int) -> "FewShotConfig":
        """Makes the settings of one run."""
        from fewshot.run_config import FewShotConfig

        size = _SIZES.get(self.dataset, 84) if self.image_size is None else self.image_size
        data = self._shared(DataConfig) | {
            "dataset": PREFIX + self.dataset,
            "data_dir": data_folder(self.dataset, self.root, self.out),
            "dataset_download": self.download,
            "image_size": size,
        }
        shared = self._shared(FewShotConfig)
        return FewShotConfig(method, seed, self.backbone, DataConfig(**data), **shared)

    def _shared(self, kind: type) -> dict[str, Any]:
        """Gives the options that are also settings of this kind."""
        names = (setting.name for setting in fields(kind))
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure the backbones in DIR/checkpoints on episodes of new classes, without training.

    Usage examples:

      python -m fewshot evaluate runs/fewshot --shots 1 5 10 --normalizations un l2n cl2n
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """Folder that holds results.jsonl and checkpoints/."""
    root: Path | None = None
    """Where the data set is: ~/data if None, for glyphs DIR/data."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""

    def __call__(self) -> None:
        from fewshot.measure import evaluate
        from fewshot.run_config import FewShotConfig
        from harness.device import open_device
        from harness.store import RUN, read_results

        check_directory(self.directory)
        self.evaluation.check()
        device = open_device(self.device)
        path = self.directory / "results.jsonl"
        runs = []
        for result in read_results(path, {**RUN, "dataset": str}):
            dataset = result["dataset"].removeprefix(PREFIX)
            if dataset != result["dataset"]:
                root = data_folder(dataset, self.root, self.directory)
                runs.append(FewShotConfig.from_identity(result["config"], root))
        if not runs:
            raise ValueError(f"no few-shot results in {path}")

        def measured(run: "FewShotConfig", _progress: Any) -> Iterator[dict[str, Any]]:
            return evaluate(run, self.evaluation, self.directory, device)

        files = f"figures: {self.directory / 'episodes.jsonl'}"
        _measure_all(runs, measured, self.directory, files)


def _measure_all(
    runs: list["FewShotConfig"], measured: Callable[..., Iterator[Any]], out: Path, files: str
) -> None:
    """Measures each run, and ends with a table of all figures and the files' names."""
    from fewshot.measure import table
    from harness.runs import run_all

    lines: list[dict[str, Any]] = []
    try:
        run_all(runs, lambda run, progress: lines.extend(measured(run, progress)), out)
    finally:
        if lines:
            tqdm.write(table(lines))
        tqdm.write(files)
