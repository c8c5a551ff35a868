"""Pick the calibration images that ship with `vit_nano`: a few of each class, from the training part only.

python tools/make_samples.py --data CIFAR10_FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Copy the first images of each class, as they are stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("models/weights/vit_nano_samples.npz"))
    args = parser.parse_args()
    packed = np.load(args.data / "train.npz")
    offset, label = packed["offset"], packed["label"]
    classes = range(len(packed["classes"]))
    chosen = sorted(int(i) for c in classes for i in np.flatnonzero(label == c)[: args.per_class])
    pieces = [packed["jpeg"][offset[i] : offset[i + 1]] for i in chosen]
    ends = np.cumsum([0, *(len(p) for p in pieces)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        args.out,
        jpeg=np.concatenate(pieces),
        offset=ends.astype(np.int64),
        label=label[chosen],
        classes=packed["classes"],
    )
    print(f"{args.out}: {len(chosen)} images, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
