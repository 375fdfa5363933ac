"""The path on disk: run directories, waypoints, checkpoints, model files."""

from .low_loss_path import LowLossPath, open_path
from .model_file import ModelFile, load_model_file, match_names, save_model_file
from .run_directory import RunDirectory
from .state import check_finite, compare_architectures, state_digest
from .waypoints import Waypoint

__all__ = [
    "LowLossPath",
    "ModelFile",
    "RunDirectory",
    "Waypoint",
    "check_finite",
    "compare_architectures",
    "load_model_file",
    "match_names",
    "open_path",
    "save_model_file",
    "state_digest",
]
