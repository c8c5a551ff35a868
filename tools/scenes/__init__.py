"""Synthetic rooms with metric depth and boxes around things, drawn by ray casting: `draw_scene(seed, index)`.

Nothing here is a photo. Rooms, furniture, textures and light are random; they stand in for recorded depth where none
may be shipped, and figures measured on them say nothing about real cameras.
"""

from scenes.geometry import Hit, Solid
from scenes.render import CLASSES, HEIGHT, WIDTH, Scene, draw_scene

__all__ = ["CLASSES", "HEIGHT", "WIDTH", "Hit", "Scene", "Solid", "draw_scene"]
