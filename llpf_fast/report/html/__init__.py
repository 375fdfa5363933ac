"""The report: one HTML file about one or several runs."""

from .page import write_report

__all__ = ["write_report"]
