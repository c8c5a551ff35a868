"""The shipped networks and the family of convolutional classifiers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models as torchvision_models

from edgeq.errors import ModelError, UsageError
from edgeq.models import MODELS, load_model
from edgeq.models.base import parse_model
from edgeq.models.checkpoint import load_into, load_state_dict
from edgeq.models.reference import CLASSES, REFERENCE

WEIGHTS = "models/weights"


@pytest.mark.parametrize("name", list(REFERENCE))
def test_a_shipped_network_is_captured_as_it_is(name: str, root: Path) -> None:
    adapter = load_model(parse_model(name, None, None))
    assert MODELS[name].ships_weights and adapter.loaded.family == MODELS[name].family
    assert adapter.loaded.classes == CLASSES and adapter.loaded.source == "edgeq"
    network = REFERENCE[name]().eval()
    path = root / WEIGHTS / f"{name}.safetensors"
    load_into(network, load_state_dict(path), path)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(adapter.loaded.graph(image)[0], network(image), atol=1e-4)
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["model"] == name and note["parameters"] == sum(p.numel() for p in network.parameters())


def test_small_networks_fit_a_microcontroller() -> None:
    sizes = {name: sum(p.numel() for p in REFERENCE[name]().parameters()) for name in ("vit_micro", "cifar_cnn")}
    assert max(sizes.values()) < 256 * 1024


def test_a_convolutional_classifier_of_torchvision_is_loaded(tmp_path: Path) -> None:
    """Random weights: plumbing only."""
    torch.manual_seed(0)
    network = torchvision_models.shufflenet_v2_x0_5(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    adapter = load_model(parse_model("cnn:shufflenet_v2_x0_5", None, tmp_path / "weights.pth"))
    assert adapter.loaded.family == "cnn" and adapter.loaded.source == "weights.pth"
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = adapter.loaded.graph(image)[0]
        assert found.shape == (1, 7)
        assert np.allclose(found.numpy(), network(image).numpy(), atol=1e-3)


def test_families_know_what_is_theirs(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_model(parse_model("cnn:shufflenet_v2_x0_5", None, None))  # no weights ship
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError):
        load_model(parse_model("cifar_cnn", None, tmp_path / "bad.safetensors"))


def test_the_classes_of_a_timm_checkpoint_are_those_of_its_last_layer(tmp_path: Path) -> None:
    """Architectures call it differently; this one `head.fc`. Random weights."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    network = timm.create_model("mobilevit_xxs", pretrained=False, num_classes=7)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    graph = load_model(parse_model("vit:mobilevit_xxs", None, tmp_path / "w.safetensors")).loaded.graph
    (outputs,) = next(n for n in graph.graph.nodes if n.op == "output").args
    assert [tuple(o.meta["val"].shape) for o in outputs] == [(1, 7)]
