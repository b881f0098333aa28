"""The tables on SAGE's saliency: over the course of a training, and where it is made cheaper."""

import json
from collections.abc import Sequence

from harness.measures import agreement, dynamics
from harness.report.cells import Cell, Table
from harness.report.settings import Setting, labels, own_settings
from harness.store import Line

_DYNAMICS = (
    "Means over seeds and {} of the run's training images each, mixed as SAGE would after the "
    "epoch. Losses and label entropy in nats; the mixed loss cannot fall below the label entropy. "
    "Label weight: image 0's; lesser weight: the lesser of both images'; nearly clean: share of "
    "the mixes where it is below 0.1. Shift in sides of the image; uncovered: share of the pixels "
    "that image 1 does not reach. Effective area: 1 for a uniform map; mirrored: 1 if the map "
    "follows the image, 0 if it is noise; on object: 1 by chance."
)
_AGREEMENT = (
    "Cheaper saliency and cheaper searches beside the full method, on {} pairs of validation "
    "images, by the saliency of a network trained with {}, seed {}: mean ± 95 % interval of "
    "Student's t over the batches, and the worst pair. Rank correlation of the maps; total "
    "saliency of the mix by the full maps, relative to the full method's; share of the pairs that "
    "are moved alike."
)


def dynamics_tables(setting: Setting) -> list[Table]:
    """What SAGE's mixes are after each epoch, a table for each number of images and own setting."""
    own = [own_settings("sage", line["config"].get("mixing", {})) for line in setting.dynamics]
    names = labels([("sage", settings) for settings in own])
    groups: dict[tuple[str, int], dict[str, Line]] = {}
    for name, line in zip(names, setting.dynamics, strict=True):
        key = json.dumps([line["method"], line["seed"], line["epoch"]])
        groups.setdefault((name, line["images"]), {})[key] = line  # of two, the later counts
    tables = []
    for (name, images), lines in groups.items():
        title = "Dynamics" if name == "sage" else f"Dynamics, {name.removeprefix('sage, ')}"
        cells = dynamics.table([*lines.values()])
        tables.append(_table(title, cells, _DYNAMICS.format(images)))
    return tables


def agreement_tables(setting: Setting) -> list[Table]:
    """How well cheaper variants of SAGE agree with it, a table for each network."""
    groups: dict[str, dict[str, Line]] = {}
    for line in setting.agreement:
        network = json.dumps([line["config"], line["seed"], line["pairs"]], sort_keys=True)
        names = ("search", "search_fraction", *agreement.SALIENCY)
        variant = json.dumps([line[name] for name in names])
        groups.setdefault(network, {})[variant] = line  # of two, the later counts
    tables = []
    for lines in ([*group.values()] for group in groups.values()):
        method, seed = lines[0]["config"].get("method"), lines[0]["seed"]
        note = _AGREEMENT.format(lines[0]["pairs"], method, seed)
        table = _table("Agreement with the full method", agreement.table(lines), note)
        own = own_settings(str(method), lines[0]["config"].get("mixing", {}))
        if any((r.method, r.own) == (method, own) and seed in r.diverged for r in setting.methods):
            table.remarks.append(
                "The network has diverged: its figures say nothing of the variants"
            )
        tables.append(table)
    return tables


def _table(title: str, cells: tuple[Sequence[str], Sequence[Sequence[str]]], note: str) -> Table:
    header, rows = cells
    return Table(title, [*header], [[Cell(text) for text in row] for row in rows], note)
