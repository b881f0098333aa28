"""How every command begins and ends: what can be printed, what is refused, what a signal does."""

import io
import signal
import sys
from collections.abc import Callable
from typing import Any


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def start(name: str, parse: Callable[[], Callable[[], None]]) -> None:
    """Runs one command.

    Bad input ends with one line and exit code 2; a signal with a line and 128 plus its number.

    Args:
        name: What the lines begin with.
        parse: Reads the command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign must not end a run
    before = signal.signal(signal.SIGTERM, _terminate)
    command: Any = None
    try:
        command = parse()
        command()
    except (ValueError, ImportError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        goes_on = getattr(command, "GOES_ON", True)
        then = ": the same command goes on where it was" if goes_on else ""
        print(f"{name}: interrupted{then}", file=sys.stderr)
        number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
        sys.exit(128 + number)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated
