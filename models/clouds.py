"""What networks on point clouds share: the host makes their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeq.data.clouds import Cloud, usable
from edgeq.models.base import LoadedModel
from edgeq.points import network_inputs


class CloudAdapter:
    """A loaded network whose inputs `edgeq.points` makes of a cloud, here and on the device."""

    sample_file: Path | None = None

    def __init__(self, loaded: LoadedModel) -> None:
        assert loaded.cloud is not None
        self.loaded = loaded
        self.how = dict(loaded.cloud)

    def inputs(self, sample: Cloud) -> tuple[NDArray[Any], ...]:
        """The network's inputs, see `edgeq.points.network_inputs`.

        Raises:
            DataError: EQ-D834, too few points; EQ-D835, missing columns.
        """
        with usable(f"a cloud for {self.loaded.name}"):
            return network_inputs(sample, self.how)
