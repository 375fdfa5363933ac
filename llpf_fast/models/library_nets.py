"""Networks of timm and vit-pytorch for images of 32x32."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import require
from .registry import registered


@registered("regnetx-200mf", (3, 32, 32))
def regnetx_200mf(classes: int = 10) -> nn.Module:
    """RegNetX-200MF (2,321,946 parameters for 10 classes), as large as the LLPF authors'.

    As in theirs, the stem has 64 channels and stride 1, and the first two stages have stride 1: the last stage returns
    8x8.
    """
    model = require("timm", "model 'regnetx-200mf'").create_model("regnetx_002", num_classes=classes, stem_width=64)
    model.stem.conv.stride = (1, 1)
    for stage in (model.s1, model.s2):
        stage.b1.conv2.conv.stride = (1, 1)
        stage.b1.downsample.conv.stride = (1, 1)
    return model


@registered("dla", (3, 32, 32))
def dla34(classes: int = 10) -> nn.Module:
    """DLA-34 (15,232,314 parameters for 10 classes).

    The stem is 3x3 instead of 7x7, level1 and level2 have stride 1 instead of 2, as in the LLPF authors' version: the
    last level returns 4x4. Theirs aggregates the trees of two levels differently.
    """
    model = require("timm", "model 'dla'").create_model("dla34", num_classes=classes)
    stem = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
    # The law of timm's DLA for every convolution.
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.base_layer[0] = stem
    model.level1[0].stride = (1, 1)
    model.level2.tree1.conv1.stride = (1, 1)
    model.level2.downsample = nn.Identity()
    return model


@registered("vit-small", (3, 32, 32))
def vit_small(classes: int = 10) -> nn.Module:
    """ViT-S (width 384, 12 blocks, 6 heads; 21,342,346 parameters for 10 classes) on patches of 4x4: 64 tokens."""
    return _vit("vit_small_patch16_224", "vit-small", classes)


@registered("vit-tiny", (3, 32, 32))
def vit_tiny(classes: int = 10) -> nn.Module:
    """ViT-Ti (width 192, 12 blocks, 3 heads; 5,362,762 parameters for 10 classes) on patches of 4x4: 64 tokens."""
    return _vit("vit_tiny_patch16_224", "vit-tiny", classes)


def _vit(timm_name: str, name: str, classes: int) -> nn.Module:
    """timm's ViT on patches of 4x4: a 32x32 image has 64 of them, and only 4 of 16x16."""
    timm: Any = require("timm", f"model {name!r}")
    return timm.create_model(timm_name, img_size=32, patch_size=4, num_classes=classes)


@registered("cct7", (3, 32, 32))
def cct7(classes: int = 10) -> nn.Module:
    """CCT-7/3x1 for 32x32 (3,760,139 parameters for 10 classes): one 3x3 tokenizer layer, 7 blocks of width 256.

    Names and shapes are those of the LLPF authors' ``cct_7_3x1_32`` (Hassani et al., arXiv 2104.05704), so their
    checkpoints load. Positions are learnable; attention dropout and stochastic depth are 0.1, and draw from torch's
    global generator in train mode.
    """
    return require("vit_pytorch.cct", "model 'cct7'").cct_7(
        img_size=32, n_conv_layers=1, kernel_size=3, num_classes=classes, positional_embedding="learnable"
    )
