"""Pictures of what was certified."""

from .picture import draw_path

__all__ = ["draw_path"]
