"""Samples on disk: images, and what else families read."""

from edgeq.data.boxes import open_boxes
from edgeq.data.clouds import open_clouds, open_scenes
from edgeq.data.depth import DepthFile, open_depth
from edgeq.data.images import decode, open_images, preprocess
from edgeq.data.selection import RULES, Copy, Known, Picked, describe, pick
from edgeq.data.source import Item, Role, Source, split
from edgeq.data.speech import open_speech

__all__ = [
    "RULES",
    "Copy",
    "DepthFile",
    "Item",
    "Known",
    "Picked",
    "Role",
    "Source",
    "decode",
    "describe",
    "open_boxes",
    "open_clouds",
    "open_depth",
    "open_images",
    "open_scenes",
    "open_speech",
    "pick",
    "preprocess",
    "split",
]
