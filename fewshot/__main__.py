"""``python -m fewshot``: trains backbones and measures them on new classes."""

import sys

import tyro

from fewshot.commands.evaluate import Evaluate
from fewshot.commands.train import FewShot


def main() -> None:
    """Runs one command; bad input ends with one line and exit code 2."""
    arguments = sys.argv[1:]
    command: type = FewShot
    if arguments[:1] == ["evaluate"]:
        command, arguments = Evaluate, arguments[1:]
    try:
        tyro.cli(command, prog="python -m fewshot", args=arguments)()
    except (ValueError, ImportError) as error:
        print(f"fewshot: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
