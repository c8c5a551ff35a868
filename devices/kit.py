"""What is sent to a device: the agent and the modules it needs, as one text that Python reads from a pipe."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from pathlib import Path

import edgeq

OLDEST_PYTHON = (3, 9)
# Module to file; an empty name is a package with nothing in it. All import the standard library and numpy only.
_MODULES = {
    "edgeq": "",
    "edgeq.errors": "errors.py",
    "edgeq.artifact": "",
    "edgeq.artifact.run": "artifact/run.py",
    "edgeq.devices": "",
    "edgeq.devices.agent": "devices/agent.py",
    "edgeq.devices.environment": "devices/environment.py",
    "edgeq.devices.sensors": "devices/sensors.py",
    "edgeq.devices.timing": "devices/timing.py",
}
_LOADER = """
import importlib.abc, importlib.util, sys

class Kit(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, origin=name, is_package=not SOURCES[name])
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__file__ = module.__name__ + ".py"
        exec(compile(SOURCES[module.__name__], module.__file__, "exec"), module.__dict__)

sys.path[:] = [p for p in sys.path if p]
sys.meta_path.insert(0, Kit())
import edgeq.devices.agent as agent
agent.main(WORD)
"""
# Old Pythons must be able to read this much, and to say how old they are.
_BOOT = (
    "import sys\n"
    "v=sys.version_info[:3]\n"
    'w="{word}"\n'
    "if v<{oldest}:\n"
    '    sys.stdout.write(\'%s {{"event":"old","python":"%d.%d.%d"}}\\n\'%((w,)+v));sys.exit(0)\n'
    "import zlib\n"
    'exec(zlib.decompress(sys.stdin.buffer.read({size})).decode(),{{"__name__":"edgeq_kit","WORD":w}})'
)


@dataclass(frozen=True)
class Kit:
    """A program for a device.

    Args:
        boot: What `python -c` is given.
        content: What follows on its stdin, before the requests.
    """

    boot: str
    content: bytes


def kit(word: str) -> Kit:
    """The program, to begin each line of its answers with `word` (letters and digits)."""
    content = _content()
    return Kit(_BOOT.format(word=word, oldest=OLDEST_PYTHON, size=len(content)), content)


@functools.cache
def _content() -> bytes:
    root = Path(edgeq.__file__).parent
    sources = {module: (root / file).read_text(encoding="utf-8") if file else "" for module, file in _MODULES.items()}
    return zlib.compress(f"SOURCES = {sources!r}\n{_LOADER}".encode(), 9)
