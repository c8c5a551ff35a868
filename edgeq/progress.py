"""How long work reports itself: a protocol that the pipeline talks to and the command line implements.

Keeps terminal libraries out of everything below `edgeq.cli`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of items finished since the last call."""


class Progress(Protocol):
    """Where a long piece of work says what it is doing."""

    def step(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Announce a step.

        Args:
            name: A verb and what it works on, for people.
            total: Number of items, when known beforehand.

        Returns:
            A context that lasts as long as the step and yields a function to call with the number of items finished
            since its last call.
        """
        ...

    def say(self, text: str) -> None:
        """One line of talk, no result."""
        ...


class Silent:
    """A `Progress` that says nothing: the default of every library function."""

    def step(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Accept a step and its advances without a sound."""
        del name, total
        return _silence()

    def say(self, text: str) -> None:
        """Drop the line."""


@contextmanager
def _silence() -> Iterator[Advance]:
    yield lambda items: None
