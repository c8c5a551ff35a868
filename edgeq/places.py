"""Where edgeq keeps things between its runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Folder of what can be made again: `EDGEQ_CACHE_DIR`, else `edgeq` in the user's cache folder; may not exist."""
    return Path(os.environ.get("EDGEQ_CACHE_DIR") or platformdirs.user_cache_dir("edgeq", appauthor=False))


def state_dir() -> Path:
    """Folder of what cannot: crash reports, the history of profiles; may not exist."""
    return platformdirs.user_state_path("edgeq")
