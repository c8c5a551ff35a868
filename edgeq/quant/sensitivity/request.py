"""What a sensitivity is asked for: names that exist, and something to estimate it from."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgeq.errors import UsageError, unknown_name


def require_request(estimate: str, kind: str, names: Sequence[str], known: Collection[str], **counts: int) -> None:
    """Refuse a request that cannot be answered.

    Args:
        estimate: What is asked for, for messages.
        kind: What the names name, for messages.
        names: What is asked about.
        known: What there is.
        counts: How many there are of what the estimate needs, by its plural.

    Raises:
        UsageError: An unknown name, no name, or a count below 1.
    """
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known, code="EQ-U246")
    if not names or min(counts.values()) < 1:
        given = ", ".join(f"{count} {what}" for what, count in {f"{kind}s": len(names), **counts}.items())
        raise UsageError(
            f"no {estimate} can be estimated from {given}", code="EQ-U246", hint="give at least one of each"
        )
