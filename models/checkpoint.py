"""Read weights from a checkpoint without running code from it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeq.errors import ModelError

_WRAPPERS = ("model_ema", "ema", "state_dict", "model_state_dict", "model")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file by name.

    Wrappers that training scripts add (`{"model": ...}`, a `module.` prefix) are removed. Pickles are read by torch's
    restricted unpickler: a file that needs arbitrary code is refused.

    Args:
        path: An existing file.

    Raises:
        ModelError: Damaged, not a checkpoint, or needs code to be unpickled.
    """
    content: object = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    while isinstance(content, Mapping):
        inner = next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"{path.name} holds no table of tensors but {_describe(content)}",
            code="EQ-M003",
            place=path.name,
            hint="save `model.state_dict()` (torch.save or safetensors)",
        )
    return {str(name).removeprefix("module."): value.float() for name, value in content.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What a `.safetensors` file says besides its tensors; empty for other files and where it says nothing."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` into `model`; every name and shape must fit.

    Raises:
        ModelError: Missing or unexpected names, other shapes, or NaN among the weights.
    """
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"weight {name} holds NaN or infinity", code="EQ-M004", place=f"{path.name}: {name}")
    own = model.state_dict()
    ignorable = {n for n in own if n.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - ignorable)
    unexpected = sorted(set(state) - set(own))
    shapes = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in own if _other_shape(n, own, state)]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        found = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in parts if names)
        raise ModelError(
            f"{path.name} does not fit the architecture: {found}",
            code="EQ-M005",
            place=path.name,
            hint="name the architecture the checkpoint was trained with (`edgeq models`)",
        )
    model.load_state_dict(dict(state), strict=False)


def _other_shape(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return name in state and own[name].shape != state[name].shape


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path.name} is not a readable safetensors file: {error}",
            code="EQ-M006",
            place=path.name,
            hint="the file may be truncated: compare its size with the original",
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise _damaged(path, error) from error
        raise ModelError(
            f"{path.name} runs code when it is unpickled ({wanted[1]}) and is refused",
            code="EQ-M007",
            place=path.name,
            hint="load it where you trust it and save `model.state_dict()` as .safetensors",
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ModelError(
        f"{path.name} is not a readable checkpoint: {reason}",
        code="EQ-M006",
        place=path.name,
        hint="the file may be truncated: compare its size with the original",
    )


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a table with keys {', '.join(str(k) for k in list(content)[:5])}" if content else "an empty table"
    return f"a {type(content).__name__}"
