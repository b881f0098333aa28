"""Which runs can be compared: those of one setting, by method and seed."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from harness.config import RunConfig
from harness.methods import METHODS
from harness.methods.base import MethodConfig
from harness.methods.sage import OWN_SETTINGS, is_sage
from harness.report.read import Lines
from harness.store import Line, all_finite

_NAMED_IN_TITLE = ("data.dataset", "data.train_size", "model", "schedule.epochs", "learner")
_FIGURES = {"train_loss": "training loss", "top1": "top-1", "nll": "NLL", "ece": "ECE"}


class Evaluation(NamedTuple):
    """What a network was evaluated on and with, on episodes of novel classes."""

    ways: int
    shots: int
    queries: int
    episodes: int
    episode_seed: int
    normalization: str
    classifier: str


@dataclass
class MethodRuns:
    """The runs of one method in one setting that share the settings of their own, too."""

    method: str
    own: dict[str, Any]
    """The settings that this method reads and not all do: alpha, and what only SAGE reads."""
    label: str = ""
    runs: dict[int, Line] = field(default_factory=dict)
    """Runs that were asked for, by seed, as the others."""
    results: dict[int, Line] = field(default_factory=dict)
    failures: dict[int, Line] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)
    """Why the figures of a run count for nothing; it is not among the results."""
    foreground: dict[int, Line] = field(default_factory=dict)
    robustness: dict[tuple[str, float], dict[int, Line]] = field(default_factory=dict)
    """By kind and strength, then by seed."""
    episodes: dict[Evaluation, dict[int, Line]] = field(default_factory=dict)
    """By what they were evaluated with, then by seed."""

    def values(self, measure: str) -> dict[int, float]:
        """What the results hold of a measure, by seed."""
        return {
            seed: run[measure]
            for seed, run in sorted(self.results.items())
            if run.get(measure) is not None
        }

    def set_apart(self) -> None:
        """Sets diverged runs apart, and drops the failures of runs that ended when tried again."""
        reasons = {seed: divergence(line) for seed, line in self.results.items()}
        self.diverged = {seed: reason for seed, reason in reasons.items() if reason}
        for seed in self.results:
            self.failures.pop(seed, None)
        for lines in (self.results, *self.robustness.values(), *self.episodes.values()):
            for seed in self.diverged:
                lines.pop(seed, None)
        self.robustness = {
            condition: lines for condition, lines in self.robustness.items() if lines
        }
        self.episodes = {evaluation: lines for evaluation, lines in self.episodes.items() if lines}

    def seeds(self) -> set[int]:
        """All seeds that the method was to be trained with."""
        parts = (self.runs, self.results, self.failures, self.diverged)
        return set().union(*parts, *self.robustness.values())


@dataclass
class Setting:
    """Runs that share all settings but the method, the seed, and what not all methods read."""

    config: dict[str, Any] | None
    """What they share; None if the lines do not tell."""
    methods: list[MethodRuns]
    title: str = "What the mixes keep"
    dynamics: list[Line] = field(default_factory=list)
    agreement: list[Line] = field(default_factory=list)

    @property
    def learner(self) -> str | None:
        """What made few-shot backbones: a classifier, or a meta-learner; None for other runs."""
        return (self.config or {}).get("learner")

    @property
    def top1_name(self) -> str:
        """What ``top1`` is: the accuracy by which few-shot training chose its epoch, else top-1."""
        return "top-1" if self.learner is None else "validation accuracy"

    def trained(self) -> list[MethodRuns]:
        """The methods that were to be trained; others are here for their mixes alone."""
        return [runs for runs in self.methods if runs.seeds()]

    def find(self, method: str) -> MethodRuns | None:
        """The runs of a method; of its variants, the one that the others are variants of.

        That is the one that differs from the others in the fewest settings; of two, the defaults.
        """
        found = [runs for runs in self.trained() if runs.method == method]
        default = own_settings(method, asdict(MethodConfig()))

        def apart(runs: MethodRuns) -> tuple[int, bool]:
            changes = [len(_differing([runs.own, other.own])) for other in found]
            return sum(changes), runs.own != default

        return min(found, key=apart, default=None)


def settings(lines: Lines) -> list[Setting]:
    """Sorts the lines by setting, method and seed; of two lines for one run, the later counts.

    The methods come in the registry's order. Two values of a setting that a method reads and not
    all do make two rows of it, whose labels tell them apart, beside one row of each other method.
    """
    found: dict[str, Setting] = {}
    for part in ("runs", "failures", "results", "foreground", "robustness", "episodes"):
        for line in getattr(lines, part):
            runs = _place(found, line)
            if part == "robustness":
                condition = (line["kind"], line["strength"])
                runs.robustness.setdefault(condition, {})[line["seed"]] = line
            elif part == "episodes":
                evaluation = Evaluation(*(line[name] for name in Evaluation._fields))
                runs.episodes.setdefault(evaluation, {})[line["seed"]] = line
            else:
                getattr(runs, part)[line["seed"]] = line
    for line in lines.dynamics:
        _setting(found, line).dynamics.append(line)
    for line in lines.agreement:
        _setting(found, line).agreement.append(line)
    for setting in found.values():
        setting.methods.sort(key=lambda runs: registry_order(runs.method))
        names = labels([(runs.method, runs.own) for runs in setting.methods])
        for runs, label in zip(setting.methods, names, strict=True):
            runs.label = label
            runs.set_apart()
    told = [setting for setting in found.values() if setting.config is not None]
    for learner in dict.fromkeys(setting.learner for setting in told):
        _name([setting for setting in told if setting.learner == learner])
    return list(found.values())


def registry_order(method: str) -> int:
    """The method's place in the registry; those that it does not know come last."""
    order = list(METHODS)
    return order.index(method) if method in order else len(order)


def own_settings(method: str, mixing: dict[str, Any]) -> dict[str, Any]:
    """The mixing settings that a method reads and not all do: alpha, and what only SAGE reads.

    A setting that the line does not hold is younger than it, and has its default.
    """
    if method == "none" or not mixing:
        return {}
    names = ("alpha", *OWN_SETTINGS) if is_sage(method) else ("alpha",)
    return {name: mixing.get(name, getattr(MethodConfig, name)) for name in names}


def labels(methods: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names methods, and where one occurs with several settings, what departs from the defaults.

    SAGE and its ablations count as one, since their settings are the same.
    """
    found = []
    for method, own in methods:
        kin = [
            settings
            for name, settings in methods
            if name == method or (is_sage(name) and is_sage(method))
        ]
        differing = _differing(kin)
        told = (n for n in differing if n in own and own[n] != getattr(MethodConfig, n, None))
        found.append(", ".join((method, *(f"{name} {own[name]}" for name in told))))
    return found


def divergence(line: Line) -> str | None:
    """Says where a result's figures stop being finite; None if they never do."""
    figures = {name: value for name, value in line.items() if name != "config"}
    if not line.get("diverged") and all_finite(figures):
        return None
    for epoch, measured in enumerate(line.get("history", []), start=1):
        for name, value in measured.items():
            if value is None or not all_finite(value):
                return f"{_FIGURES.get(name, name)} not finite in epoch {epoch}"
    return "a figure is not finite"


def _setting(found: dict[str, Setting], line: Line) -> Setting:
    """Finds the setting of a line, or makes one."""
    config = line.get("config")
    if config is not None:
        config = _whole(config)
        for name in ("alpha", *OWN_SETTINGS):
            del config["mixing"][name]
    return found.setdefault(json.dumps(config, sort_keys=True), Setting(config, []))


def _place(found: dict[str, Setting], line: Line) -> MethodRuns:
    """Finds the place of a line, or makes one."""
    setting = _setting(found, line)
    own = own_settings(line["method"], (line.get("config") or {}).get("mixing", {}))
    for runs in setting.methods:
        if (runs.method, runs.own) == (line["method"], own):
            return runs
    setting.methods.append(MethodRuns(line["method"], own))
    return setting.methods[-1]


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """A line's settings less method and seed; those younger than the line have their defaults."""
    told = {name: value for name, value in config.items() if name not in ("method", "seed")}
    whole = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}
    whole |= RunConfig.BEFORE | told
    for name, part in RunConfig.PARTS.items():
        defaults = {k: v for k, v in asdict(part()).items() if k not in RunConfig.PLACE}
        whole[name] = defaults | told.get(name, {})
    return whole


def _name(found: list[Setting]) -> None:
    """Gives each setting of one learner a title, with what tells it from the others."""
    flat = [dict(_flat(setting.config)) for setting in found]
    differing = [name for name in _differing(flat) if name not in _NAMED_IN_TITLE]
    for setting, values in zip(found, flat, strict=True):
        line = next((run for runs in setting.methods for run in runs.results.values()), {})
        parts = (
            ("{}", line.get("dataset", values.get("data.dataset"))),
            ("{} training images", line.get("train_size", values.get("data.train_size"))),
            (
                "{} to measure on" if setting.learner is None else "{} to choose the epoch by",
                line.get("validation_size"),
            ),
            ("{}", line.get("model", values.get("model"))),
            ("{} epochs", line.get("epochs", values.get("schedule.epochs"))),
            ("{}", None if setting.learner == "classifier" else setting.learner),
        )
        words = [text.format(value) for text, value in parts if value is not None]
        words += [
            f"{name.split('.')[-1]} {values[name]}"
            for name in differing
            if values.get(name, "") != ""
        ]
        setting.title = ", ".join(words)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differing(configs: list[dict[str, Any]]) -> list[str]:
    """Names of the settings that not all have, or not all with the same value."""
    names = dict.fromkeys(name for config in configs for name in config)
    missing = object()
    return [
        name
        for name in names
        if any(config.get(name, missing) != configs[0].get(name, missing) for config in configs)
    ]
