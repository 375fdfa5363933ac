"""The Compact Convolutional Transformer of vit-pytorch."""

from __future__ import annotations

from torch import nn

from .library import library


def cct7(classes: int = 10) -> nn.Module:
    """CCT-7/3x1 for 32x32 (3,760,139 parameters for 10 classes): one 3x3 tokenizer layer, 7 blocks of width 256.

    Made for this size, so nothing is adapted. Names and shapes are those of the LLPF authors' ``cct_7_3x1_32``
    (SHI-Labs/Compact-Transformers; Hassani et al., arXiv 2104.05704), so their checkpoints load; learnable positions,
    attention dropout and stochastic depth of 0.1 as there. In train mode both draw from torch's global generator.
    """
    return library("vit_pytorch.cct", "cct7").cct_7(
        img_size=32, n_conv_layers=1, kernel_size=3, num_classes=classes, positional_embedding="learnable"
    )
