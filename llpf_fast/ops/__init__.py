"""The kernels as torch ops: ``torch.ops.llpf_fast.*``. Importing this package needs torch and nothing else."""

from ..modes import Destination
from .affine import affine_
from .backend import start, use_backend
from .coefficients import coefficients
from .counter_randint import counter_randint_
from .flags import SegmentFlag
from .info import info, kernels_in_use
from .library import scratch_numel
from .loss_gate import gate_state, loss_gate_
from .moments import moments
from .relu_pool_bounds import relu_pool_bounds
from .sgd import sgd_
from .tick import tick_

__all__ = [
    "Destination",
    "SegmentFlag",
    "affine_",
    "coefficients",
    "counter_randint_",
    "gate_state",
    "info",
    "kernels_in_use",
    "loss_gate_",
    "moments",
    "relu_pool_bounds",
    "scratch_numel",
    "sgd_",
    "tick_",
    "use_backend",
]

start()
