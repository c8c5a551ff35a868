from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeq import errors
from edgeq.errors import EdgeqError, Interrupted, UsageError, nearest, unknown_name
from edgeq.explain import CODE, explanations, get_explanation

FOLDERS = ("edgeq", "models", "exporters", "devices")
# Every class by the letter of its codes, with its exit code.
LETTERS = {
    "G": (errors.GateError, 1),
    "U": (errors.UsageError, 2),
    "I": (errors.InputError, 3),
    "M": (errors.ModelError, 3),
    "D": (errors.DataError, 3),
    "P": (errors.MissingError, 4),
    "X": (errors.DeviceError, 5),
    "Z": (errors.InternalError, 70),
    "C": (Interrupted, 130),
}


def sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))


def raised(root: Path) -> Iterator[tuple[str, str, str]]:
    """Place, name of the callable, and code of every call with `code="EQ-..."`."""
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                codes = [k.value.value for k in node.keywords if k.arg == "code" and isinstance(k.value, ast.Constant)]
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield from ((f"{path.relative_to(root)}:{node.lineno}", name, str(code)) for code in codes)


def test_every_letter_belongs_to_one_class_with_its_exit_code(root: Path) -> None:
    names = {cls.__name__: letter for letter, (cls, _) in LETTERS.items()}
    names["unknown_name"] = "U"
    for place, name, code in raised(root):
        assert CODE.fullmatch(code), f"{place}: {code}"
        assert names.get(name) == code[3], f"{place}: {name} with code {code}"
    for cls, exit_code in LETTERS.values():
        assert cls.exit_code == exit_code
        assert cls("m", code="EQ-U001").to_dict()["exit_code"] == exit_code


def test_every_code_in_the_source_is_explained_and_no_other(root: Path) -> None:
    used = {code for path in sources(root) for code in CODE.findall(path.read_text(encoding="utf-8"))}
    assert used - set(explanations()) == set()
    assert set(explanations()) - used == set()


def test_explanations_are_complete_and_sorted(root: Path) -> None:
    text = (root / "edgeq" / "explain.toml").read_text(encoding="utf-8")
    assert CODE.findall(text) == sorted(CODE.findall(text))
    for code, entry in explanations().items():
        assert entry.title[0].islower() or entry.title[0].isupper(), code
        assert entry.text.endswith("."), code
        assert entry.action, code


def test_every_error_class_is_exported_by_the_package() -> None:
    import edgeq

    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, EdgeqError)}
    assert tree <= set(edgeq.__all__)


@pytest.mark.parametrize("spelled", ["EQ-U001", "eq-u001", "U001", " u001 "])
def test_a_code_may_be_spelled_loosely(spelled: str) -> None:
    assert get_explanation(spelled)[0] == "EQ-U001"


@pytest.mark.parametrize("spelled", ["EQ-U999", "", "nonsense", "EQ-"])
def test_an_unknown_code_is_refused(spelled: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_explanation(spelled)
    assert caught.value.code == "EQ-U008"


def test_the_json_form_has_the_contract_fields() -> None:
    error = UsageError("bad", code="EQ-U001", place="here", hint="do that")
    assert error.to_dict() == {
        "schema": "edgeq.error/1",
        "ok": False,
        "code": "EQ-U001",
        "message": "bad",
        "place": "here",
        "hint": "do that",
        "exit_code": 2,
    }


def test_the_nearest_name_is_offered() -> None:
    assert nearest("STATIK", ["static", "dynamic"]) == "static"
    assert nearest("zzzz", ["static"]) is None
    error = unknown_name("scheme", "statik", ["static", "dynamic"], code="EQ-U007", command="edgeq methods")
    assert error.message == "unknown scheme 'statik'"
    assert error.hint == "did you mean 'static'? known: dynamic, static (see `edgeq methods`)"
    many = unknown_name("layer", "conv1", [f"conv{i}0" for i in range(50)], code="EQ-U334")
    assert many.hint == "did you mean 'conv10'? 50 names are known"
