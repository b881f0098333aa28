"""``python -m harness``: trains, measures and shows."""

import io
import signal
import sys
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from harness.commands import COMMANDS
from harness.settings import Command, Settings, preset_of


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def start(program: str, parse: Callable[[], Command]) -> None:
    """Runs the command that ``parse`` reads from the command line.

    Bad input ends with one line on stderr, which begins with the program's name, and exit code 2; a
    signal with a line and 128 plus its number.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign must not end a run
    before = signal.signal(signal.SIGTERM, _terminate)
    command: Command | None = None
    try:
        command = parse()
        for name in command.modules:
            try:
                import_module(name)
            except ImportError as error:
                raise ImportError(f"import={name!r}: {error}") from error
        command()
    except (ValueError, ImportError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        goes_on = getattr(command, "GOES_ON", True)
        then = ": the same command goes on where it was" if goes_on else ""
        print(f"{program}: interrupted{then}", file=sys.stderr)
        number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


def parse() -> Any:
    """Makes the command that the command line names."""
    commands = []
    for command in COMMANDS:
        default = {"default": preset_of(command)} if issubclass(command, Settings) else {}
        commands.append(Annotated[command, subcommand(command.__name__.lower(), **default)])
    any_of_them = reduce(or_, commands)
    return tyro.cli(any_of_them, prog="python -m harness", description=__doc__)


def main() -> None:
    """Runs one command."""
    start("harness", parse)


if __name__ == "__main__":
    main()
