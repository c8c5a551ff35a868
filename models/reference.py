"""The networks whose weights ship with edgeq: all read 32x32 images and know the ten classes of CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from edgeq.models.cifar_cnn import CifarCnn
from edgeq.models.vit_nano import VitNano
from edgeq.spec import Preprocess

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PREPROCESS = Preprocess(32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "squash", 1.0, "bilinear")

REFERENCE: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "vit_nano": VitNano,
        "vit_micro": partial(VitNano, width=64, depth=4),
        "cifar_cnn": CifarCnn,
    }
)
"""Untrained, by name; `models/weights` holds the weights, `tools/train_reference.py` made them."""
