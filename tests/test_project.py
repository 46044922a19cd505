"""The rules of the repository that no linter knows: light imports, plug-ins that resolve, sizes, no stray threads."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest

import edge_sdk

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge_sdk", "coordinator", "sensors", "export", "jetson")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "cv2", "serial", "onnxruntime", "paho", "tensorrt", "transformers", "librosa", "matplotlib"}
OPTIONAL = {"torch", "onnx", "onnxruntime", "onnxscript", "safetensors"}  # a bare device agent lacks these
LEAVES_THE_LOOP = {"edge_sdk/core/compute.py", "edge_sdk/streams/pump.py"}
MAX_FUNCTION, MAX_MODEL_FUNCTION, MAX_MODULE, MAX_METHOD = 60, 80, 300, 150


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_import_is_light() -> None:
    code = "import sys, edge_sdk; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not HEAVY & set(done.stdout.split())


def test_public_names_are_sorted_and_there() -> None:
    assert list(edge_sdk.__all__) == sorted(edge_sdk.__all__)
    assert set(edge_sdk.__all__) <= set(dir(edge_sdk))


@pytest.mark.parametrize("name", edge_sdk.__all__)
def test_public_name_resolves(name: str) -> None:
    try:
        getattr(edge_sdk, name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def our_entry_points() -> list[EntryPoint]:
    return sorted(distribution("edge-sdk").entry_points, key=lambda point: (point.group, point.name))


@pytest.mark.parametrize("point", our_entry_points(), ids=lambda point: f"{point.group}:{point.name}")
def test_entry_point_resolves(point: EntryPoint) -> None:
    try:
        point.load()
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def code_lines(source: str) -> int:
    """Counts lines that hold code: no blank lines, comments or docstrings."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    for start, end in docstrings(ast.parse(source)):
        lines.difference_update(range(start, end + 1))
    return len(lines)


def docstrings(tree: ast.AST) -> list[tuple[int, int]]:
    spans = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                spans.append((first.lineno, first.end_lineno or first.lineno))
    return spans


def import_lines(source: str) -> int:
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)]
    return sum((n.end_lineno or n.lineno) - n.lineno + 1 for n in nodes)


def test_counting() -> None:
    assert code_lines('"""Doc.\n\nMore."""\n\nimport os\n\n# why\nx = [\n    1,\n]\n\ndef f():\n    """D."""\n') == 5
    assert import_lines("import os\nfrom a import (\n    b,\n)\n") == 4


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_is_short(path: Path) -> None:
    source = path.read_text()
    lines = code_lines(source)
    assert lines <= MAX_MODULE, f"{relative(path)} has {lines} lines of code, at most {MAX_MODULE}: cut it in two"
    if path.parent == ROOT / "edge_sdk" / "methods" and path.stem not in ("__init__", "base"):
        lines -= import_lines(source)
        assert lines <= MAX_METHOD, f"{relative(path)} has {lines} lines of code, a method at most {MAX_METHOD}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    limit = MAX_MODEL_FUNCTION if path.is_relative_to(ROOT / "edge_sdk" / "models") else MAX_FUNCTION
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= limit, f"{relative(path)}: {node.name} has {lines} lines, at most {limit}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_else_leaves_the_event_loop(path: Path) -> None:
    if relative(path) in LEAVES_THE_LOOP:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr != "run_in_executor", f"{relative(path)}:{node.lineno}: use Compute"
