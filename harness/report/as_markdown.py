"""The report as Markdown."""

from collections.abc import Sequence

from harness.figures import escaped, markdown_table
from harness.report.cells import Cell, Table
from harness.report.sections import Section


def markdown(sections: Sequence[Section], pictures: bool) -> str:
    """Writes the report as Markdown, with links to its pictures or without."""
    blocks = ["# Is SAGE worth it?"]
    for section in sections:
        if not pictures and not _says_something(section):
            continue
        blocks.append(f"## {escaped(section.title)}")
        if section.made_with:
            blocks.append(f"Trained {escaped(section.made_with)}.")
        blocks.append(_list(section.findings))
        for part in section.parts:
            if part.table is not None:
                blocks += [f"### {escaped(part.table.title)}", _table(part.table)]
                blocks += [escaped(part.table.note), _list(part.table.remarks)]
            if pictures:
                blocks += [f"![{escaped(p.alt)}]({p.name}.png)" for p in part.pictures]
    return "\n\n".join(block for block in blocks if block)


def _says_something(section: Section) -> bool:
    """Tells a section with words from one that is pictures alone."""
    return bool(section.findings) or any(part.table is not None for part in section.parts)


def _table(table: Table) -> str:
    header = [escaped(name) for name in table.header]
    return markdown_table(header, [[_cell(cell) for cell in row] for row in table.rows])


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return f"**{text}**" if cell.best else text


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)
