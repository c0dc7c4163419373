"""The direction of the arrows (kernels <- workbench <- cli, explorer), and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS_MAY_IMPORT = {"numpy", "kernels", "numba"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ("kernels", "workbench") for path in (ROOT / package).rglob("*.py")}


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that a file names in import statements; those inside functions only on request."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_level_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                base = child.module or ""
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    found.add(full if full in MODULES else base)
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] == "kernels"))
def test_kernels_know_arrays_only(name: str) -> None:
    standard = set(sys.stdlib_module_names)
    outside = {
        module for module in imported(MODULES[name]) if module.split(".")[0] not in standard | KERNELS_MAY_IMPORT
    }
    assert not outside
    if name != "kernels.compile":
        assert not any(module.split(".")[0] == "numba" for module in imported(MODULES[name])), (
            "kernels.compile does that"
        )


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] == "workbench"))
def test_engine_does_not_import_its_users(name: str) -> None:
    if name.split(".")[1:2] in (["explorer"], ["cli"]) or ".commands_" in name or name == "workbench":
        return
    users = {
        module
        for module in imported(MODULES[name])
        if module.startswith(("workbench.explorer", "workbench.cli", "workbench.commands_"))
    }
    assert not users


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        name: {module for module in imported(path, top_level_only=True) if module in MODULES and module != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_importing_workbench_imports_neither_numba_nor_plots() -> None:
    code = (
        "import sys, workbench; heavy = {'numba', 'matplotlib', 'seaborn', 'ipywidgets', 'papermill', 'dask'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert reply.stdout.strip() == "[]"
