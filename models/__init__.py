"""Plain torch networks. The command and the recipes find them by these names."""

from models.cifar_resnet import resnet20, resnet32, resnet44, resnet56
from models.cnn4 import cnn4
from models.resnet50 import resnet50, resnet50_cifar, resnet50_cifar16
from models.wave_net import wave_net

__all__ = [
    "cnn4",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet50",
    "resnet50_cifar",
    "resnet50_cifar16",
    "resnet56",
    "wave_net",
]
