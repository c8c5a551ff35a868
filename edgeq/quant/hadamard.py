"""Orthogonal matrices that spread outliers: Hadamard where the width has one here, a random rotation elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgeq.errors import UsageError


def hadamard(size: int) -> Tensor | None:
    """A Hadamard matrix: entries +-1, rows orthogonal; None for a size without one here.

    Sylvester doubling of a Paley matrix of the first kind (Paley 1933): sizes `2^k` and `(q + 1) 2^k` with q a prime
    of the form `4n + 3`. That covers the widths of vision transformers (192, 384, 576, 768, 1024, ...).

    Args:
        size: Number of rows, at least 1.

    Returns:
        float64 `(size, size)` with `H H^T = size I`, or None.

    Raises:
        UsageError: The size is not positive.
    """
    if size < 1:
        raise UsageError(f"a Hadamard matrix has at least one row, not {size}", code="EQ-U300")
    core, doublings = size, 0
    while core > 2 and _paley_prime(core) is None and core % 2 == 0:
        core, doublings = core // 2, doublings + 1
    if core == 2:
        core, doublings = 1, doublings + 1
    if core > 1 and _paley_prime(core) is None:
        return None
    matrix = torch.ones(1, 1, dtype=torch.float64) if core == 1 else _paley(core)
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix


def rotation(size: int, seed: int = 0) -> tuple[Tensor, str]:
    """An orthogonal matrix that mixes all channels: a Hadamard matrix with random signs, or else a random rotation.

    Args:
        size: Number of channels.
        seed: Of the signs, or of the Gaussian matrix whose QR factor it is.

    Returns:
        float64 `(size, size)` with `R R^T = I`, and `hadamard` or `random`.

    Raises:
        UsageError: The size is not positive.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = hadamard(size)
    if matrix is None:
        factor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        signs = torch.sign(torch.diagonal(factor.R))  # a unique factor, uniform over the rotations
        return factor.Q * signs, "random"
    signs = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0).to(torch.float64)
    return signs[:, None] * matrix / math.sqrt(size), "hadamard"


def _paley_prime(size: int) -> int | None:
    """The prime `q = size - 1` of the form `4n + 3`, or None."""
    q = size - 1
    prime = q > 2 and all(q % d for d in range(2, math.isqrt(q) + 1))
    return q if prime and q % 4 == 3 else None


def _paley(size: int) -> Tensor:
    """Paley's first construction: `I + S`, with the quadratic characters of differences modulo `size - 1` in S."""
    q = size - 1
    residues = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in residues else -1.0 for i in range(1, q)], dtype=torch.float64)
    index = torch.arange(q)
    skew = torch.zeros(size, size, dtype=torch.float64)
    skew[1:, 1:] = character[(index[None, :] - index[:, None]) % q]
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    return torch.eye(size, dtype=torch.float64) + skew
