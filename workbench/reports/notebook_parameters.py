"""The typed ``parameters`` cell of a notebook: read it, and hold values against it before anything runs.

Papermill only warns about a name the notebook does not have and turns what it cannot translate into text; here both
are refused with one line that says what the notebook takes.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from workbench.data import notebooks_path, shipped
from workbench.errors import WorkbenchError, reason
from workbench.files import read_file
from workbench.limits import NOTEBOOK_BYTES
from workbench.names import near

if TYPE_CHECKING:
    from pathlib import Path

    import nbformat

TAG = "parameters"
_PLAIN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "tuple": tuple,
    "None": None, "Any": Any, "object": Any, "Path": str,
}  # fmt: skip
_GENERIC: dict[str, Any] = {
    "list": list, "List": list, "dict": dict, "Dict": dict, "tuple": tuple, "Tuple": tuple,
    "Literal": Literal, "Optional": Optional, "Union": Union,
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One line ``name: annotation = default  # help`` of the parameters cell."""

    name: str
    annotation: str
    default: str
    help: str
    type: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation}"

    @property
    def is_path(self) -> bool:
        """Whether the notebook says that it is a file or directory (annotation ``Path``, ``Path | None``)."""
        return re.search(r"\bPath\b", self.annotation) is not None


def parameters_cell(notebook: nbformat.NotebookNode) -> int | None:
    """Return the index of the cell tagged ``parameters``, or None."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and TAG in cell.metadata.get("tags", []):
            return index
    return None


def read_parameters(notebook: nbformat.NotebookNode, where: str = "notebook") -> dict[str, Parameter]:
    """Return the parameters of a notebook by name, in the order of the cell; none when it has no such cell."""
    index = parameters_cell(notebook)
    if index is None:
        return {}
    source = notebook.cells[index].source
    try:
        tree = ast.parse(source)
        comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, tokenize.TokenError) as error:
        raise WorkbenchError(f"{where}: the cell tagged 'parameters' is not Python: {error}") from error
    found: dict[str, Parameter] = {}
    for node in tree.body:
        annotation: ast.expr | None = None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            target, value, annotation = node.target, node.value, node.annotation
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            target, value = node.targets[0], node.value
        else:
            continue
        if annotation is not None:
            text, kind = ast.unparse(annotation), _resolve(annotation)
        else:
            text, kind = _type_of_default(value)
        help_text = comments.get(node.end_lineno or node.lineno, "")
        found[target.id] = Parameter(target.id, text, ast.unparse(value), help_text, kind)
    return found


def _type_of_default(value: ast.expr) -> tuple[str, Any]:
    try:
        kind = type(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return "Any", Any
    return (kind.__name__, kind) if kind.__name__ in _PLAIN else ("Any", Any)


def _resolve(node: ast.expr) -> Any:
    """Turn an annotation into a type without evaluating it: names it does not know mean Any."""
    if isinstance(node, ast.Constant):
        if node.value is None:
            return None
        if isinstance(node.value, str):
            return _resolve(ast.parse(node.value, mode="eval").body)
        return Any
    if isinstance(node, ast.Name):
        return _PLAIN.get(node.id, Any)
    if isinstance(node, ast.Attribute):
        return _PLAIN.get(node.attr, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[_resolve(node.left), _resolve(node.right)]  # noqa: UP007 (built from values)
    if isinstance(node, ast.Subscript):
        name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        generic = _GENERIC.get(name)
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if generic is Literal:
            return Literal[tuple(ast.literal_eval(item) for item in items)]
        if generic is not None:
            kinds = tuple(
                ... if isinstance(item, ast.Constant) and item.value is ... else _resolve(item) for item in items
            )
            return generic[kinds if len(kinds) > 1 else kinds[0]]
    return Any


def listing(parameters: Mapping[str, Parameter]) -> str:
    """Return the allowed names with their types, for the end of an error line."""
    return ", ".join(str(parameter) for parameter in parameters.values()) or "no parameters"


def check_values(
    parameters: Mapping[str, Parameter],
    values: Mapping[str, object],
    texts: Mapping[str, str] | None = None,
    where: str = "notebook",
) -> dict[str, Any]:
    """Return the values to run with, as plain JSON types.

    values: as read from YAML or given in Python, checked strictly (an integer is accepted as a float).
    texts: as typed on the command line; read according to the parameter's type. They win over values.
    Raises WorkbenchError naming the parameter, the value, and what the notebook takes.
    """
    checked: dict[str, Any] = {}
    for name in [*values, *(texts or {})]:
        if name not in parameters:
            meant = near(str(name), parameters).strip()
            hint = f" ({meant})" if meant else ""
            raise WorkbenchError(f"{where}: no parameter {_short(name)}{hint}; it takes {listing(parameters)}")
    for name, value in values.items():
        checked[name] = _checked(parameters[name], value, parameters, where)
    for name, text in (texts or {}).items():
        checked[name] = _from_text(parameters[name], text, parameters, where)
    return checked


def _refuse(parameter: Parameter, value: object, parameters: Mapping[str, Parameter], where: str) -> WorkbenchError:
    help_text = f" ({parameter.help})" if parameter.help else ""
    return WorkbenchError(
        f"{where}: parameter {parameter.name!r} is {parameter.annotation}{help_text}, "
        f"not {_short(value)}; it takes {listing(parameters)}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(parameter: Parameter, value: object, parameters: Mapping[str, Parameter], where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_jsonable_python

    adapter = TypeAdapter(parameter.type)
    try:
        try:
            result = adapter.validate_python(value, strict=True)
        except ValidationError:
            # in JSON mode a list is accepted where the annotation says tuple
            result = adapter.validate_json(json.dumps(to_jsonable_python(value)), strict=True)
        return to_jsonable_python(result, inf_nan_mode="constants")
    except (ValidationError, TypeError, ValueError) as error:
        raise _refuse(parameter, value, parameters, where) from error


def _from_text(parameter: Parameter, text: str, parameters: Mapping[str, Parameter], where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import to_jsonable_python

    adapter = TypeAdapter(parameter.type)
    if parameter.type is not Any:
        if text == "null":
            try:
                return adapter.validate_python(None, strict=True)
            except ValidationError:
                pass
        try:
            return to_jsonable_python(adapter.validate_strings(text), inf_nan_mode="constants")
        except (ValidationError, ValueError):
            pass
    try:
        from workbench.safe_yaml import load

        value = load(f"value: {text}\n", parameter.name)["value"]
    except WorkbenchError as error:
        raise _refuse(parameter, text, parameters, where) from error
    if parameter.type is Any:
        return to_jsonable_python(value)
    try:
        return _checked(parameter, value, parameters, where)
    except WorkbenchError as error:
        raise _refuse(parameter, text, parameters, where) from error


def find_notebook(given: str | Path) -> Path:
    """A notebook file, or a ready notebook by name (``01_placement``)."""
    return shipped(given, notebooks_path(), (".ipynb",), "notebook")


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook (nbformat 4), or raise WorkbenchError with one line."""
    import nbformat

    try:
        text = read_file(path, NOTEBOOK_BYTES, "notebook").decode("utf-8")
        with warnings.catch_warnings():  # of cells without names, which nobody asks for here
            warnings.simplefilter("ignore")
            notebook = nbformat.reads(text, as_version=4)
        if _SURROGATE.search(text):
            json.dumps(notebook, ensure_ascii=False).encode()  # half a character is none
    except WorkbenchError:
        raise
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        raise _no_notebook(path, error) from error
    for number, cell in enumerate(notebook.cells):  # nbformat says of what lacks only that it lacks
        for name, kind in (("cell_type", str), ("source", str), ("metadata", dict)):
            if not isinstance(cell.get(name), kind):
                raise WorkbenchError(f"notebook {str(path)!r}: not a Jupyter notebook (cell {number} has no {name})")
        tags = cell.metadata.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise WorkbenchError(f"notebook {str(path)!r}: not a Jupyter notebook (tags of cell {number} are no names)")
        if cell.cell_type == "code" and not _outputs_are_whole(cell.get("outputs")):
            said = f"cell {number} has outputs that are none"
            raise WorkbenchError(f"notebook {str(path)!r}: not a Jupyter notebook ({said})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nbformat.validate(notebook, relax_add_props=True)  # as nbconvert does, when the notebook has been run
    except Exception as error:  # of what is not even to be compared, others than its own
        raise _no_notebook(path, error) from error
    return notebook


def _no_notebook(path: Path, error: Exception) -> WorkbenchError:
    return WorkbenchError(f"notebook {str(path)!r}: not a Jupyter notebook ({reason(error)})")


_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
_OF_OUTPUTS: dict[str, dict[str, type]] = {"stream": {"name": str, "text": str}, "error": {"traceback": list}}
_OF_SHOWN: dict[str, type] = {"data": dict, "metadata": dict}
"""What an output has that a report reads, by its kind; those that are shown."""


def _outputs_are_whole(outputs: object) -> bool:
    return isinstance(outputs, list) and all(
        isinstance(output, dict)
        and isinstance(output.get("output_type"), str)
        and all(
            isinstance(output.get(name), kind)
            for name, kind in _OF_OUTPUTS.get(output["output_type"], _OF_SHOWN).items()
        )
        and all(isinstance(line, str) for line in output.get("traceback", ()))
        and all(map(_is_shown, output.get("data", {}).items()))
        for output in outputs
    )


def _is_shown(part: tuple[object, object]) -> bool:
    """A text, or its lines; of JSON, and of what is neither text nor picture, nothing is asked."""
    mime, value = part
    if not isinstance(mime, str) or mime.endswith("json") or not mime.startswith(("text/", "image/")):
        return isinstance(mime, str)
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))
