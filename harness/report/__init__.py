"""The report: tables, plots and one page of what the other commands measured.

Data flows one way: ``read`` (lines of files), ``settings`` (runs that can be compared), ``tables``
of ``cells``, ``overhead``, ``findings`` and ``plots`` (what is shown), ``sections`` (in which
order), and from there ``markdown`` and ``page``, which ``write`` puts on the disk.
"""

from harness.report.as_markdown import markdown
from harness.report.read import Lines, read
from harness.report.sections import Section, sections
from harness.report.write import write

__all__ = ["Lines", "Section", "markdown", "read", "sections", "write"]
