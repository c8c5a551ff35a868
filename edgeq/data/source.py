"""Samples on disk, as calibration or evaluation data, whatever they are.

Calibration data is always real: there is no option for random or synthetic samples, because ranges measured on them
say nothing about photos or speech.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from edgeq.errors import DataError

Role = Literal["calibration", "evaluation"]
OPTION: dict[Role, str] = {"calibration": "--calib", "evaluation": "--data"}

Sample = TypeVar("Sample", covariant=True)


@dataclass(frozen=True)
class Item:
    """One sample.

    Args:
        id: Path inside the folder, or number inside the packed file.
        sha256: Of its encoded bytes.
        label: The truth in the form the family's metric takes (index into the source's classes, boxes, text), None when
            unlabelled.
    """

    id: str
    sha256: str
    label: Any = None


@dataclass(frozen=True)
class Source(Generic[Sample]):
    """Samples that can be read one at a time.

    Args:
        place: Where they come from, for messages.
        items: The samples, in a fixed order.
        classes: Class names, None when unlabelled or unnamed.
        fetch: Encoded bytes of an item, by index.
        decode: A sample from its encoded bytes and the place to name in messages.
        kind: What an item is, in the singular.
        named: Whether labels stand for names alone: their order says nothing.
    """

    place: str
    items: tuple[Item, ...]
    classes: tuple[str, ...] | None
    fetch: Callable[[int], bytes] = field(repr=False)
    decode: Callable[[bytes, str], Sample] = field(repr=False)
    kind: str = "image"
    named: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def subset(self, kept: Sequence[int]) -> Source[Sample]:
        """The items at some indices, in that order."""
        return replace(self, items=tuple(self.items[i] for i in kept), fetch=lambda index: self.fetch(kept[index]))

    def for_classes(self, names: Sequence[str] | None) -> Source[Sample]:
        """The same samples with labels as a model counts its classes: by name where the model knows the names.

        Data may show some of the classes only. Where no name is the model's, indices are taken for the model's own,
        unless the names are all that is known (`named`).

        Args:
            names: The model's classes in its order; None where it has none or does not know them.

        Raises:
            DataError: EQ-D836 for names that the model does not know, EQ-D059 when an index has no class in it.
        """
        used = sorted({item.label for item in self.items if isinstance(item.label, int)})
        if names is None or not used:
            return self
        labels = list(self.classes or ())
        unknown = [labels[label] for label in used if label < len(labels) and labels[label] not in names]
        if self.classes and not unknown:
            index = [list(names).index(name) if name in names else -1 for name in labels]
            items = (i if i.label is None else replace(i, label=index[i.label]) for i in self.items)
            return replace(self, items=tuple(items), classes=tuple(names))
        if self.classes and (self.named or len(unknown) < len(used)):
            more = f" and {len(unknown) - 3} more classes of the data" if len(unknown) > 3 else ""
            raise DataError(
                f"the network knows no {', '.join(map(repr, unknown[:3]))}{more}",
                code="EQ-D836",
                place=self.place,
                hint=f"leave these {self.kind}s out, or rename them; it knows {', '.join(names[:6])}, ...",
            )
        beyond = next((i for i in self.items if isinstance(i.label, int) and not 0 <= i.label < len(names)), None)
        if beyond is not None:
            raise DataError(
                f"{beyond.id} has label {beyond.label}, and the model knows {len(names)} classes",
                code="EQ-D059",
                place=self.place,
                hint="name the class folders as the model does (`labels` in a manifest.json), or check the labels",
            )
        return self

    def read(self, index: int) -> Sample:
        """Item `index`, decoded.

        Raises:
            DataError: The bytes cannot be decoded, or are others than when the source was opened.
        """
        item = self.items[index]
        place = f"{self.place}/{item.id}" if len(self.items) > 1 else self.place
        try:
            data = self.fetch(index)
        except OSError as error:
            raise unreadable(place, error) from error
        require_unchanged(data, item.sha256, item.id, place)
        return self.decode(data, place)


def split(source: Source[Any], calibration: int, holdout: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices for calibration and held out to measure fidelity on; no item is in both.

    The held-out part is filled first; calibration gets what is left, up to `calibration`.

    Args:
        source: The samples.
        calibration: Most items for calibration, at least 1.
        holdout: Items to hold out, at least 0.
        seed: Of the choice.

    Raises:
        DataError: Too few different items.
    """
    candidates, held = shuffled(source, holdout, seed)
    return tuple(sorted(candidates[: max(1, calibration)])), tuple(sorted(held))


def shuffled(source: Source[Any], holdout: int, seed: int) -> tuple[list[int], list[int]]:
    """Candidates for calibration in an order drawn by `seed`, and the items held out.

    Exact copies count once (only the first can be chosen). The order depends on the items' bytes and the seed, not on
    their names or order.

    Raises:
        DataError: EQ-D054, too few different items.
    """
    first: dict[str, int] = {}
    for index, item in enumerate(source.items):
        first.setdefault(item.sha256, index)
    wanted = 1 + max(0, holdout)
    if len(first) < wanted:
        copies = f", {len(source) - len(first)} of them copies" if len(first) < len(source) else ""
        raise DataError(
            f"{source.place} has {len(source)} {source.kind}{'s' * (len(source) != 1)}{copies}: "
            f"at least {wanted} different ones are needed, {holdout} of them to measure on",
            code="EQ-D054",
            place=source.place,
            hint=f"give --calib a folder with some 100 different {source.kind}s like those the device will meet",
        )
    names = sorted(first)
    order = [first[names[i]] for i in np.random.default_rng(seed).permutation(len(names))]
    return order[max(0, holdout) :], order[: max(0, holdout)]


def file_digest(file: Path) -> str:
    """SHA-256 of a data file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise unreadable(str(file), error) from error


def require_unchanged(data: bytes, sha256: str, item: str, place: str) -> None:
    """Refuse other bytes than when the source was opened.

    Raises:
        DataError: EQ-D056.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{item} changed while edgeq was running",
            code="EQ-D056",
            place=place,
            hint="run again when nothing writes to the folder",
        )


def unreadable(place: str, error: OSError) -> DataError:
    """The error for data that the file system refuses."""
    return DataError(
        f"cannot read {place}: {error.strerror or error}",
        code="EQ-D057",
        place=place,
        hint="check that the file is there and the permissions allow reading",
    )
