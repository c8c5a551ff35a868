"""Exact rewrites of the float graph after which a grid fits better: rotations, scales, splits."""
