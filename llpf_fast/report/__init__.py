"""Figures of certified paths and of analyses, and the HTML report."""

from .picture import draw_path

__all__ = ["draw_path"]
