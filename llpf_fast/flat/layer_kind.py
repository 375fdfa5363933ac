"""``LayerKind``: what a parameter, or a range of its rows, is for."""

from __future__ import annotations

from enum import Enum


class LayerKind(Enum):
    """What a parameter is for. Running statistics are buffers, never parameters, and so have no kind.

    Biases of normalization layers and of attention projections have the kind of their layer: ``is_bias`` of
    :class:`~llpf_fast.flat.FlatParameters` tells them from the weights.
    """

    #: Affine weight or bias of a normalization layer.
    NORM = "norm"
    #: Additive term of any other layer.
    BIAS = "bias"
    #: Projections stacked in one tensor, equal shares of its rows: query, key, value, or key, value.
    FUSED_ATTENTION = "fused_attention"
    #: A projection of its own, or the rows of it that ``FlatParameters(cut_attention=True)`` cut out of a stack.
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OTHER = "other"
