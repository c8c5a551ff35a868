"""Hadamard matrices and rotations: orthogonal, mixing, repeatable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import UsageError
from edgeq.quant.hadamard import hadamard, rotation

SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 32, 40, 44, 48, 60, 64, 68, 72, 80, 96, 128)
WITHOUT = (3, 5, 6, 7, 9, 10, 14, 15, 18, 36, 52, 100)  # 36, 52 and 100 exist, but not by these constructions


@pytest.mark.parametrize("size", SIZES)
def test_entries_are_signs_and_rows_orthogonal(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert (matrix.dtype, matrix.shape) == (torch.float64, (size, size))
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", WITHOUT)
def test_sizes_without_a_construction(size: int) -> None:
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [192, 384, 576, 768, 1024])
def test_widths_of_vision_transformers_have_one(size: int) -> None:
    assert hadamard(size) is not None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(0, 10**6))
def test_rotations_are_orthogonal_and_repeat(size: int, seed: int) -> None:
    matrix, kind = rotation(size, seed)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-12)
    assert kind == ("random" if hadamard(size) is None else "hadamard")
    assert torch.equal(matrix, rotation(size, seed)[0])


def test_a_hadamard_rotation_spreads_a_channel_evenly() -> None:
    matrix, kind = rotation(16, 3)
    assert kind == "hadamard"
    assert torch.equal(matrix.abs(), torch.full((16, 16), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("size", [9, 16])
def test_seeds_differ(size: int) -> None:
    assert not torch.equal(rotation(size, 0)[0], rotation(size, 1)[0])


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rotation(9, 1)
    rotation(16, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size", [0, -4])
def test_impossible_sizes_are_refused(size: int) -> None:
    for function in (hadamard, rotation):
        with pytest.raises(UsageError) as caught:
            function(size)
        assert caught.value.code == "EQ-U300"
