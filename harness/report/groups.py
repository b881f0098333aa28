"""Groups of runs that can be compared: settings, and the methods' labels in each."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

import pandas as pd

from harness.config import MethodConfig
from harness.figures import Runs
from harness.measures import measurements
from harness.methods import METHODS
from harness.methods.sage import is_sage
from harness.run_config import RunConfig
from harness.store import Line, all_finite

_SHARED = ("alpha", "label_smoothing", "cutmix_alpha")
_OWN = ("alpha", *(f.name for f in fields(MethodConfig) if f.name not in _SHARED))
_NAMED_IN_TITLE = ("data.dataset", "data.train_size", "model", "schedule.epochs", "learner")
_ALWAYS = ("top1", "train_loss", "train_seconds", "history", "notes", "broken_images")
_FIGURES = {"train_loss": "training loss", "top1": "top-1", "nll": "NLL", "ece": "ECE"}


class Method(NamedTuple):
    """A method, and those of its settings that not all methods read: alpha, and SAGE's own."""

    name: str
    own: tuple[tuple[str, Any], ...]


@dataclass
class Setting:
    """Runs that share all settings but the method, the seed, and what not all methods read."""

    config: dict[str, Any] | None
    """The settings that they share; None if the lines do not tell."""
    title: str = "What the mixes keep"
    dataset: str | None = None
    """What the data set is called, by runs.jsonl if it says so, else by another file."""
    lines: dict[str, list[Line]] = field(default_factory=dict)
    """Lines by file, each with the "label" of its method; those of diverged runs left out."""
    methods: dict[str, Method] = field(default_factory=dict)
    """The methods by label, in the tables' order."""
    trained: dict[str, dict[int, str]] = field(default_factory=dict)
    """What became of the runs, by label and seed."""
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Errors by label and seed."""
    diverged: dict[tuple[str, int], str] = field(default_factory=dict)
    """Why a run's figures count for nothing, by label and seed."""
    finished: list[Line] = field(default_factory=list)
    """A line of results a run, those of diverged runs too; of two for one run, the later."""

    @property
    def learner(self) -> str | None:
        """What made few-shot backbones: a classifier, or a meta-learner; None for other runs."""
        return (self.config or {}).get("learner")

    @property
    def top1_name(self) -> str:
        """What ``top1`` is: the accuracy by which few-shot training chose its epoch, else top-1."""
        return "top-1" if self.learner is None else "validation accuracy"

    def results(self) -> pd.DataFrame:
        """Sorts the results by label and seed; of two lines for one run, the later counts."""
        order = [*self.methods]
        lines = {(line["label"], line["seed"]): line for line in self.lines.get("results", [])}
        index = sorted(lines, key=lambda run: (order.index(run[0]), run[1]))
        rows = pd.MultiIndex.from_tuples(index, names=["label", "seed"])
        found = pd.DataFrame([lines[run] for run in index], rows)
        return found.reindex(columns=[*dict.fromkeys([*found, *_ALWAYS])])

    def runs(self, others: Collection[str] = ()) -> Runs:
        """Lists what became of the runs of the methods that were to be trained, and of others."""
        labels = (label for label in self.methods if label in self.trained or label in others)
        return {label: self.trained.get(label, {}) for label in labels}

    def find(self, method: str, others: Collection[str] = ()) -> str | None:
        """Finds a method's label; of several variants, the one with the most usual settings.

        That is the one that differs from the others in the fewest settings; of two, the defaults.
        """
        found = [label for label in self.runs(others) if self.methods[label].name == method]
        default = own_settings(method, asdict(MethodConfig()))

        def apart(label: str) -> tuple[int, bool]:
            own = self.methods[label].own
            changes = [len(_differing([dict(own), dict(self.methods[x].own)])) for x in found]
            return sum(changes), own != default

        return min(found, key=apart, default=None)


def settings(files: Mapping[str, Sequence[Line]]) -> list[Setting]:
    """Sorts the lines of files by the settings that their runs share.

    The methods come in the registry's order. Two values of a setting that a method reads and not
    all do make two labels, beside one of each other method.
    """
    of = {name: measurement.of for name, measurement in measurements().items()}
    found: dict[str, Setting] = {}
    for file, lines in files.items():
        for line in lines if of.get(file) != "steps" else ():
            config = _shared(line.get("config"))
            setting = found.setdefault(json.dumps(config, sort_keys=True), Setting(config))
            setting.lines.setdefault(file, []).append(line)
            if file == "runs" or setting.dataset is None:
                setting.dataset = line.get("dataset_name", setting.dataset)
    for setting in found.values():
        rows = [f for f in setting.lines if of.get(f, "runs") in ("runs", "mixes")]
        methods = dict.fromkeys(method_of(line) for file in rows for line in setting.lines[file])
        names = labels(sorted(methods, key=lambda method: registry_order(method.name)))
        setting.methods = {label: method for method, label in names.items()}
        order = [*setting.methods, None]
        for file, lines in setting.lines.items():
            if of.get(file) == "sage":
                setting.lines[file] = labelled(lines, "sage")
            else:
                of_methods = (line | {"label": names.get(method_of(line))} for line in lines)
                setting.lines[file] = sorted(of_methods, key=lambda x: order.index(x["label"]))
        _set_apart(setting, [file for file in rows if of.get(file) != "mixes"])
    told = [setting for setting in found.values() if setting.config is not None]
    for learner in dict.fromkeys(setting.learner for setting in told):
        _name([setting for setting in told if setting.learner == learner])
    return list(found.values())


def registry_order(method: str) -> int:
    """Returns a method's place in the registry; those that it does not know come last."""
    order = list(METHODS)
    return order.index(method) if method in order else len(order)


def own_settings(method: str, mixing: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Picks what a method reads and not all do; a setting younger than the line has its default."""
    if method == "none" or not mixing:
        return ()
    names = _OWN if is_sage(method) else ("alpha",)
    return tuple((name, mixing.get(name, getattr(MethodConfig, name))) for name in names)


def method_of(line: Line, name: str | None = None) -> Method:
    """Reads the method that a line is of, unless ``name`` is; if none, that of its network."""
    config = line.get("config") or {}
    name = name or line.get("method") or str(config.get("method"))
    return Method(name, own_settings(name, line.get("mixing") or config.get("mixing", {})))


def labelled(lines: Sequence[Line], name: str | None = None) -> list[Line]:
    """Adds the label of its method to each line, or of the method ``name``; in registry order."""
    lines = sorted(lines, key=lambda line: registry_order(method_of(line, name).name))
    found = labels([*dict.fromkeys(method_of(line, name) for line in lines)])
    return [line | {"label": found[method_of(line, name)]} for line in lines]


def labels(methods: Sequence[Method]) -> dict[Method, str]:
    """Names methods, and where one occurs with several settings, what departs from the defaults.

    SAGE and its ablations count as one, since their settings are the same.
    """
    found = {}
    for method in methods:
        kin = [
            dict(other.own)
            for other in methods
            if other.name == method.name or (is_sage(other.name) and is_sage(method.name))
        ]
        differing, own = _differing(kin), dict(method.own)
        told = (n for n in differing if n in own and own[n] != getattr(MethodConfig, n, None))
        found[method] = ", ".join((method.name, *(f"{name} {own[name]}" for name in told)))
    return found


def _set_apart(setting: Setting, files: Sequence[str]) -> None:
    """Notes what became of each run, and drops the lines of diverged ones from their files."""
    of = {
        file: {(line["label"], line["seed"]): line for line in setting.lines.get(file, [])}
        for file in ("runs", "failures", "results")
    }
    setting.finished = [*of["results"].values()]
    reasons = {run: _divergence(line) for run, line in of["results"].items()}
    setting.diverged = {run: reason for run, reason in reasons.items() if reason}
    setting.failed = {
        run: line["error"] for run, line in of["failures"].items() if run not in of["results"]
    }
    for run in (run for lines in of.values() for run in lines):
        word = "diverged" if run in setting.diverged else "failed" if run in setting.failed else ""
        setting.trained.setdefault(run[0], {})[run[1]] = word
    for file in files:
        setting.lines[file] = [
            x for x in setting.lines[file] if (x["label"], x["seed"]) not in setting.diverged
        ]


def _divergence(line: Line) -> str | None:
    """Says where a result's figures stop being finite; None if they never do."""
    figures = {name: value for name, value in line.items() if name != "config"}
    if not line.get("diverged") and all_finite(figures):
        return None
    for epoch, measured in enumerate(line.get("history", []), start=1):
        for name, value in measured.items():
            if value is None or not all_finite(value):
                return f"{_FIGURES.get(name, name)} not finite in epoch {epoch}"
    return "a figure is not finite"


def _shared(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Takes what runs share, whole."""
    if config is None:
        return None
    whole = {k: v for k, v in completed(config).items() if k not in ("method", "seed")}
    whole["mixing"] = {k: v for k, v in whole["mixing"].items() if k not in _OWN}
    return whole


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives settings that are younger than their line the defaults of its time."""
    known = (f for f in fields(RunConfig) if f.name not in RunConfig.SOURCE)
    whole = {f.name: f.default for f in known if f.default is not MISSING}
    whole |= RunConfig.BEFORE | dict(config)
    for name, part in RunConfig.PARTS.items():
        defaults = {k: v for k, v in asdict(part()).items() if k not in RunConfig.PLACE}
        whole[name] = defaults | config.get(name, {})
    as_json: dict[str, Any] = json.loads(json.dumps(whole))  # with lists for tuples, as in lines
    return as_json


def _name(found: Sequence[Setting]) -> None:
    """Gives each setting of one learner a title, with what tells it from the others."""
    flat = [pd.json_normalize(setting.config).to_dict("records")[0] for setting in found]
    differing = [name for name in _differing(flat) if name not in _NAMED_IN_TITLE]
    data: dict[str | None, set[Any]] = {}
    for setting, values in zip(found, flat, strict=True):
        data.setdefault(setting.dataset, set()).add(values.get("data.fingerprint"))
    if None not in data and all(len(prints) == 1 for prints in data.values()):
        differing = [name for name in differing if name != "data.fingerprint"]  # the names tell
    for setting, values in zip(found, flat, strict=True):
        line = next(iter(setting.lines.get("results", [])), {})
        sort = "measure on" if setting.learner is None else "choose the epoch by"
        parts = (
            ("{}", setting.dataset or line.get("dataset", values.get("data.dataset"))),
            ("{} training images", line.get("train_size", values.get("data.train_size"))),
            (f"{{}} to {sort}", line.get("validation_size")),
            ("{}", line.get("model", values.get("model"))),
            ("{} epochs", line.get("epochs", values.get("schedule.epochs"))),
            ("{}", None if setting.learner == "classifier" else setting.learner),
        )
        words = [text.format(value) for text, value in parts if value is not None]
        told = (name for name in differing if values.get(name, "") != "")
        setting.title = ", ".join([*words, *(f"{n.split('.')[-1]} {values[n]}" for n in told)])


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the settings that not all have, or not all with the same value."""
    names = dict.fromkeys(name for config in configs for name in config)
    missing = object()
    return [
        name
        for name in names
        if any(config.get(name, missing) != configs[0].get(name, missing) for config in configs)
    ]
