"""Write synthetic rooms with metric depth and labelled boxes to a folder that `edgeq --data` reads.

    python tools/make_scenes.py OUT --count 256 --seed 2 [--side 160]

Makes `OUT/images/000000.png`, `OUT/depth/000000.png` (16 bit, millimetres, 0 where nothing is known, nowhere here) and
`OUT/labels/000000.txt` (YOLO rows, classes in the order of `scenes.CLASSES`). Series 1 is what `depth_nano` was trained
on, series 3 what `train_detector.py` trains on; every other series is new to them. Nothing here is a photo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import HEIGHT, WIDTH, Scene, draw_scene


def write_scene(scene: Scene, folder: Path, stem: str) -> None:
    """Picture, depth and boxes of one scene below `folder`."""
    for name in ("images", "depth", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.rgb).save(folder / "images" / f"{stem}.png")
    Image.fromarray(np.rint(1000 * scene.depth).astype(np.uint16)).save(folder / "depth" / f"{stem}.png")
    rows = [f"{int(kind)} " + " ".join(f"{v:.6f}" for v in place) for kind, *place in scene.boxes.tolist()]
    (folder / "labels" / f"{stem}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2, help="number of the series")
    parser.add_argument("--side", type=int, help=f"of square pictures, in pixels; {WIDTH} x {HEIGHT} without")
    args = parser.parse_args()
    for index in range(args.count):
        size = (args.side, args.side) if args.side else (HEIGHT, WIDTH)
        write_scene(draw_scene(args.seed, index, *size), args.out, f"{index:06d}")
    print(f"{args.out}: {args.count} scenes of series {args.seed}")


if __name__ == "__main__":
    main()
