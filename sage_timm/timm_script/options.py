"""The command line's options for SAGE, which stand among a train script's own."""

import argparse
from typing import Any, NamedTuple, get_args

import torch

from sage_timm.sage import Search

_PREFIX = "--sage-"
_DTYPES = ("float16", "bfloat16")


class CommandLine(NamedTuple):
    """A command line, taken apart."""

    options: dict[str, Any]
    """SAGE's own options that were given, by the names of :class:`sage_timm.SageMixup`."""
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
    options = {name.removeprefix("sage_"): value for name, value in vars(given).items()}
    return CommandLine(options, rest[0], rest[1:])


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """Makes :class:`sage_timm.SageMixup`'s keyword arguments of the options."""
    dtype = options.get("saliency_dtype")
    return {**options, "saliency_dtype": None if dtype is None else getattr(torch, dtype)}


def flag(name: str) -> str:
    """The option's name on the command line."""
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
    parser.add_argument(
        flag("lambda_max"),
        type=float,
        metavar="SHARE",
        help="largest weight of an image's own saliency, in (0, 1] (default: 0.5; the paper: 0.5 "
        "to 0.7)",
    )
    parser.add_argument(
        flag("update_ratio"),
        type=float,
        metavar="RHO",
        help="share of the mixed loss in the step, in (0, 1] (default: 1; the paper: 0.5 to 0.7)",
    )
    parser.add_argument(
        flag("search"), choices=get_args(Search), help="translations to choose from (default: all)"
    )
    parser.add_argument(
        flag("search_fraction"),
        type=float,
        metavar="SHARE",
        help="share of the translations that a random search looks at (default: 0.01)",
    )
    parser.add_argument(
        flag("saliency_size"),
        type=int,
        metavar="PIXELS",
        help="shorter side to which images are shrunk for their saliency (default: as they are)",
    )
    parser.add_argument(
        flag("saliency_dtype"),
        choices=_DTYPES,
        help="type in which autocast computes the saliency (default: as the step)",
    )
    parser.add_argument(
        flag("saliency_fraction"),
        type=float,
        metavar="SHARE",
        help="share of each batch that SAGE mixes, the rest gets plain mixup (default: 1)",
    )
    return parser
