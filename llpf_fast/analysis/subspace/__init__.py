"""Training in random subspaces: the intrinsic dimension of a task."""

from .basis import RandomBasis
from .dimension import IntrinsicDimension, SubspaceRun, baseline_accuracy, intrinsic_dimension
from .training import SubspaceSettings, train_in_subspace

__all__ = [
    "IntrinsicDimension",
    "RandomBasis",
    "SubspaceRun",
    "SubspaceSettings",
    "baseline_accuracy",
    "intrinsic_dimension",
    "train_in_subspace",
]
