"""The report: tables, plots and one page of what the other commands measured.

``read`` gives the lines of files, ``groups`` the runs that can be compared, ``tables``, ``plots``
and ``episodes`` what is shown of them, ``page`` puts it in order and writes it, and ``rows`` writes
the runs for other programs.
"""

from harness.report.page import markdown, sections, write
from harness.report.read import Lines, holds_any, names, read
from harness.report.rows import write_rows

__all__ = ["Lines", "holds_any", "markdown", "names", "read", "sections", "write", "write_rows"]
