"""Permutation alignment: the same function with its hidden units in another order (Git Re-Basin).

Why not the ``rebasin`` package: 0.0.47 gives LeNet5's flattened channels (400 features of 16 channels) a permutation
of their own, apart from the channels', and returns a network that computes something else (outputs differ by 0.86 on
random weights, measured). Here a torch.fx trace says which axes go together, the assignment problem is scipy's.
"""

from .matching import Alignment, align
from .specification import Axis, PermutationSpecification, Units
from .trace import trace_permutations

__all__ = ["Alignment", "Axis", "PermutationSpecification", "Units", "align", "trace_permutations"]
