"""The digits' network with tanh in place of ReLU: twice differentiable everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from llpf_fast.models.small_nets import MLP


class TanhMLP(MLP):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(images.flatten(1))))))
