"""Results for a reader: tables for the terminal, the HTML page and the picture of a run.

``tables`` decides what is shown, ``text`` lays it out for the terminal and for Markdown, ``page`` for HTML by
the templates beside it, and ``figures`` draws. What draws is imported when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from riemann_unlearn.report.page import AUDIT_NAME, write_report
    from riemann_unlearn.report.picture import write_picture
    from riemann_unlearn.report.sheet import write_sheet
    from riemann_unlearn.report.tables import evaluation_table, metrics_table

_HOME = {
    "AUDIT_NAME": "page",
    "evaluation_table": "tables",
    "metrics_table": "tables",
    "write_picture": "picture",
    "write_report": "page",
    "write_sheet": "sheet",
}

__all__ = ["AUDIT_NAME", "evaluation_table", "metrics_table", "write_picture", "write_report", "write_sheet"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
