"""``python -m harness``: trains, measures and shows."""

import sys

import tyro

from harness.commands.foreground import Foreground
from harness.commands.gallery import Gallery
from harness.commands.overhead import Overhead
from harness.commands.report import Report
from harness.commands.train import Train


def main() -> None:
    """Runs one command; bad input ends with one line and exit code 2."""
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "train": Train,
            "report": Report,
            "gallery": Gallery,
            "overhead": Overhead,
            "foreground": Foreground,
        },
        prog="python -m harness",
    )
    try:
        command()
    except (ValueError, ImportError) as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
