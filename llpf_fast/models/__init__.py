"""Networks by name, a user's among them, and training them."""

from . import cifar_resnet, library_nets, torchvision_nets  # noqa: F401 - they register their networks
from .registry import build_model, check_images, model_names, register_model
from .small_nets import MLP, LeNet5
from .training import TrainingProgress, accuracy, train_model

__all__ = [
    "MLP",
    "LeNet5",
    "TrainingProgress",
    "accuracy",
    "build_model",
    "check_images",
    "model_names",
    "register_model",
    "train_model",
]
