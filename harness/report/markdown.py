"""The report as Markdown."""

import html
import re
from collections.abc import Sequence

from harness.report.sections import Section
from harness.report.tables import Cell, Table

_SPECIAL = re.compile(r"[\\`*~|\[\]]|(?<!\w)_|_(?!\w)")  # within a word, _ stands for itself


def markdown(sections: Sequence[Section], pictures: bool) -> str:
    """Writes the report as Markdown, with links to its pictures or without."""
    blocks = ["# Is SAGE worth it?"]
    for section in sections:
        blocks.append(f"## {escaped(section.title)}")
        if section.made_with:
            blocks.append(f"Trained {escaped(section.made_with)}.")
        blocks.append(_list(section.findings))
        for part in section.parts:
            blocks += [f"### {escaped(part.table.title)}", _table(part.table)]
            blocks += [escaped(part.table.note), _list(part.table.remarks)]
            if pictures:
                blocks += [f"![{escaped(p.alt)}]({p.name}.png)" for p in part.pictures]
    return "\n\n".join(block for block in blocks if block)


def escaped(text: str) -> str:
    """Takes from a text what Markdown or HTML would read as markup, and its line breaks."""
    text = html.escape(" ".join(text.split()), quote=False)
    return _SPECIAL.sub(r"\\\g<0>", text)


def _table(table: Table) -> str:
    rows = [
        [escaped(name) for name in table.header],
        ["---"] * len(table.header),
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return f"**{text}**" if cell.best else text


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
