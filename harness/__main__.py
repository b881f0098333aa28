"""``python -m harness``: trains, measures and shows."""

from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from harness.commands.agreement import Agreement
from harness.commands.check import Check
from harness.commands.dynamics import Dynamics
from harness.commands.foreground import Foreground
from harness.commands.gallery import Gallery
from harness.commands.overhead import Overhead
from harness.commands.report import Report
from harness.commands.robustness import Robustness
from harness.commands.start import start
from harness.commands.train import Train
from harness.settings import preset_of


def parse() -> Any:
    """Makes the command that the command line names."""
    return tyro.cli(
        Annotated[Check, subcommand("check")]
        | Annotated[Train, subcommand("train", default=preset_of(Train))]
        | Annotated[Robustness, subcommand("robustness")]
        | Annotated[Overhead, subcommand("overhead")]
        | Annotated[Foreground, subcommand("foreground", default=preset_of(Foreground))]
        | Annotated[Agreement, subcommand("agreement", default=preset_of(Agreement))]
        | Annotated[Dynamics, subcommand("dynamics", default=preset_of(Dynamics))]
        | Annotated[Report, subcommand("report")]
        | Annotated[Gallery, subcommand("gallery", default=preset_of(Gallery))],
        prog="python -m harness",
        description=__doc__,
    )


def main() -> None:
    """Runs one command."""
    start("harness", parse)


if __name__ == "__main__":
    main()
