"""A directory of C99 from an `IntGraph`: the network, its weights, its kernels, golden vectors and a self test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeq import __version__
from edgeq.exporters.base import Memory
from edgeq.exporters.c.calls import TEMPLATES, Array, Call, Writer
from edgeq.exporters.c.memory import report, rows_of, summed
from edgeq.exporters.c.names import identifier
from edgeq.exporters.c.patches import calls_of
from edgeq.graph.intgraph.graph import IntGraph, Port
from edgeq.graph.intgraph.interpret import interpret
from edgeq.graph.intgraph.memory import ArenaPlan, plan_arena

_TEMPLATES = Path(__file__).with_name("templates")
_COLUMNS = 20

Vectors = Sequence[Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class CProject:
    """What was written.

    Args:
        prefix: Of every name with external linkage, and of every file.
        arena: Where the buffers lie.
        memory: What it takes.
        files: Names, in order.
    """

    prefix: str
    arena: ArenaPlan
    memory: Memory
    files: tuple[str, ...]


def write_project(graph: IntGraph, folder: Path, vectors: Vectors, name: str | None = None) -> CProject:
    """Write the C project of `graph`.

    Args:
        graph: The network.
        folder: Where; made if it is missing.
        vectors: Inputs of the self test, flat codes for each port; the expected outputs are the interpreter's.
        name: Prefix of names and files; that of the graph when None.

    Raises:
        UsageError: EQ-U500, the name gives no C identifier.
    """
    prefix = identifier(name or graph.name)
    arena = plan_arena(graph)
    writer = Writer(graph, arena, prefix)
    calls = calls_of(writer)
    files = {
        **_sources(graph, writer, calls),
        **_kernels(calls),
        **_selftest(graph, prefix, vectors),
        **{f"NAME_{name}": _template(name, {"UPPER": prefix.upper()}) for name in ("board.h", "board.c")},
        "Makefile": _template("Makefile"),
        "CMakeLists.txt": _template("CMakeLists.txt"),
    }
    rows = rows_of(arena, calls)
    memory = summed(graph, arena, rows, writer.constants())
    files["memory.txt"] = report(prefix, memory, rows)
    folder.mkdir(parents=True, exist_ok=True)
    written = {file.replace("NAME", prefix): text.replace("NAME", prefix) for file, text in files.items()}
    for file, text in written.items():
        (folder / file).write_text(text, encoding="ascii", newline="\n")
    return CProject(prefix, arena, memory, tuple(written))


def _template(file: str, values: Mapping[str, object] | None = None) -> str:
    text = (_TEMPLATES / file).read_text(encoding="ascii")
    for key, value in (values or {}).items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _sources(graph: IntGraph, writer: Writer, calls: Sequence[Call]) -> dict[str, str]:
    """Interface, straight-line network and weights."""
    arrays = {array.name: array for array in [*writer.constants(), *(a for call in calls for a in call.arrays)]}
    weights = "".join(_definition(array) for array in arrays.values())
    header = "".join(f"extern const {a.type} {a.name}[{a.values.size}];\n" for a in arrays.values())
    digest = hashlib.sha256((weights + repr([call.lines for call in calls])).encode()).hexdigest()[:16]
    values = {
        "title": f"{len(calls)} operations",
        "version": __version__,
        "UPPER": writer.prefix.upper(),
        "arena": max(writer.arena.bytes, 1),
        "layers": len(calls),
        "hash": digest,
        "ports": _port_macros(graph, writer.prefix.upper()),
        "parameters": _parameters(graph),
    }
    return {
        "NAME.h": _template("model.h", values),
        "NAME.c": _network(graph, writer, calls),
        "NAME_weights.h": _guarded("NAME_WEIGHTS_H", "#include <stdint.h>\n\n" + header),
        "NAME_weights.c": _WEIGHTS_HEAD + weights,
    }


_WEIGHTS_HEAD = """/* Constants of NAME. Define EDGEQ_CONST to place them: a section of external flash, for instance. */
#include "NAME_weights.h"

#if !defined(EDGEQ_CONST)
#define EDGEQ_CONST
#endif
#if defined(__GNUC__)
#define EDGEQ_ALIGN __attribute__((aligned(4)))
#else
#define EDGEQ_ALIGN
#endif

"""


def _definition(array: Array) -> str:
    flat = array.values.ravel().tolist()
    rows = [", ".join(map(_literal, flat[i : i + _COLUMNS])) for i in range(0, len(flat), _COLUMNS)]
    inside = ",\n    ".join(rows)
    return f"EDGEQ_CONST EDGEQ_ALIGN const {array.type} {array.name}[{array.values.size}] = {{\n    {inside}}};\n\n"


def _literal(value: int) -> str:
    return "(-2147483647 - 1)" if value == -(1 << 31) else str(value)


def _guarded(guard: str, body: str) -> str:
    return f"#ifndef {guard}\n#define {guard}\n\n{body}\n#endif\n"


def _ctype(graph: IntGraph, port: Port) -> str:
    return "int16_t" if graph.tensors[port.tensor].wide else "int8_t"


def _parameters(graph: IntGraph) -> str:
    inputs = [f"const {_ctype(graph, port)} *input{i}" for i, port in enumerate(graph.inputs)]
    return ", ".join([*inputs, *(f"{_ctype(graph, port)} *output{i}" for i, port in enumerate(graph.outputs))])


def _port_macros(graph: IntGraph, upper: str) -> str:
    """Sizes and grids of inputs and outputs, for people and for the code around the network."""
    lines = []
    for kind, ports in (("INPUT", graph.inputs), ("OUTPUT", graph.outputs)):
        for index, port in enumerate(ports):
            tensor = graph.tensors[port.tensor]
            held = " x ".join(str(size) for size in tensor.shape)
            lines += [
                f"/* {held}; real = scale * (code - zero point) */",
                f"#define {upper}_{kind}{index}_CODES {tensor.size}",
                f"#define {upper}_{kind}{index}_SCALE {tensor.scale!r}",
                f"#define {upper}_{kind}{index}_ZERO_POINT {tensor.zero_point}",
                "",
            ]
    return "\n".join(lines)


def _network(graph: IntGraph, writer: Writer, calls: Sequence[Call]) -> str:
    """One block a layer: its parameters, its call."""
    lines = [
        f'#include "{writer.prefix}.h"',
        f'#include "{writer.prefix}_kernels.h"',
        f'#include "{writer.prefix}_weights.h"',
        "",
        "/* Define EDGEQ_LAYER(index) to be told when a layer is done. */",
        "#if !defined(EDGEQ_LAYER)",
        "#define EDGEQ_LAYER(index)",
        "#else",
        "void EDGEQ_LAYER(int index);",
        "#endif",
        "",
        f"int {writer.prefix}_run({_parameters(graph)}, uint8_t *arena)",
        "{",
        "    if (((uintptr_t)arena & 7u) != 0) {",
        "        return -1;",
        "    }",
    ]
    together = graph.patches.ops
    if together:
        lines.append(f"    for (int32_t patch = 0; patch < {graph.patches.count}; patch++) {{ /* bands of rows */")
    for index, call in enumerate(calls):
        indent = "        " if index < together else "    "
        lines.append(f"{indent}{{ /* {index}: {_comment(call.op.name)}, {type(call.op).__name__} */")
        lines += [f"{indent}    {line}" for line in call.lines]
        lines += [f"{indent}    EDGEQ_LAYER({index});", f"{indent}}}"]
        lines += ["    }"] if index == together - 1 else []
    return "\n".join([*lines, "    return 0;", "}", ""])


def _comment(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in text.encode("ascii", "replace").decode())


def _kernels(calls: Sequence[Call]) -> dict[str, str]:
    """The kernels that the calls use, in one file."""
    used = {kernel for call in calls for kernel in call.kernels}
    head, body = [_template("base.h")], ['#include "NAME_kernels.h"\n\n']
    for kernel in TEMPLATES:
        if kernel in used:
            for suffix, parts in ((".h", head), (".c", body)):
                if (_TEMPLATES / f"{kernel}{suffix}").is_file():
                    parts.append(_template(f"{kernel}{suffix}"))
    return {"NAME_kernels.h": "".join([*head, "#endif\n"]), "NAME_kernels.c": "".join(body)}


def _selftest(graph: IntGraph, prefix: str, vectors: Vectors) -> dict[str, str]:
    """Golden vectors and the program that compares."""
    expected = [interpret(graph, inputs) for inputs in vectors]
    groups = [
        *(("input", i, port, [v[i] for v in vectors]) for i, port in enumerate(graph.inputs)),
        *(("expected", i, port, [e[i] for e in expected]) for i, port in enumerate(graph.outputs)),
    ]
    arrays = []
    for kind, index, port, codes in groups:
        rows = ",\n".join("    {" + ", ".join(map(str, c.ravel().tolist())) + "}" for c in codes)
        declared = f"static const {_ctype(graph, port)} {kind}{index}[{max(1, len(codes))}][{codes[0].size}]"
        arrays.append(f"{declared} = {{\n{rows}}};\n")
    inputs = [f"input{i}[vector]" for i in range(len(graph.inputs))]
    outputs = [f"output{i}" for i in range(len(graph.outputs))]
    sizes = [graph.tensors[port.tensor].size for port in graph.outputs]
    buffers = [f"static {_ctype(graph, port)} output{i}[{sizes[i]}];" for i, port in enumerate(graph.outputs)]
    compare = [
        f"    for (int i = 0; i < {size}; i++) {{\n"
        f"        different += count(output{i}[i], expected{i}[vector][i], largest);\n    }}"
        for i, size in enumerate(sizes)
    ]
    values = {
        "UPPER": prefix.upper(),
        "vectors": len(vectors),
        "arrays": "\n".join(arrays),
        "buffers": "\n".join(buffers),
        "arguments": ", ".join([*inputs, *outputs]),
        "compare": "\n".join(compare),
        "codes": " + ".join(map(str, sizes)),
    }
    names = ("vectors.h", "vectors.c", "selftest.c")
    return {f"NAME_{name}": _template(name, values) for name in names}
