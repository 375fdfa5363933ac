"""LeNet5 and a multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .registry import registered


@registered("lenet5", (1, 28, 28))
class LeNet5(nn.Module):
    """Float images ``[B, 1, 28, 28]`` to logits ``[B, classes]``.

    Weights start Xavier-uniform and biases zero. With 10 classes, the parameters and their names are those of the LLPF
    authors' checkpoints (arXiv 2505.02604).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


@registered("mlp", (1, 8, 8))
class MLP(nn.Module):
    """Float images ``[B, ...]`` of ``inputs`` values each to logits ``[B, classes]``; two hidden ReLU layers."""

    def __init__(self, inputs: int = 64, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.fc1(images.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))
