"""The residual network of depth 20 for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .registry import registered


class BasicBlock(nn.Module):
    """``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``: two 3x3 convolutions and a shortcut.

    The shortcut has no parameters (option A of He et al., arXiv 1512.03385, section 4.2): where the shape changes it
    takes every second pixel and puts half of the new zero channels before its own and half behind.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._stride, self._padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self._padding:
            x = F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, self._padding, self._padding))
        return F.relu(x + y)


@registered("resnet20", (3, 32, 32))
class ResNet20(nn.Module):
    """Float images ``[B, 3, 32, 32]`` to logits ``[B, classes]``; 269,722 parameters for 10 classes.

    As in He et al. (arXiv 1512.03385, section 4.2): a 3x3 stem of 16 channels, three stages of three basic blocks of
    16, 32 and 64, global average pooling, one linear layer. Weights start as theirs (He-normal). Names are those of
    Y. Idelbayev's ``resnet20`` (github.com/akamaster/pytorch_resnet_cifar10), so its checkpoints load.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1), BasicBlock(outputs, outputs, 1)]
    return nn.Sequential(*blocks)
