"""Capture of PyTorch modules."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeq.errors import ModelError, UsageError
from edgeq.graph.capture import capture
from edgeq.graph.recognize import attention_sites, count_ops
from edgeq.models.vit_nano import VitNano


def settle(module: nn.Module) -> nn.Module:
    """Give the batch norms statistics and the zero-initialized heads values, so that folding shows."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) and part.running_mean is not None:
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight, 1.0, 0.2)
            nn.init.normal_(part.bias)
    for value in module.parameters():
        if not value.any():
            nn.init.normal_(value, 0, 0.1)
    return module.eval()


def difference(module: nn.Module, *example: Tensor) -> float:
    """Relative difference between a module and its capture."""
    graph = capture(module, example)
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(module.eval()(*example))
        computed = graph(*example)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, computed, strict=True))


def check_canonical(graph: torch.fx.GraphModule) -> None:
    for n in graph.graph.nodes:
        assert n.op in ("placeholder", "get_attr", "call_function", "output")
        if n.op == "call_function":
            assert n.target is operator.getitem or n.target.namespace == "aten"
            assert all(isinstance(s, int) for s in n.meta["val"].shape)
        assert "val" in n.meta
    assert isinstance(graph.graph.output_node().args[0], tuple)
    forbidden = {
        "clone",
        "dropout",
        "batch_norm",
        "scaled_dot_product_attention",
        "contiguous",
        "detach",
        "view",
        "addmm",
    }
    assert not forbidden & set(count_ops(graph))
    unused = [n for n in graph.graph.nodes if n.op == "get_attr" and not n.users]
    assert not unused
    assert len(graph.state_dict()) == len([n for n in graph.graph.nodes if n.op == "get_attr"])
    assert not [m for m in graph.modules() if m is not graph and type(m) is not nn.Module]


def timm_model(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return pytest.importorskip("timm").create_model(name)

    return make


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128)


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name)

    return make


# Random weights: this shows that the plumbing is right, and says nothing about accuracy.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "vit_nano": (VitNano, 32, 5),
    "vit_tiny": (timm_model("vit_tiny_patch16_224"), 224, 12),
    "deit_tiny": (timm_model("deit_tiny_patch16_224"), 224, 12),
    "torchvision_vit": (torchvision_vit, 64, 2),
    "resnet18": (torchvision_model("resnet18"), 64, 0),
    "mobilenet_v3_small": (torchvision_model("mobilenet_v3_small"), 64, 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_capture_exactly_with_random_weights(name: str) -> None:
    make, size, attentions = MODELS[name]
    module, image = settle(make()), torch.randn(1, 3, size, size)
    graph = capture(module, (image,))
    check_canonical(graph)
    with torch.no_grad():
        expected, computed = module(image), graph(image)[0]
    assert float((expected - computed).abs().max() / expected.abs().max()) <= 1e-5
    assert len(attention_sites(graph)) == attentions
    again = torch.export.export(copy.deepcopy(graph), (image,), strict=False)
    torch.testing.assert_close(again.module()(image)[0], computed, rtol=1e-5, atol=1e-5)


def test_names_come_from_modules_and_repeat() -> None:
    names = [[n.name for n in capture(VitNano(depth=1), (torch.randn(1, 3, 32, 32),)).graph.nodes] for _ in range(2)]
    assert names[0] == names[1]
    assert {"stem_0", "blocks_0_attn_qkv", "blocks_0_attn_softmax", "blocks_0_mlp_fc1", "norm", "head"} <= set(names[0])
    assert "blocks_0_attn_qkv_weight" in names[0]


class Mixed(nn.Module):
    """In-place operations, dictionaries, named padding, fused attention, chunks, no-op casts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        y = functional.relu_(self.norm(self.conv(x)))
        y += 1
        z = y.flatten(2).transpose(1, 2).contiguous()
        z = self.drop(self.mix(z, z, z, need_weights=False)[0])
        a, b = z.chunk(2, -1)
        return {"out": a, "more": [b.float(), a.detach().clone()]}


def test_clean_ups_keep_the_function() -> None:
    module = settle(Mixed())
    graph = capture(module, (torch.randn(1, 3, 8, 8),))
    check_canonical(graph)
    assert len(graph.graph.output_node().args[0]) == 3
    assert count_ops(graph)["slice"] == 2
    assert "m" not in count_ops(graph)
    assert difference(module, torch.randn(1, 3, 8, 8)) < 1e-6


class Norms(nn.Module):
    """Batch norm after every kind of operation it can be folded into, and where it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
        self.norm2 = nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.norm3 = nn.BatchNorm1d(5)
        self.line = nn.Conv1d(1, 3, 2)
        self.norm4 = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm2(self.up(functional.relu(self.norm1(self.conv(x)))))
        z = self.norm3(self.fc(functional.gelu(self.alone(functional.relu(y))).mean((2, 3))))
        return self.norm4(self.line(z.unsqueeze(1))), y


def test_batch_norm_folds_where_it_can() -> None:
    module = settle(Norms())
    graph = capture(module, (torch.randn(2, 4, 7, 7),))
    check_canonical(graph)
    counts = count_ops(graph)
    assert (counts["mul"], counts["add"]) == (1, 1)
    assert difference(module, torch.randn(2, 4, 7, 7)) < 1e-5


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_named_padding_becomes_numbers() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), nn.Conv2d(3, 2, 3, padding="valid")
    )
    assert difference(module, torch.randn(1, 2, 9, 8)) < 1e-6
    line = nn.Conv1d(2, 3, 4, padding="same")
    assert difference(line, torch.randn(1, 2, 9)) < 1e-6
    convolutions = [n for n in capture(module, (torch.randn(1, 2, 9, 8),)).graph.nodes if "conv" in str(n.target)]
    assert {str(n.target) for n in convolutions} == {"aten.conv2d.default"}


def test_modules_may_have_awkward_names() -> None:
    names = ("0", "1x", "a b")
    module = nn.Sequential(OrderedDict((name, nn.Linear(3, 3)) for name in names))
    graph = capture(module, (torch.randn(2, 3),))
    assert count_ops(graph)["linear"] == len(names)
    assert len(graph.state_dict()) == 2 * len(names)
    assert difference(module, torch.randn(2, 3)) < 1e-6


class Shared(nn.Module):
    """A convolution whose output is read twice keeps its weights; a weight used twice stays one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + self.conv(y) + y


def test_shared_values_are_not_folded() -> None:
    module = settle(Shared())
    graph = capture(module, (torch.randn(1, 2, 5, 5),))
    assert count_ops(graph)["mul"] == 1
    convolutions = [n for n in graph.graph.nodes if "conv2d" in str(n.target)]
    assert convolutions[0].args[1] is convolutions[1].args[1]
    assert difference(module, torch.randn(1, 2, 5, 5)) < 1e-5


class Scaled(nn.Module):
    """Layer scale, constant products in several spellings, computed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.randn(4))
        self.matrix = nn.Parameter(torch.randn(4, 3))
        self.shift = nn.Parameter(torch.randn(3))
        self.cube = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.fc(x) * self.scale / 2.0 - 1.0
        z = y @ self.matrix + self.shift
        w = torch.addmm(self.shift, y[0], self.matrix)
        return z, w, functional.linear(z, z[0]), torch.bmm(z[:, :3], self.cube), torch.einsum("bij,bkj->bik", z, z)


def test_products_become_linear_or_matmul() -> None:
    module = settle(Scaled())
    example = (torch.randn(2, 5, 6),)
    graph = capture(module, example)
    check_canonical(graph)
    counts = count_ops(graph)
    assert counts["linear"] == 3
    assert counts["matmul"] == 3
    assert not {"mul", "div", "add", "sub", "bmm", "einsum"} & set(counts)
    assert difference(module, *example) < 1e-5


class Attentions(nn.Module):
    """Fused attention with every option."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_fused_attention_is_opened(options: dict[str, object]) -> None:
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    graph = capture(Attentions(**options), (q, k, v))
    check_canonical(graph)
    (site,) = attention_sites(graph)
    assert (site.heads, site.tokens, site.keys, site.head_dim) == (2, 5, 5, 4)
    assert site.masked is bool(options.get("is_causal"))
    assert difference(Attentions(**options), q, k, v) < 1e-6


@pytest.mark.parametrize("mask", [torch.rand(1, 1, 5, 5) > 0.3, torch.randn(5, 5)], ids=["boolean", "additive"])
def test_attention_masks(mask: Tensor) -> None:
    mask = mask.clone()
    mask[..., 0] = True
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    assert difference(Attentions(), q, k, v, mask) < 1e-6
    assert attention_sites(capture(Attentions(), (q, k, v, mask)))[0].masked


def test_grouped_query_attention() -> None:
    q, k, v = torch.randn(1, 4, 5, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    assert difference(Attentions(enable_gqa=True), q, k, v) < 1e-6


def test_the_module_is_left_as_it_was() -> None:
    module = Mixed()
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    capture(module, (torch.randn(1, 3, 8, 8),))
    assert module.training
    assert module.drop.training
    assert not module.norm.training
    torch.testing.assert_close(module.state_dict(), before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_damaged_weights_are_named() -> None:
    module = VitNano(depth=1)
    with torch.no_grad():
        module.blocks[0].mlp.fc1.weight[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.fc1\.weight") as caught:
        capture(module, (torch.randn(1, 3, 32, 32),))
    assert caught.value.code == "EQ-M105"


def test_impossible_statistics_are_found() -> None:
    module = settle(Shared())
    module.norm.running_var[0] = -1.0
    with pytest.raises(ModelError, match="NaN") as caught:
        capture(module, (torch.randn(1, 2, 5, 5),))
    assert caught.value.code == "EQ-M105"


def test_half_precision_is_refused() -> None:
    with pytest.raises(ModelError, match="float16") as caught:
        capture(nn.Linear(3, 3).half(), (torch.randn(1, 3).half(),))
    assert (caught.value.code, caught.value.hint) == ("EQ-M104", "convert the model first: model.float()")


class Branching(nn.Module):
    """Control flow on a value."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Counting(nn.Module):
    """State that changes with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


class Numbers(nn.Module):
    """An output that is no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, 3


@pytest.mark.parametrize(
    ("module", "code", "text"),
    [
        (Branching(), "EQ-M101", "test_capture.py"),
        (Counting(), "EQ-M102", "count"),
        (Numbers(), "EQ-M102", "output"),
        (nn.BatchNorm2d(3, track_running_stats=False), "EQ-M102", ""),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_captured_is_explained(module: nn.Module, code: str, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        capture(module, (torch.randn(2, 3, 4, 4),))
    assert caught.value.code == code
    assert text in (caught.value.place or "")


@pytest.mark.parametrize("example", [(), torch.ones(1), (1,)], ids=["empty", "tensor", "number"])
def test_example_must_be_tensors(example: object) -> None:
    with pytest.raises(UsageError) as caught:
        capture(nn.Identity(), example)  # type: ignore[arg-type]
    assert caught.value.code == "EQ-U101"


def test_pass_through_and_constant_outputs() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor, None]:
            return x, self.table * 2, None

    module = Plain()
    graph = capture(module, (torch.ones(2), torch.ones(1)))
    same, table = graph(torch.ones(2), torch.ones(1))
    torch.testing.assert_close(same, torch.ones(2))
    torch.testing.assert_close(table, module.table * 2)
    assert len([n for n in graph.graph.nodes if n.op == "placeholder"]) == 2
