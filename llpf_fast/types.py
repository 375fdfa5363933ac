"""Types that several parts of the package share.

Importing them costs no torch: what names a tensor or a module is a text, which type checkers read. So these are for
annotations; none can stand in an ``isinstance`` or on either side of ``|`` in an expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: A network's parameters and buffers by name.
StateDict: TypeAlias = "Mapping[str, Tensor]"
#: (model output, targets) -> scalar tensor.
LossFunction: TypeAlias = "Callable[[Any, Any], Tensor]"
#: Parameters or parameter groups -> an optimizer over them.
OptimizerFactory: TypeAlias = "Callable[[Iterable[Any]], torch.optim.Optimizer]"
#: Whether a module is a normalization layer.
IsNorm: TypeAlias = "Callable[[nn.Module], bool]"
#: (units done, units expected, what is being done); a unit is a point, a step, a run: what the caller counts.
ProgressCallback = Callable[[int, int, str], None]
