"""The house itself: what is public, what a wheel holds, where imports may go, and how large files are."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeq
from edgeq.cli.main import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINKED = ("models", "exporters", "devices")
SOURCES = ("edgeq", *LINKED, "tools", "tests")
FOREIGN = {".venv", "build", "dist", "out", "__pycache__"}
LINES = 600
FUNCTION_LINES = 60


def python_files(root: Path) -> list[Path]:
    """Every source file once: the links inside the package are left out."""
    files = [path for folder in SOURCES for path in (root / folder).rglob("*.py")]
    return [path for path in files if not FOREIGN & set(path.parts) and path.resolve() == path]


def test_the_public_names_are_these() -> None:
    assert set(edgeq.__all__) == {
        "__version__",
        "export",
        "ExportConfig",
        "ExportResult",
        "Artifact",
        "targets",
        "get_target",
        "Progress",
        "Silent",
        "QuantSpec",
        "QuantConfig",
        "QuantRule",
        "QuantPlan",
        "QParams",
        "PerTensor",
        "PerChannel",
        "PerGroup",
        "EdgeqError",
        "GateError",
        "UsageError",
        "InputError",
        "ModelError",
        "DataError",
        "MissingError",
        "DeviceError",
        "InternalError",
        "Interrupted",
    }
    assert dir(edgeq) == sorted(edgeq.__all__)


@pytest.mark.parametrize("name", edgeq.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(edgeq, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = edgeq.exprot


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, edgeq; assert not {'torch', 'numpy', 'click', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative_and_intact(root: Path, name: str) -> None:
    link = root / "edgeq" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"  # noqa: PTH115 - the text of the link is meant
    assert importlib.import_module(f"edgeq.{name}").__name__ == f"edgeq.{name}"


@pytest.mark.parametrize("name", LINKED)
def test_a_bare_import_is_refused_with_the_right_name(root: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert re.search(rf"ImportError: .*edgeq\.{name}", done.stderr)


def test_no_file_and_no_function_is_too_long(root: Path) -> None:
    for path in python_files(root):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LINES, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                assert length <= FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_no_drawer_for_everything(root: Path) -> None:
    assert not [p for p in python_files(root) if p.stem in ("utils", "util", "common", "helpers", "misc", "manager")]


def test_the_sources_name_no_machine(root: Path) -> None:
    """No folders of the machine that wrote them, and no package mirrors."""
    files = python_files(root) + [
        root / name for name in ("Makefile", "pyproject.toml", "README.md", "CONTRIBUTING.md")
    ]
    places = ("/" + "work/", "/" + "root/", "/home" + "/", "find-" + "links", "index-" + "url")
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if place in text], path


def test_commands_in_the_documents_exist(root: Path) -> None:
    """Every `edgeq COMMAND` in the documents is a command, and every option there is one of its options."""
    for document in (root / "README.md", root / "CONTRIBUTING.md"):
        text = document.read_text(encoding="utf-8")
        calls = re.findall(r"^edgeq ([a-z]+)(.*)$", text, flags=re.MULTILINE) + re.findall(
            r"`edgeq ([a-z]+)([^`\n]*)`", text
        )
        assert calls or document.name == "CONTRIBUTING.md"
        for name, rest in calls:
            assert name in cli.commands, f"{document.name}: edgeq {name}"
            known = {option for param in cli.commands[name].params for option in param.opts}
            used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.split("#")[0]))
            assert used <= known, f"{document.name}: edgeq {name} {' '.join(used - known)}"


def test_make_targets_in_the_documents_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test", "lint", "types", "bench", "clean"} <= targets
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (root / document).read_text(encoding="utf-8")
        assert set(re.findall(r"`make ([a-z]+)", text)) <= targets, document


def test_every_extra_is_known_to_the_doctor(root: Path) -> None:
    from edgeq.cli.doctor import BASE, EXTRAS

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: {re.split(r"[<>=!;\[ ]", line)[0] for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == {
        extra: packages for extra, packages in declared.items() if extra not in ("all", "dev")
    }
    base = {re.split(r"[<>=!; ]", line)[0] for line in project["dependencies"]}
    assert set(BASE) <= base


def test_hints_name_only_extras_that_exist(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join(p.read_text(encoding="utf-8") for p in [*python_files(root), root / "edgeq" / "explain.toml"])
    named = {extra for group in re.findall(r"edgeq\[([a-z][a-z,]*)\]", text) for extra in group.split(",")}
    assert named <= set(project["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout so that no build folder is left in it."""
    copy, out = tmp_path_factory.mktemp("copy") / "edgeq", tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("not a git checkout, so the files of the project are not known")
    for name in filter(None, tracked.stdout.split("\0")):
        source, target = root / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))  # noqa: PTH115 - the text of the link is meant
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_whole(root: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"edgeq"}
    linked = {f"edgeq/{p.relative_to(root)}" for folder in LINKED for p in (root / folder).rglob("*.py")}
    own = {str(p.relative_to(root)) for p in (root / "edgeq").rglob("*.py") if "__pycache__" not in p.parts}
    assert linked | own <= names
    data = {"edgeq/py.typed", "edgeq/explain.toml", "edgeq/devices/targets.toml"}
    data |= {"edgeq/cli/methods.toml", "edgeq/cli/measured.json"}
    weights = {f"edgeq/models/weights/{p.name}" for p in (root / "models" / "weights").iterdir() if p.is_file()}
    assert {"edgeq/models/weights/vit_nano.safetensors"} <= weights
    assert data | weights <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_installs_and_runs_alone(wheel: Path, tmp_path: Path) -> None:
    """Installed into an empty environment that borrows only the dependencies, never this checkout."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=120)
    python = home / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=240, env=env)
    landed = {path.name for path in site.iterdir()}
    assert landed == {"edgeq", f"edgeq-{edgeq.__version__}.dist-info"}
    # A plain path line adds the dependencies; the .pth files of that folder, an editable edgeq among them, stay unread.
    (site / "dependencies.pth").write_text(str(Path(importlib.import_module("click").__file__ or "").parents[1]))
    for words in (["--help"], ["devices", "rpi"], ["models"], ["explain", "EQ-U001"]):
        done = subprocess.run(
            [home / "bin" / "edgeq", *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    query = "import edgeq; print(edgeq.__file__)"
    found = subprocess.run([python, "-c", query], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
