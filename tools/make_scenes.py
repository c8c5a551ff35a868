"""Write synthetic rooms with metric depth to a folder that `edgeq --data` reads.

    python tools/make_scenes.py OUT --count 256 --seed 2

Makes `OUT/images/000000.png` and `OUT/depth/000000.png`: 16 bit, millimetres, 0 where nothing is known (nowhere here).
Series 1 is what `depth_nano` was trained on; every other series is new to it. Nothing here is a photo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import Scene, draw_scene


def write_scene(scene: Scene, folder: Path, stem: str) -> None:
    """Picture and depth of one scene below `folder`."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.rgb).save(folder / "images" / f"{stem}.png")
    Image.fromarray(np.rint(1000 * scene.depth).astype(np.uint16)).save(folder / "depth" / f"{stem}.png")


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2, help="number of the series")
    args = parser.parse_args()
    for index in range(args.count):
        write_scene(draw_scene(args.seed, index), args.out, f"{index:06d}")
    print(f"{args.out}: {args.count} scenes of series {args.seed}")


if __name__ == "__main__":
    main()
