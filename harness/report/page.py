"""The report as one HTML page that needs no other file."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.report.sections import Section


def page(sections: Sequence[Section], drawn: Mapping[str, bytes]) -> str:
    """Writes the report as HTML, its pictures embedded.

    Args:
        sections: The report.
        drawn: Each of its pictures as PNG, by name.
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
