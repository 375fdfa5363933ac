"""The path on disk: run directories, waypoints, checkpoints, model files."""

from .model_file import (
    ModelFile,
    check_finite,
    compare_architectures,
    load_model_file,
    save_model_file,
    state_digest,
)
from .names import fit_names
from .path import LowLossPath, open_path
from .run_directory import RunDirectory
from .waypoint import Waypoint

__all__ = [
    "LowLossPath",
    "ModelFile",
    "RunDirectory",
    "Waypoint",
    "check_finite",
    "compare_architectures",
    "fit_names",
    "load_model_file",
    "open_path",
    "save_model_file",
    "state_digest",
]
