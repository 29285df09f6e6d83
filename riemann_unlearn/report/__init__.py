"""Results for a reader: text tables, the HTML page and the picture of a run."""

from riemann_unlearn.report.audit_tables import audit_tables
from riemann_unlearn.report.page import AUDIT_NAME, write_report
from riemann_unlearn.report.picture import write_picture
from riemann_unlearn.report.tables import evaluation_table, metrics_table

__all__ = ["AUDIT_NAME", "audit_tables", "evaluation_table", "metrics_table", "write_picture", "write_report"]
