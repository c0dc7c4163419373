"""The direction of the arrows between the wings of the house, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS_MAY_IMPORT = {"numpy", "numba", "llvmlite"}
COMPILERS = {f"workbench.kernels.{name}" for name in ("compile", "code_cache", "dispatch", "records")}
"""The modules that know Numba; all other kernels know three decorators and a class decorator."""

GROUND = {
    "errors", "errnos", "limits", "texts", "units", "files", "safe_yaml", "yaml_lists", "bitmap_lists", "data", "policy", "costs",
    "intervals", "probe_words", "profiles", "design", "names", "replacing", "validation", "shown", "garbage",
    "children",
}  # fmt: skip
"""What every wing may use; among these, and from ``topology`` up, the table below says who may use whom."""
SCENE = GROUND | {"topology", "scenario", "ready", "variables", "results", "kernels"}
"""A host, a guest, their operations, and the names of the answers."""
WINGS = {
    "kernels": set(),
    "errors": set(),
    "errnos": set(),
    "limits": set(),
    "names": set(),
    "intervals": set(),
    "garbage": set(),
    "children": set(),
    "texts": set(),
    "probe_words": set(),
    "duck_arrays": set(),
    "units": {"errors", "limits"},
    "files": {"errors"},
    "replacing": {"errors", "files", "texts"},
    "yaml_lists": set(),
    "safe_yaml": {"errors", "files", "garbage", "limits", "yaml_lists"},
    "bitmap_lists": {"errors", "limits"},
    "validation": {"limits", "names"},
    "shown": {"bitmap_lists", "errnos", "units"},
    "data": {"errors", "names"},
    "costs": {"errors", "names"},
    "design": {"errors", "names", "units"},
    "policy": {"bitmap_lists", "errors", "limits"},
    "profiles": {"errors", "names"},
    "topology": {"bitmap_lists", "data", "errors", "files", "kernels", "limits", "names", "replacing", "safe_yaml", "shown",
                 "texts", "units", "validation"},
    "scenario": {"design", "errors", "garbage", "limits", "policy", "profiles", "safe_yaml", "shown", "texts", "topology",
                 "units", "validation"},
    "ready": {"data", "errors", "scenario"},
    "variables": {"costs"},
    "amounts": {"units"},
    "results": {"duck_arrays", "errors", "files", "kernels", "replacing", "scenario", "shown", "units", "variables"},
    "tracking": SCENE,
    "engine": SCENE | {"tracking"},
    "cost": SCENE | {"tracking", "engine"},
    "answer": SCENE | {"tracking", "engine", "cost"},
    "running": SCENE | {"tracking", "engine", "answer"},
    "simulation": SCENE | {"running"},
    "recorder": SCENE | {"tracking", "engine"},
    "designs": SCENE | {"tracking", "engine", "cost", "simulation", "sweeps"},
    "truth": SCENE | {"answer", "running", "tracking", "engine", "cost", "simulation"},
    "studies": SCENE | {"answer", "running", "tracking", "engine", "cost", "simulation", "designs", "truth"},
    "reports": SCENE,
    "vmconfig": SCENE | {"amounts"},
    "sweeps": SCENE | {"amounts", "answer", "running", "simulation", "reports"},
    "plots": SCENE | {"amounts", "cost", "studies", "designs", "truth"},
    "explorer": SCENE | {"amounts", "tracking", "engine", "cost", "simulation", "designs", "studies", "plots"},
    "docs": SCENE | {"cost", "simulation", "designs", "studies", "truth", "recorder", "sweeps", "reports", "plots", "vmconfig"},
    "__main__": {"commands"},
    "commands": SCENE | {"amounts", "cost", "running", "simulation", "designs", "studies", "truth", "recorder", "sweeps",
                         "reports", "plots", "explorer", "vmconfig", "docs"},
}  # fmt: skip
"""Wing (a folder of ``workbench/``, ``kernels/`` or a module at its top) -> wings that it may import, at any place."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("workbench", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ("kernels", "workbench") for path in (ROOT / package).rglob("*.py")}


def wing(module: str) -> str:
    return module.split(".")[1]


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


INSIDE = sorted(name for name in MODULES if name.count(".") > 0)


@pytest.mark.parametrize("name", [name for name in INSIDE if wing(name) == "kernels"])
def test_kernels_know_arrays_only(name: str) -> None:
    allowed = set(sys.stdlib_module_names) | KERNELS_MAY_IMPORT
    outside = {
        module
        for module in imported(MODULES[name])
        if module.split(".")[0] not in allowed and not module.startswith("workbench.kernels")
    }
    assert not outside
    if name not in COMPILERS:
        assert not any(module.split(".")[0] in ("numba", "llvmlite") for module in imported(MODULES[name])), (
            "workbench.kernels.compile does that"
        )


@pytest.mark.parametrize("name", INSIDE)
def test_a_wing_imports_only_what_lies_below_it(name: str) -> None:
    ours = {module for module in imported(MODULES[name]) if module.startswith("workbench.")}
    backwards = {module for module in ours if wing(module) != wing(name) and wing(module) not in WINGS[wing(name)]}
    assert not backwards


def test_the_table_of_wings_has_no_circle_and_names_every_wing() -> None:
    TopologicalSorter(WINGS).prepare()
    assert {wing(name) for name in INSIDE} == set(WINGS)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Also not by imports inside functions."""
    graph = {
        name: {module for module in imported(path) if module in MODULES and module != name}
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_is_installed() -> None:
    """Packages are listed by hand, because three of them lie beside ``workbench/``."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {module_name(path) for path in MODULES.values() if path.name == "__init__.py"}
    assert set(listed) == packages | {"workbench.datasets", "workbench.notebooks"}


def test_importing_workbench_imports_neither_numba_nor_plots() -> None:
    code = (
        "import sys, workbench; heavy = {'numba', 'matplotlib', 'seaborn', 'ipywidgets', 'papermill', 'dask'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert reply.stdout.strip() == "[]"


def test_a_function_of_the_face_is_not_hidden_by_a_module() -> None:
    code = "import workbench.simulation, workbench as wb; print(callable(wb.simulate), callable(wb.verify))"
    reply = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert reply.stdout.strip() == "True True"
