"""Results for a reader: tables for the terminal, the HTML page and the picture of a run.

``tables`` decides what is shown, ``text`` lays it out for the terminal and for Markdown, ``page`` for HTML by
the templates beside it, and ``figures`` draws.
"""

from riemann_unlearn.report.page import AUDIT_NAME, write_report
from riemann_unlearn.report.picture import write_picture
from riemann_unlearn.report.tables import evaluation_table, metrics_table

__all__ = ["AUDIT_NAME", "evaluation_table", "metrics_table", "write_picture", "write_report"]
