"""Depth Anything and DPT. Random weights throughout: that the wiring and the names are right, nothing about depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeq.errors import ModelError, UsageError
from edgeq.models import depth, load_model
from edgeq.models.base import parse_model
from edgeq.models.dpt import ARCHITECTURES, Architecture, Encoder, build
from edgeq.spec import Preprocess

timm = pytest.importorskip("timm")


TINY = Encoder("vit_tiny_patch16_224", 64, 16, 192, (2, 5, 8, 11), 32, (16, 32, 48, 48))
"""In place of the published encoders, which take long."""


def randomized(architecture: Architecture) -> nn.Module:
    torch.manual_seed(0)
    network = build(architecture).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.05 + ("norm" in name and name.endswith("weight")))
            if name.endswith(("output_conv.4.bias", "output_conv2.2.bias")):
                weight.fill_(1)  # the rectifier behind it would give nothing but zeros
    return network


PARTS = {
    "backbone.embeddings.cls_token": "pretrained.cls_token",
    "backbone.embeddings.position_embeddings": "pretrained.pos_embed",
    "backbone.embeddings.patch_embeddings.projection": "pretrained.patch_embed.proj",
    "backbone.encoder.layer": "pretrained.blocks",
    "backbone.layernorm": "pretrained.norm",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "head.conv1": "depth_head.scratch.output_conv1",
    "head.conv2": "depth_head.scratch.output_conv2.0",
    "head.conv3": "depth_head.scratch.output_conv2.2",
    "residual_layer": "resConfUnit",
    "convolution": "conv",
}
"""Names of transformers and ours."""


def translated(name: str, ours: dict[str, Tensor]) -> Tensor:
    """The weight that transformers' implementation calls `name`."""
    for theirs, own in PARTS.items():
        name = name.replace(theirs, own)
    for i in range(4):
        name = name.replace(f"neck.reassemble_stage.layers.{i}.projection", f"depth_head.projects.{i}")
        name = name.replace(f"neck.reassemble_stage.layers.{i}.resize", f"depth_head.resize_layers.{i}")
        name = name.replace(f"neck.convs.{i}", f"depth_head.scratch.layer{i + 1}_rn")
        name = name.replace(f"neck.fusion_stage.layers.{i}.projection", f"depth_head.scratch.refinenet{4 - i}.out_conv")
        name = name.replace(f"neck.fusion_stage.layers.{i}.", f"depth_head.scratch.refinenet{4 - i}.")
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if part in name:
            return ours[name.replace(f"attention.{part}", "attn.qkv")].chunk(3)[i]
    return ours[name]


def test_depth_anything_equals_an_independent_implementation() -> None:
    transformers: Any = pytest.importorskip("transformers")
    architecture = ARCHITECTURES["depth_anything_v2_vits"]
    architecture = replace(architecture, encoder=replace(architecture.encoder, side=56))
    network = randomized(architecture)
    backbone = transformers.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=56,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )
    theirs = transformers.DepthAnythingForDepthEstimation(config).eval()
    ours = network.state_dict()
    wanted = theirs.state_dict()
    # the coarsest fusion adds nothing, and masked patches are of training
    absent = [n for n in wanted if "mask_token" in n]
    state = {n: translated(n, ours) for n in wanted if n not in absent}
    theirs.load_state_dict({**state, **{n: wanted[n] for n in absent}})
    image = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        found, expected = network(image), theirs(image).predicted_depth
    assert found.shape == (1, 1, 56, 56) and float(found.std()) > 0
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)


DPT_PARTS = {
    "dpt.embeddings.cls_token": "pretrained.model.cls_token",
    "dpt.embeddings.position_embeddings": "pretrained.model.pos_embed",
    "dpt.embeddings.patch_embeddings.projection": "pretrained.model.patch_embed.proj",
    "dpt.encoder.layer": "pretrained.model.blocks",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "head.head.": "scratch.output_conv.",
    "residual_layer": "resConfUnit",
    "convolution": "conv",
    "o_proj": "proj",
}


def translated_dpt(name: str, ours: dict[str, Tensor]) -> Tensor:
    for theirs, own in DPT_PARTS.items():
        name = name.replace(theirs, own)
    for i in range(4):
        old, new = f"neck.reassemble_stage.layers.{i}", f"pretrained.act_postprocess{i + 1}"
        name = name.replace(f"{old}.projection", f"{new}.3").replace(f"{old}.resize", f"{new}.4")
        name = name.replace(f"neck.reassemble_stage.readout_projects.{i}", f"{new}.0.project")
        name = name.replace(f"neck.convs.{i}", f"scratch.layer{i + 1}_rn")
        name = name.replace(f"neck.fusion_stage.layers.{i}.projection", f"scratch.refinenet{4 - i}.out_conv")
        name = name.replace(f"neck.fusion_stage.layers.{i}.", f"scratch.refinenet{4 - i}.")
    for i, part in enumerate(("query", "key", "value")):
        for whole in (f"attention.attention.{part}", f"attention.{part[0]}_proj"):
            if whole in name:
                return ours[name.replace(whole, "attn.qkv")].chunk(3)[i]
    return ours[name.replace("attention.proj", "attn.proj")]


def test_dpt_equals_an_independent_implementation() -> None:
    transformers: Any = pytest.importorskip("transformers")
    network = randomized(replace(ARCHITECTURES["dpt_large_384"], encoder=TINY))
    config = transformers.DPTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        layer_norm_eps=1e-6,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[2, 5, 8, 11],
        neck_hidden_sizes=[16, 32, 48, 48],
        fusion_hidden_size=32,
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    theirs = transformers.DPTForDepthEstimation(config).eval()
    wanted, ours = theirs.state_dict(), network.state_dict()
    absent = [n for n in wanted if n.startswith(("dpt.layernorm", "dpt.pooler"))]
    state = {n: translated_dpt(n, ours) for n in wanted if n not in absent}
    theirs.load_state_dict({**state, **{n: wanted[n] for n in absent}})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = network(image), theirs(image).predicted_depth
    assert found.shape == (1, 1, 64, 64) and float(found.std()) > 0
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_loaded_by_its_published_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "depth_anything_v2_metric_hypersim_vits"
    architecture = replace(ARCHITECTURES[name], encoder=TINY)
    monkeypatch.setattr(depth, "ARCHITECTURES", {name: architecture})
    network = randomized(architecture)
    state = {**network.state_dict(), "pretrained.mask_token": torch.zeros(1, 192)}
    torch.save(state, tmp_path / "weights.pth")
    adapter = load_model(parse_model(f"depth:{name}", None, tmp_path / "weights.pth"))
    loaded = adapter.loaded
    assert (loaded.name, loaded.source, loaded.network) == (name, "weights.pth", "transformer")
    assert loaded.postprocess == {"decode": "depth", "kind": "metric"}
    assert loaded.preprocess == Preprocess(64, 64, resize="squash", crop_fraction=1.0)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = loaded.graph(image)[0], network(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert 0 <= float(found.min()) < float(found.max()) <= 20

    del state["depth_head.scratch.refinenet4.resConfUnit1.conv1.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"1 missing \(depth_head.scratch.refinenet4") as caught:
        load_model(parse_model(f"depth:{name}", None, tmp_path / "weights.pth"))
    assert caught.value.code == "EQ-M005"


def test_the_layers_read_are_those_of_the_publications() -> None:
    blocks = {name: a.encoder.blocks for name, a in ARCHITECTURES.items()}
    assert blocks["depth_anything_vits"] == (8, 9, 10, 11)  # the last four
    assert blocks["depth_anything_v2_vits"] == blocks["depth_anything_v2_metric_vkitti_vitb"] == (2, 5, 8, 11)
    assert blocks["depth_anything_v2_vitl"] == (4, 11, 17, 23)
    assert ARCHITECTURES["depth_anything_v2_metric_vkitti_vitl"].deepest == 80


def test_named_networks_need_their_weights() -> None:
    with pytest.raises(UsageError, match="does not download") as caught:
        load_model(parse_model("depth:depth_anything_v2_vits", None, None))
    assert caught.value.code == "EQ-U016"
    with pytest.raises(UsageError, match="unknown depth network") as caught:
        load_model(parse_model("depth:depth_anything_v2_vit", None, None))
    assert caught.value.code == "EQ-U800"
    assert str(caught.value.hint).startswith("did you mean 'depth_anything_v2_vit")
