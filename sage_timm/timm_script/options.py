"""The command line's options for SAGE, which stand among a train script's own."""

import argparse
import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args, get_origin

from sage_timm.settings import SageSettings

_PREFIX = "--sage-"


class CommandLine(NamedTuple):
    """A command line, taken apart."""

    options: dict[str, Any]
    """SAGE's own options that were given, by the names of ``sage_timm.SageSettings``."""
    script: str
    arguments: list[str]
    """The script's own."""


def parse(arguments: list[str]) -> CommandLine:
    """Takes SAGE's options out of a command line, wherever they stand.

    Raises:
        SystemExit: With the help if it is asked for before the script, and with an error if an
            option is not known, its value does not fit, or there is no script.
    """
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and rest[0] in ("-h", "--help"):
        parser.print_help()
        parser.exit()
    if not rest or rest[0].startswith("-"):
        parser.error("the train script's path is missing")
    unknown = [word for word in rest if word.startswith(_PREFIX)]
    if unknown:
        parser.error(f"unknown option {unknown[0]}; see python -m sage_timm --help")
    return CommandLine(vars(given), rest[0], rest[1:])


def flag(name: str) -> str:
    """Names a setting's option on the command line."""
    return _PREFIX + name.replace("_", "-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sage_timm",
        usage="%(prog)s [SAGE options] SCRIPT [the script's own arguments]",
        description="Runs a train script of timm's with SAGE where it uses Mixup. The script's own "
        "arguments stay as they are; --mixup has to be above 0. SAGE's options may stand anywhere.",
        epilog="Under torchrun: torchrun --nproc-per-node N -m sage_timm SCRIPT ...",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    texts = _help_texts()
    for field in fields(SageSettings):
        text = f"{texts[field.name]} (default: {field.default})".replace("%", "%%")
        kind = _kind(field.type)
        parser.add_argument(flag(field.name), dest=field.name, help=text, **kind)
    return parser


def _help_texts() -> dict[str, str]:
    """Reads the docstrings below the fields, which Python does not keep."""
    texts = {}
    (settings,) = ast.parse(inspect.getsource(SageSettings)).body
    for pair in pairwise(ast.iter_child_nodes(settings)):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = inspect.cleandoc(text)
    return texts


def _kind(annotation: Any) -> dict[str, Any]:
    """Tells argparse a field's type; of ``X | None``, X."""
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    for first in get_args(annotation)[:1]:
        return _kind(first)
    return {"type": annotation, "metavar": annotation.__name__.upper()}
