"""torchvision's networks with a stem for images of 32x32.

Made for 224x224, they reduce an image 32 times; at 32x32 nothing but one pixel would be left. Each function says which
strides were taken back. Initial values are torchvision's own unless it says otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from ..errors import require


def resnet18(classes: int = 10) -> nn.Module:
    """ResNet18 (11,173,962 parameters for 10 classes), exactly the LLPF authors'.

    The 7x7 stem of stride 2 becomes 3x3 of stride 1, with torch's default initial values as in their program, and the
    max pooling goes: 32x32 reach layer1, 4x4 leave layer4.
    """
    model = require("torchvision.models", "model 'resnet18'").resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def vgg16(classes: int = 10) -> nn.Module:
    """VGG16 without normalization layers (14,719,818 parameters for 10 classes)."""
    return _vgg("vgg16", "D", classes, batch_norm=False)


def vgg16_bn(classes: int = 10) -> nn.Module:
    """VGG16 with BatchNorm (14,728,266 parameters for 10 classes)."""
    return _vgg("vgg16-bn", "D", classes, batch_norm=True)


def vgg11_bn(classes: int = 10) -> nn.Module:
    """VGG11 with BatchNorm (9,231,114 parameters for 10 classes): layers and names of the LLPF authors' for CIFAR."""
    return _vgg("vgg11-bn", "A", classes, batch_norm=True)


def _vgg(name: str, configuration: str, classes: int, *, batch_norm: bool) -> nn.Module:
    """torchvision's convolutions leave one pixel of 32x32, so one linear layer on its 512 channels takes the place of
    the pooling to 7x7 and of the two hidden layers of 4,096 (120 of 134 million parameters, 3 s to draw), as in every
    version for CIFAR."""
    vgg = require("torchvision.models.vgg", f"model {name!r}")
    features = vgg.make_layers(vgg.cfgs[configuration], batch_norm=batch_norm)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            # torchvision draws these in the class that is not used here; torch's default would fade in 16 layers.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(
        OrderedDict(features=features, flatten=nn.Flatten(), classifier=nn.Linear(512, classes)),
    )


def mobilenet_v2(classes: int = 10) -> nn.Module:
    """MobileNetV2 (2,236,682 parameters for 10 classes).

    The stem and the stages of 24 and 32 channels have stride 1 instead of 2, the strides of the LLPF authors' version:
    8x8 leave the last stage. Theirs has 1,088 parameters more (a pointwise layer in the first block, which does not
    widen) and no dropout.
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


def shufflenet_v2(classes: int = 10) -> nn.Module:
    """ShuffleNetV2 of width 1 (1,263,854 parameters for 10 classes).

    The stem has stride 1 and the max pooling goes: 32x32 reach stage2, 4x4 leave stage4. What the LLPF authors call
    shufflenet_v2 is a ShuffleNet of the first version with one group (see the tests for its size).
    """
    model = require("torchvision.models", "model 'shufflenet-v2'").shufflenet_v2_x1_0(num_classes=classes)
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def efficientnet_b0(classes: int = 10) -> nn.Module:
    """EfficientNet-B0 (4,020,358 parameters for 10 classes).

    The stem has stride 1, as in the LLPF authors' version: 2x2 leave the last stage. Theirs ends without the 1x1
    convolution to 1,280 channels.
    """
    model: Any = require("torchvision.models", "model 'efficientnet-b0'").efficientnet_b0(num_classes=classes)
    model.features[0][0].stride = (1, 1)
    return model
