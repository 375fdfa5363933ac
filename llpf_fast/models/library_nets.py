"""Networks of timm and vit-pytorch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import require


def regnetx_200mf(classes: int = 10) -> nn.Module:
    """RegNetX-200MF (2,321,946 parameters for 10 classes), the size of the LLPF authors'.

    As in theirs the stem has 64 channels and stride 1, the first two stages have stride 1: 8x8 leave the last stage.
    """
    model = require("timm", "model 'regnetx-200mf'").create_model("regnetx_002", num_classes=classes, stem_width=64)
    model.stem.conv.stride = (1, 1)
    for stage in (model.s1, model.s2):
        stage.b1.conv2.conv.stride = (1, 1)
        stage.b1.downsample.conv.stride = (1, 1)
    return model


def dla34(classes: int = 10) -> nn.Module:
    """DLA-34 (15,232,314 parameters for 10 classes).

    The stem is 3x3 instead of 7x7, level1 and level2 have stride 1 instead of 2, as in the LLPF authors' version: 4x4
    leave the last level. Theirs has the same levels and channels but aggregates the trees of two levels differently.
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


def vit_small(classes: int = 10) -> nn.Module:
    """ViT-S (width 384, 12 blocks, 6 heads; 21,342,346 parameters for 10 classes) on patches of 4x4: 64 tokens."""
    return _vit("vit_small_patch16_224", "vit-small", classes)


def vit_tiny(classes: int = 10) -> nn.Module:
    """ViT-Ti (width 192, 12 blocks, 3 heads; 5,362,762 parameters for 10 classes) on patches of 4x4: 64 tokens."""
    return _vit("vit_tiny_patch16_224", "vit-tiny", classes)


def _vit(timm_name: str, name: str, classes: int) -> nn.Module:
    """Patches of 16x16 would leave 4 tokens of a 32x32 image; of 4x4 they leave 64."""
    timm: Any = require("timm", f"model {name!r}")
    return timm.create_model(timm_name, img_size=32, patch_size=4, num_classes=classes)


def cct7(classes: int = 10) -> nn.Module:
    """CCT-7/3x1 for 32x32 (3,760,139 parameters for 10 classes): one 3x3 tokenizer layer, 7 blocks of width 256.

    Made for this size, so nothing is adapted. Names and shapes are those of the LLPF authors' ``cct_7_3x1_32``
    (SHI-Labs/Compact-Transformers; Hassani et al., arXiv 2104.05704), so their checkpoints load; learnable positions,
    attention dropout and stochastic depth of 0.1 as there. In train mode both draw from torch's global generator.
    """
    return require("vit_pytorch.cct", "model 'cct7'").cct_7(
        img_size=32, n_conv_layers=1, kernel_size=3, num_classes=classes, positional_embedding="learnable"
    )
