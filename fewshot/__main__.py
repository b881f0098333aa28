"""``python -m fewshot``: trains backbones and measures them on new classes."""

import sys
from typing import Any

import tyro

from fewshot.commands import Evaluate, FewShot
from harness.__main__ import start


def parse() -> Any:
    """Makes the command that the command line names."""
    arguments = sys.argv[1:]
    command: type = FewShot
    if arguments[:1] == ["evaluate"]:
        command, arguments = Evaluate, arguments[1:]
    return tyro.cli(command, prog="python -m fewshot", args=arguments)


def main() -> None:
    """Runs one command."""
    start("fewshot", parse)


if __name__ == "__main__":
    main()
