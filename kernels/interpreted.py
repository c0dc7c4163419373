"""A kernel as plain Python: on an empty cache a small run has its answer before a compiler has read the first function.

Once a process has asked :mod:`workbench.kernels.warm` not to wait, an entry that is not compiled yet is interpreted, while
other processes compile it. That gives the same answer (``tests/kernels`` run both ways) and is 50 to 500 times slower,
so there is a limit of passes through loops. What a call writes into arrays is remembered: where the limit of its kernel
is reached the call is undone and that kernel compiled; where the limit of the process is reached all are.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from workbench.kernels.dispatch import Kernel, OmittedArg

STEPS = 5_000_000
"""Passes through loops that are interpreted in a process: some five to ten seconds."""
STEPS_OF_A_KERNEL, STEPS_OF_A_BYTE = 100_000, 25
"""And of one kernel in it, with those for each byte of Python's code below it: compiling takes the longer the more it is."""

IN_PYTHON: list[tuple[object, Callable[..., Any]]] = []
"""Functions that are one instruction, and what they do (:mod:`workbench.kernels.compile` adds them)."""

_steps = {"process": 0, "call": 0}
"""Steps taken by the calls that ended, and steps that the call under way may still take."""
_steps_of: dict[str, int] = {}
"""Steps taken by kernel."""
_limit_of: dict[str, int] = {}
_written: list[tuple[np.ndarray, Any, Any]] = []
"""Of the call that is under way: array, index, and what stood there."""
_one_call = threading.Lock()
_state = {"allowed": False}


class _UsedUp(Exception):
    """The steps of this process are used up."""


def allow() -> None:
    """From now on kernels may be interpreted: somebody waits for an answer."""
    _state["allowed"] = True


def permitted(kernel: str = "") -> bool:
    """Whether a kernel (any, if none is named) that is called now may be interpreted."""
    return _state["allowed"] and _limit(kernel) > 0


def _limit(kernel: str) -> int:
    return min(STEPS - _steps["process"], _limit_of.get(kernel, STEPS_OF_A_KERNEL) - _steps_of.get(kernel, 0))


def call(kernel: Kernel, *values: Any) -> Any:
    """What ``kernel`` returns for ``values``; it is compiled for them after all when there are no steps left."""
    values = tuple(value.value if isinstance(value, OmittedArg) else value for value in values)
    if kernel.name not in _limit_of:
        _limit_of[kernel.name] = STEPS_OF_A_KERNEL + STEPS_OF_A_BYTE * sum(_bytes_below(kernel).values())
    with _one_call:
        limit = _steps["call"] = _limit(kernel.name)
        try:
            with np.errstate(all="ignore"):
                return _native(plain(kernel)(*values))
        except _UsedUp:
            for array, index, before in reversed(_written):
                array[index] = before
        finally:
            _written.clear()
            taken = limit - _steps["call"]
            _steps["process"] += taken
            _steps_of[kernel.name] = _steps_of.get(kernel.name, 0) + taken
    return kernel(*values)


def plain(kernel: Kernel) -> Callable[..., Any]:
    """The function that ``kernel`` compiles, as Python that calls no compiled function and counts its steps."""
    return _namespace(kernel.py_func.__module__)[kernel.py_func.__name__]


def _bytes_below(kernel: Kernel) -> dict[str, int]:
    """Bytes of Python's code of a kernel and of each that it calls, by name."""
    found: dict[str, int] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop().py_func
        if function.__qualname__ in found:
            continue
        found[function.__qualname__] = len(function.__code__.co_code)
        modules = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        for name in function.__code__.co_names:
            named = [function.__globals__.get(name), *(getattr(module, name, None) for module in modules)]
            waiting.extend(value for value in named if isinstance(value, Kernel))
    return found


def _native(value: Any) -> Any:
    """Numbers of NumPy as compiled code returns them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        parts = [_native(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


@functools.cache
def _namespace(name: str) -> dict[str, Any]:
    """What a module of kernels defines, each kernel in it (or in another module that it names) as plain Python."""
    module = importlib.import_module(name)
    space = dict(vars(module))
    own = set()
    for key, value in vars(module).items():
        if isinstance(value, Kernel):
            home = value.py_func.__module__
            if home == name:
                own.add(value.py_func.__name__)
            else:
                space[key] = _namespace(home)[value.py_func.__name__]
        elif special := [python for instruction, python in IN_PYTHON if instruction is value]:
            (space[key],) = special
        elif isinstance(value, ModuleType) and value.__name__.startswith("workbench.kernels."):
            space[key] = SimpleNamespace(**_namespace(value.__name__))
    space |= {"_step": _step, "_write": _write}
    tree = _Undoable().visit(ast.parse(inspect.getsource(module)))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in own]
    code = compile(
        ast.fix_missing_locations(tree), str(module.__file__), "exec",
        flags=__future__.annotations.compiler_flag, dont_inherit=True,
    )  # fmt: skip
    exec(code, space)
    return space


class _Undoable(ast.NodeTransformer):
    """Functions without decorators; every pass through a loop is counted and every write into an array remembered."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.decorator_list = []
        return node

    def _counted(self, node: ast.For | ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(_called("_step")))
        return node

    visit_For = visit_While = _counted

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | list[ast.stmt]:
        if not isinstance(node.target, ast.Subscript):
            return node
        before = ast.Subscript(node.target.value, node.target.slice, ast.Load())
        return self._put([node.target], ast.BinOp(before, node.op, node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.AST | list[ast.stmt]:
        return self._put(node.targets, node.value)

    def _put(self, targets: list[ast.expr], value: ast.expr) -> list[ast.stmt]:
        """``value`` into each of ``targets``, from left to right."""
        if not any(isinstance(part, ast.Subscript) for target in targets for part in _parts(target)):
            return [ast.Assign(targets, value)]
        out: list[ast.stmt] = [ast.Assign([ast.Name("_value", ast.Store())], value)]
        for target in targets:
            for number, part in enumerate(_parts(target)):
                got: ast.expr = ast.Name("_value", ast.Load())
                if isinstance(target, ast.Tuple):
                    got = ast.Subscript(got, ast.Constant(number), ast.Load())
                if isinstance(part, ast.Subscript):
                    out.append(ast.Expr(_called("_write", part.value, _index(part.slice), got)))
                else:
                    out.append(ast.Assign([part], got))
        return out


def _parts(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _called(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _index(index: ast.expr) -> ast.expr:
    """What stands in square brackets, as an expression that may stand elsewhere."""
    if isinstance(index, ast.Tuple):
        return ast.Tuple([_index(part) for part in index.elts], ast.Load())
    if isinstance(index, ast.Slice):
        return _called("slice", *(part or ast.Constant(None) for part in (index.lower, index.upper, index.step)))
    return index


def _step() -> None:
    _steps["call"] -= 1
    if _steps["call"] < 0:
        raise _UsedUp


def _write(array: np.ndarray, index: Any, value: Any) -> None:
    before = array[index]
    _written.append((array, index, before.copy() if isinstance(before, np.ndarray) else before))
    array[index] = value
