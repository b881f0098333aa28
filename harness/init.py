"""Times the steps of a planned comparison on this machine, and says what it will take."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from harness.check import check_folder
from harness.config import COMPARED, DataConfig
from harness.data import Splits, Subset, load_splits
from harness.device import autocast, device_name, open_device, timed
from harness.figures import markdown_table
from harness.folders import image_mode
from harness.learner import Classifier, make_optimizer, training_step
from harness.plan import (
    SEEDS,
    Facts,
    Option,
    as_settings,
    command_line,
    has_weights,
    network_for,
    plan,
)
from harness.run_config import RunConfig
from harness.weights import InitialWeights

_ROUNDS = 5
_WARMUP = 1
_ENOUGH = 60.0  # seconds, after which no other round is begun
_BATCHES = 2  # that are loaded
_TRY_EPOCHS = 2
_TRIED = ("none", "sage")


@dataclass(frozen=True)
class Times:
    """Seconds that the parts of a training take."""

    steps: Mapping[str, float]
    """A step with each method, the batch at hand."""
    forward: float
    """A forward pass of a batch in evaluation."""
    load: float
    """To get a batch of training images."""
    decode: float
    """To read an image from its file, where that is done once a run; else 0."""

    def run(self, config: RunConfig, facts: Facts, epochs: int) -> float:
        """Estimates the seconds of a run with the config's method."""
        batch = config.data.batch_size
        steps, measured = facts.train // batch, min(config.measured_epochs, epochs)
        seen = steps + facts.validation / batch  # batch norm's pass, and the validation images
        training = epochs * steps * (self.steps[config.method] + self.load)
        reading = self.decode * (facts.train + facts.validation)
        return training + measured * seen * (self.forward + self.load) + reading


def propose(
    data: DataConfig, device: str | None, model: str | None, checkpoint: Path | None
) -> str:
    """Says which training to begin with on a folder, why, and how long it will take.

    Raises ValueError for a folder that cannot be trained and measured on, for a device or a network
    that is not there, and for weights that do not fit the network.

    Args:
        data: Says where the folder and its splits are.
        device: Where to train; if None, on a GPU where there is one.
        model: The network; if None, one is chosen.
        checkpoint: The weights to start from; if None, published ones are taken where they can be
            had.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = open_device(device)
    splits = Path(str(data.data_dir)), data.train_split, data.val_split
    facts = Facts.of(check_folder(*splits, image_mode(3)), device)
    network = network_for(facts, model, checkpoint)
    weights, without = (checkpoint, "") if checkpoint else _published(network.value)
    options = [*_where(data), *plan(facts, network, weights)]
    settings = as_settings(options)
    runs = [settings.run(method, SEEDS[0]) for method in COMPARED]
    times = measure_times(runs, place)
    reasons = [[f"`{option}`", option.why] for option in options if option.why]
    parts = [
        f"{data.data_dir}: {facts}.",
        markdown_table(["option", "why"], reasons),
        without,
        f"```\n{command_line(options)}\n```",
        describe(runs, len(SEEDS), facts, times, place),
    ]
    return "\n\n".join(filter(None, parts))


def _where(data: DataConfig) -> Iterator[Option]:
    """Gives the options that say where the folder and its splits are."""
    usual = DataConfig()
    for name in ("dataset", "data_dir", "train_split", "val_split"):
        if getattr(data, name) != getattr(usual, name):
            yield Option(name, getattr(data, name))


def _published(model: str) -> tuple[bool, str]:
    """Tells whether a network's published weights can be had; if not, says what to do."""
    if not has_weights(model):
        return False, ""
    tqdm.write(f"looking for timm's weights of {model}", file=sys.stderr)
    try:
        InitialWeights.from_timm(model)
    except ValueError as error:
        return False, (
            f"timm's weights of {model} cannot be had from here, so that training starts from "
            "random ones, with which photographs need far more epochs. Better get them elsewhere "
            f"(`timm.create_model({model!r}, pretrained=True)`, and torch.save its state_dict()), "
            "and start this command again with `--initial-checkpoint PATH`. What kept them: "
            f"{error}"
        )
    return True, ""


def measure_times(runs: Sequence[RunConfig], device: torch.device) -> Times:
    """Times a few steps of each run's method on images of its data set, in turn.

    The runs differ in their method alone.
    """
    config = runs[0]
    splits = load_splits(config.data, config.seed)
    count = min(_BATCHES * config.data.batch_size, len(splits.train))
    chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    some = replace(splits, train=Subset(splits.train, chosen[:count].tolist()))
    images, targets, load, decode = _loaded(config, some, device)
    trainers = {run.method: _Trainer(run, some, device) for run in runs}
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    times: dict[str, list[float]] = {method: [] for method in trainers}
    forward: list[float] = []
    begun = time.perf_counter()
    for round_ in tqdm(range(_WARMUP + _ROUNDS), desc="timing steps", leave=False, disable=None):
        if round_ > _WARMUP and time.perf_counter() - begun > _ENOUGH:
            break
        for method, trainer in trainers.items():
            fresh = images.clone()  # some methods mix in place
            with timed(times[method], device):
                trainer.step(fresh, targets)
        with timed(forward, device):
            next(iter(trainers.values())).evaluate(images)
    steps = {method: median(found[_WARMUP:]) / 1000 for method, found in times.items()}
    return Times(steps, median(forward[_WARMUP:]) / 1000, load, decode)


def _loaded(
    config: RunConfig, some: Splits, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Loads batches: one of them, the seconds for each, and those to decode an image beforehand."""
    alone = replace(config, data=replace(config.data, workers=0))
    network = _network(alone, some)
    begun = time.perf_counter()
    loader = Classifier(alone, network, some, device).loader
    decoded = time.perf_counter()
    for batch in loader:
        images, targets = batch
    load = (time.perf_counter() - decoded) / len(loader)
    if alone.data.on_device:
        return images, targets, load, (decoded - begun) / len(some.train)
    return images, targets, load / max(1, config.data.workers), 0.0


def _network(config: RunConfig, splits: Splits) -> torch.nn.Module:
    network = config.make_network(len(splits.classes))
    config.load_initial_weights(network)
    return network


class _Trainer:
    """A network in training with a run's settings."""

    def __init__(self, config: RunConfig, splits: Splits, device: torch.device) -> None:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = _network(config, splits).to(device, memory_format=layout)
        self.config, self.device = config, device
        # The batch is at hand: nothing is to be decoded once more.
        lazy = replace(config, data=replace(config.data, on_device=False))
        self.learner = Classifier(lazy, self.model, splits, device)
        self.optimizer = make_optimizer(self.model, config.schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Takes a step, as in training."""
        self.model.train()
        with autocast(self.config.amp, self.device):
            loss = self.learner.loss(images, targets)
        clip_grad = self.config.schedule.clip_grad
        training_step(loss, self.optimizer, self.scaler, clip_grad=clip_grad)

    @torch.inference_mode()
    def evaluate(self, images: torch.Tensor) -> None:
        """Takes a forward pass, as in validation."""
        self.model.eval()
        with autocast(self.config.amp, self.device):
            self.model(images)


def describe(
    runs: Sequence[RunConfig], seeds: int, facts: Facts, times: Times, device: torch.device
) -> str:
    """Says what each method and all runs will take, and what a first try would."""
    epochs = runs[0].schedule.epochs
    seconds = {run.method: times.run(run, facts, epochs) for run in runs}
    rows = [
        [method, f"{1000 * times.steps[method]:.0f}", duration(seconds[method])]
        for method in seconds
    ]
    table = markdown_table(["method", "a step, ms", "a run"], rows)
    whole = seeds * sum(seconds.values())
    few = min(_TRY_EPOCHS, epochs)
    first = sum(times.run(run, facts, few) for run in runs if run.method in _TRIED)
    options = [Option("methods", _TRIED), Option("seeds", 0), Option("epochs", few)]
    options += [Option("warmup_epochs", 0)] if runs[0].schedule.warmup_epochs else []
    options.append(Option("out", "runs/first-try"))
    none, load = times.steps[COMPARED[0]], times.load
    slow = (
        f"Reading a batch takes {1000 * load:.0f} ms of each step: copies of the images that are "
        "no larger than they are trained on would save most of it.\n\n"
    )
    return (
        f"Time, by steps measured now on {device_name(device)}:\n\n{table}\n\n"
        f"All {seeds * len(runs)} runs: {duration(whole)}. A first try, which shows that it works "
        f"and ranks nothing: add `{' '.join(map(str, options))}`, {duration(first)}.\n\n"
        f"{slow if load > none / 2 else ''}"
        "Mixing needs longer schedules than training without it: in short ones no mixing is best, "
        "so judge the methods by the whole schedule."
    )


def duration(seconds: float) -> str:
    """Writes a time in the unit that fits, with two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {float(f'{seconds / size:.2g}'):,g} {unit}"
    return f"about {max(1, round(seconds))} seconds"
