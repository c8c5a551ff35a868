"""A complete bundle around the tiny int8 model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeq.artifact import Manifest, describe_files, staged, write_golden, write_json, write_runner
from edgeq.devices.litert import LiteRtModel
from edgeq.spec import OpPlan, PerTensor, QParams, QuantPlan, QuantSpec, TensorPlan

PLAN = QuantPlan(
    "static",
    {
        "x": TensorPlan(
            "x",
            "activation",
            QParams(QuantSpec(8, False, PerTensor()), np.array(0.02, np.float32), np.array(-3, np.int32)),
            "a",
        )
    },
    {"conv": OpPlan("conv", "conv2d", "static")},
)
PREPROCESS = {
    "height": 8,
    "width": 8,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "resize": "crop",
    "crop_fraction": 0.9,
    "interpolation": "bicubic",
}
MANIFEST = Manifest(
    command=("export", "tiny", "--device", "rpi"),
    config={"model": "tiny", "samples": 8},
    seed=0,
    versions={"numpy": np.__version__},
    weights_sha256="ab" * 32,
    model={"name": "tiny", "family": "vit", "source": "tiny.safetensors"},
    calibration=({"id": "a.jpg", "sha256": "cd" * 32},),
    files=(),
    preprocess=PREPROCESS,
    inputs=({"name": "image", "shape": [1, 3, 8, 8]},),
    outputs=({"name": "scores", "shape": [1, 5]},),
    labels=("ape", "bee", "cat", "dog", "elk"),
    target="rpi5",
    scheme="static",
)

Builder = Callable[..., Path]


@pytest.fixture
def build(tiny_int8: Path) -> Builder:
    """Writes a bundle to a folder; keyword arguments replace manifest fields."""

    def write(out: Path, exist: str = "fail", **changes: object) -> Path:
        with staged(out, exist) as folder:  # type: ignore[arg-type]
            shutil.copyfile(tiny_int8, folder / "model.tflite")
            write_json(folder / "plan.json", PLAN.to_dict())
            model = LiteRtModel(folder / "model.tflite")
            inputs = [(a,) for a in np.random.default_rng(0).normal(size=(4, 1, 3, 8, 8)).astype(np.float32)]
            write_golden(folder, inputs, [model.run(*sample) for sample in inputs])
            write_runner(folder)
            manifest = replace(MANIFEST, files=tuple(describe_files(folder)), **changes)  # type: ignore[arg-type]
            write_json(folder / "evidence.json", {"schema": "edgeq.evidence/1", "sqnr": float("inf")})
            write_json(folder / "manifest.json", manifest.to_dict())
        return out

    return write
