"""Archives of arrays (`.npz`): written with bytes that depend on their content alone, read with damage told apart."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class DamagedArraysError(ValueError):
    """What was read is not a sound archive of arrays; the message says what is wrong with it."""


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as an `.npz` whose bytes depend only on their names, types and values."""
    # Stored, not deflated: the bytes of deflate differ between versions of zlib.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as store:
        for name in sorted(arrays):
            # numpy's own writer happens to store a fixed date too; written out so that it stays that way.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # zipfile records the building machine's system otherwise
            with store.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def read_arrays(source: Path | bytes, *, only: Container[str] | None = None) -> dict[str, Array]:
    """The arrays of an `.npz` by name; objects (pickles) are never read.

    Args:
        source: A file, or the content of one.
        only: Names to read; the others are left out, absent ones are no error.

    Raises:
        DamagedArraysError: It is no archive, a checksum is wrong, or numpy cannot read an array.
        OSError: The file cannot be opened.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as container:
                if (bad := container.testzip()) is not None:  # before numpy parses a header that is noise
                    raise DamagedArraysError(f"the checksum of {bad} is wrong")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as store:
                return {name: store[name] for name in store.files if only is None or name in only}
        except DamagedArraysError:
            raise
        except Exception as error:  # zipfile and numpy report damage in a dozen ways, OSError of a seek among them
            raise DamagedArraysError(str(error) or type(error).__name__) from error
