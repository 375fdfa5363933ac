"""The networks that the papers and the demo use, by name; anyone can add their own."""

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
