"""Results for a reader: text tables and the HTML page of a run."""

from riemann_unlearn.report.page import write_report
from riemann_unlearn.report.tables import evaluation_table, metrics_table

__all__ = ["evaluation_table", "metrics_table", "write_report"]
