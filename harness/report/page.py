"""The report as one HTML page that needs no other file."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report.sections import Section


class Drawn(NamedTuple):
    """A picture as PNG, for each scheme."""

    light: bytes
    dark: bytes


def page(sections: Sequence[Section], drawn: Mapping[str, Drawn]) -> str:
    """Writes the report as HTML, its pictures embedded in light and in dark.

    Args:
        sections: The report.
        drawn: Each of its pictures, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("page.html.jinja").render(sections=sections, drawn=drawn)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
