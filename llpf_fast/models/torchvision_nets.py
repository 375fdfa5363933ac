"""torchvision's networks with a stem for images of 32x32.

They are made for 224x224 and reduce an image 32 times, which would leave one pixel of 32x32. Each function says which
strides are smaller here. Initial values are torchvision's unless it says otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from ..errors import require
from .registry import registered


@registered("resnet18", (3, 32, 32))
def resnet18(classes: int = 10) -> nn.Module:
    """ResNet18 (11,173,962 parameters for 10 classes), exactly the LLPF authors'.

    The stem is 3x3 of stride 1 instead of 7x7 of stride 2, with torch's default initial values, and there is no max
    pooling: layer1 gets 32x32, layer4 returns 4x4.
    """
    model = require("torchvision.models", "model 'resnet18'").resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@registered("vgg16", (3, 32, 32))
def vgg16(classes: int = 10) -> nn.Module:
    """VGG16 without normalization layers (14,719,818 parameters for 10 classes)."""
    return _vgg("vgg16", "D", classes, batch_norm=False)


@registered("vgg16-bn", (3, 32, 32))
def vgg16_bn(classes: int = 10) -> nn.Module:
    """VGG16 with BatchNorm (14,728,266 parameters for 10 classes)."""
    return _vgg("vgg16-bn", "D", classes, batch_norm=True)


@registered("vgg11-bn", (3, 32, 32))
def vgg11_bn(classes: int = 10) -> nn.Module:
    """VGG11 with BatchNorm (9,231,114 parameters for 10 classes), with the LLPF authors' layers and names for CIFAR."""
    return _vgg("vgg11-bn", "A", classes, batch_norm=True)


def _vgg(name: str, configuration: str, classes: int, *, batch_norm: bool) -> nn.Module:
    """torchvision's convolutions, which leave one pixel of 32x32, and one linear layer on its 512 channels.

    It replaces the pooling to 7x7 and two hidden layers of 4,096 (120 of 134 million parameters), as usual for CIFAR.
    """
    vgg = require("torchvision.models.vgg", f"model {name!r}")
    features = vgg.make_layers(vgg.cfgs[configuration], batch_norm=batch_norm)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            # As torchvision's VGG class, which is not used here. With torch's default, activations vanish in 16 layers.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(
        OrderedDict(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes)),
    )


@registered("mobilenet-v2", (3, 32, 32))
def mobilenet_v2(classes: int = 10) -> nn.Module:
    """MobileNetV2 (2,236,682 parameters for 10 classes).

    The stem and the stages of 24 and 32 channels have stride 1 instead of 2, as in the LLPF authors' version: the last
    stage returns 8x8. Theirs has 1,088 parameters more (a pointwise layer in the first block, which does not widen).
    Dropout is off, as in theirs.
    """
    # Expansion, channels, blocks, stride.
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 1],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    models = require("torchvision.models", "model 'mobilenet-v2'")
    model = models.mobilenet_v2(num_classes=classes, inverted_residual_setting=stages, dropout=0.0)
    model.features[0][0].stride = (1, 1)
    return model


@registered("shufflenet-v2", (3, 32, 32))
def shufflenet_v2(classes: int = 10) -> nn.Module:
    """ShuffleNetV2 of width 1 (1,263,854 parameters for 10 classes).

    The stem has stride 1 and there is no max pooling: stage2 gets 32x32, stage4 returns 4x4. What the LLPF authors call
    shufflenet_v2 is a ShuffleNet of the first version with one group.
    """
    model = require("torchvision.models", "model 'shufflenet-v2'").shufflenet_v2_x1_0(num_classes=classes)
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


@registered("efficientnet-b0", (3, 32, 32))
def efficientnet_b0(classes: int = 10) -> nn.Module:
    """EfficientNet-B0 (4,020,358 parameters for 10 classes).

    The stem has stride 1, as in the LLPF authors' version: the last stage returns 2x2. Theirs has no 1x1 convolution to
    1,280 channels at the end.
    """
    model: Any = require("torchvision.models", "model 'efficientnet-b0'").efficientnet_b0(num_classes=classes)
    model.features[0][0].stride = (1, 1)
    return model
