"""Names that C accepts."""

from __future__ import annotations

import re

from edgeq.errors import UsageError

_KEYWORDS = frozenset(
    (
        *("auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern"),
        *("float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed"),
        *("sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while"),
    )
)


def identifier(text: str) -> str:
    """`text` as a C identifier: letters, digits and underscores.

    Raises:
        UsageError: EQ-U500, nothing of it is left.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
    if not name:
        raise UsageError(f"{text!r} gives no C identifier", code="EQ-U500", hint="name the project with letters")
    return f"m_{name}" if name[0].isdigit() or name in _KEYWORDS else name
