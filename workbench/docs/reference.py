"""The reference, written from what the code says of itself: docstrings, the scenario's schema, variables, commands."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from workbench.docs.markup import cell, code_cell, docstring, escaped, inline, table

API = {
    "Runs": ("simulation", "ready", "results", "policy", "profiles", "units", "errors"),
    "Hosts": ("topology",),
    "Costs": ("costs", "cost"),
    "Designs": ("design", "designs"),
    "Studies": ("studies",),
    "Sweeps": ("sweeps",),
    "Real kernels": ("truth", "recorder"),
    "Configurations of virtual machines": ("vmconfig",),
    "Figures": ("plots",),
    "Reports": ("reports",),
}
"""A page of the API and the modules of ``workbench`` that it describes; of a package, all that are in it."""

_WORDS = {
    "Bytes": "size", "FileBytes": "size", "Nodes": "nodes", "Word": "integer", "Int": "integer", "NodeId": "node",
    "Pages": "pages", "Count": "integer from 1", "Seed": "integer from 0", "MaxNode": "integer", "Name": "text",
    "Prose": "text", "str": "text", "int": "integer", "float": "number", "bool": "true or false",
}  # fmt: skip


def write(folder: Path, command: Any) -> None:
    """Write every page of the reference into a folder. ``command`` is the root of the command line, as Typer makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "cli": commands(command), "scenario": schema(), "variables": variables(), "costs": costs(), "kernels": kernels(),
        "ready": ready(), "machines": machines(folder / "machines"),
    }  # fmt: skip
    names = []
    for title, modules in API.items():
        name = "api-" + title.lower().replace(" ", "-")
        names.append(name)
        pages[name] = api(title, modules)
    pages["api"] = face() + "\n```{toctree}\n" + "\n".join(names) + "\n```\n"
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------- the command line


def commands(root: Any) -> str:
    """Every command with its arguments and options."""
    out = ["# The command line\n", inline(root.help or ""), "\n"]
    out.append("Exit codes: 0; 1 if something disagrees or failed; 2 for bad input, with one line on standard error; 70 for a "
               "fault of the workbench; 130 after Ctrl-C. `-` stands for standard input or output where it fits.\n")  # fmt: skip
    for name, one in _commands(root, "workbench"):
        out.append(f"\n## {name}\n\n{docstring(one.help)}")
        rows = []
        for parameter in one.params:
            if parameter.param_type_name == "argument":
                label = code_cell(parameter.metavar or parameter.name.upper())
            else:
                words = [*parameter.opts, *parameter.secondary_opts]
                label = ", ".join(code_cell(word) for word in words if word)
                label += f" {code_cell(parameter.metavar)}" if parameter.metavar else ""
            standard = parameter.default
            shown = "" if standard in (None, False, True, ()) or callable(standard) else code_cell(standard)
            said = cell(getattr(parameter, "help", None) or "")
            rows.append([label, said + " (needed)" * bool(parameter.required), shown])
        if rows:
            out.append("\n" + table(["word", "what it is", "if left out"], rows))
    return "".join(out)


def _commands(root: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, one in sorted(root.commands.items()):
        yield f"{name} {word}", one
        if hasattr(one, "commands"):
            yield from _commands(one, f"{name} {word}")


# ------------------------------------------------------------------------------------------------------ schemas


def schema() -> str:
    """The fields of a scenario: what they may be, and what they are if left out."""
    from workbench import scenario as sc
    from workbench.topology import host as hosts

    out = [
        "# The scenario\n\n", docstring(sc.__doc__),
        "\n\nIn the tables, a *size* is a number of bytes or a text such as `2 MiB`; ",
        "*nodes* are Linux node ids, as `0-3,8` or a list; *pages* are pages of the guest's size.\n",
    ]  # fmt: skip
    models: list[type[BaseModel]] = [sc.Scenario, sc.Guest, sc.Policy, sc.Vcpu, sc.Conversion, sc.Boot, sc.Task]
    models += [hosts.Host, hosts.Node, hosts.Zone, hosts.HugetlbPool, hosts.AccessCoordinate, hosts.Hardware]
    for model in models:
        out.append(_model(model, f"## {model.__name__}\n"))
    out.append("\n## Operations\n\n`op` says which one an entry of `operations` is. All take `task`, the thread that makes the "
               "call; the first one if left out.\n")  # fmt: skip
    union = get_args(sc.AnyOperation)[0]
    for model in get_args(union):
        out.append(_model(model, f"\n### {model.model_fields['op'].default}\n", without=("op", "task")))
    return "".join(out)


def _model(model: type[BaseModel], heading: str, without: tuple[str, ...] = ()) -> str:
    rows = []
    for name, field in model.model_fields.items():
        if name in without:
            continue
        standard = field.default
        if standard is PydanticUndefined:
            shown = "needed"
        elif standard is None or standard == () or isinstance(standard, (BaseModel, dict)):
            shown = ""
        else:
            shown = code_cell(str(standard).lower() if isinstance(standard, bool) else standard) or "empty"
        rows.append([code_cell(name), _kind(model, name, field.annotation), shown, cell(field.description or "")])
    fields = "\n" + table(["field", "is", "if left out", "meaning"], rows) if rows else ""
    return f"\n{heading}\n{docstring(model.__doc__)}{fields}"


def _kind(model: type[BaseModel], name: str, annotation: Any) -> str:
    """What a field may be, in words."""
    written = next((vars(base)["__annotations__"][name] for base in model.__mro__
                    if name in vars(base).get("__annotations__", {})), "")  # fmt: skip
    words = []
    for alias in re.findall(r"[A-Za-z_]+", written if isinstance(written, str) else ""):
        if alias in _WORDS and _WORDS[alias] not in words:
            words.append(_WORDS[alias])
    return _described(annotation, words)


def _described(kind: Any, words: list[str]) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _described(inside[0], words)
    if origin is Literal:
        return ", ".join(code_cell(value) for value in inside)
    if origin in (tuple, list):
        return "list of " + _described(inside[0], words)
    if origin is dict:
        return f"mapping of {_described(inside[0], words[:1])} to {_described(inside[1], words[-1:])}"
    if inside:
        parts = [_described(one, words) for one in inside if one is not type(None)]
        return " or ".join(dict.fromkeys(part for part in parts if part))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.__name__ if "op" not in kind.model_fields else "operation"
    return " or ".join(words) or escaped(getattr(kind, "__name__", str(kind)))


def variables() -> str:
    """Every kind of Dataset with its variables: dimensions, units, basis and meaning."""
    from workbench import variables as declared

    out = ["# Variables of Datasets\n\n", docstring(declared.__doc__)]
    for name, kind in vars(declared).items():
        if not (isinstance(kind, type) and issubclass(kind, declared.Schema) and kind is not declared.Schema):
            continue
        out.append(f"\n## {name}\n\n{docstring(kind.__doc__)}\n")
        rows = [
            [code_cell(v.name), code_cell(", ".join(v.dims)), cell(v.units), v.basis, cell(v.long_name), cell(v.source)]
            for v in kind.variables.values()
        ]
        if rows:
            out.append(table(["variable", "dimensions", "units", "basis", "what it is", "source"], rows))
        if kind.coordinates:
            coordinates = [[code_cell(c.name), cell(c.units), cell(c.long_name)] for c in kind.coordinates.values()]
            out.append("\n" + table(["coordinate", "units", "what it is"], coordinates))
    return "".join(out)


def costs() -> str:
    """Every parameter of the cost model with its range and source."""
    from workbench import costs as declared

    rows = [
        [code_cell(c.name), f"{c.value:g}", f"{c.low:g} to {c.high:g}", cell(c.unit), cell(c.source)]
        for c in declared.COSTS.values()
    ]
    return f"# Parameters of the cost model\n\n{docstring(declared.__doc__)}\n" + table(
        ["parameter", "value", "range", "unit", "source"], rows
    )


def kernels() -> str:
    """The kernel profiles with the evidence of each rule, the types of VMs, and the VMMs."""
    from workbench import profiles

    out = [f"# Kernels, VM types, VMMs\n\n{docstring(profiles.__doc__)}\n## Kernels\n\n"]
    rows = [
        [code_cell(k.name), cell(k.text), cell(", ".join(k.conversion)), cell(", ".join(k.distributions))]
        for k in profiles.KERNEL_PROFILES.values()
    ]
    out.append(table(["profile", "what holds", "conversion", "shipped by"], rows))
    for kernel in profiles.KERNEL_PROFILES.values():
        if kernel.rules:
            rules = [[code_cell(n), cell(r.text), r.evidence, cell(r.source)] for n, r in kernel.rules.items()]
            out.append(f"\n### {kernel.name}\n\n" + table(["rule", "in words", "evidence", "source"], rules))
    types = [[code_cell(t.name), cell(t.text), str(t.number), t.largest_leaf] for t in profiles.VM_TYPES.values()]
    out.append("\n## VM types\n\n" + table(["type", "what it is", "number", "largest leaf"], types))
    return "".join(out)


def ready() -> str:
    """The ready scenarios: question, what to look at, and the file."""
    from workbench.ready import ready_scenarios

    out = ["# Ready scenarios\n\n`workbench run NAME` answers each of them; `workbench scenarios` lists them.\n"]
    for one in ready_scenarios():
        text = one.path.read_text(encoding="utf-8")
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        out.append(
            f"\n## {one.name}\n\n{inline(one.question)}\n\n**Look at:** {inline(one.look_at)}\n\n```yaml\n{body}\n```\n"
        )
    return "".join(out)


def machines(folder: Path) -> str:
    """Every machine with a picture of its nodes and distances."""
    from workbench.plots.topology import host_dataset, topology
    from workbench.topology.host import Host, machine_names
    from workbench.units import format_bytes

    folder.mkdir(parents=True, exist_ok=True)
    out = ["# Machines\n\nReal machines whose whole distance matrix has been published. `host: NAME` in a scenario takes one; ",
           "what the source does not give is named as assumed.\n"]  # fmt: skip
    for name in machine_names():
        host = Host.from_machine(name)
        picture = folder / f"{name}.svg"
        made = topology(host_dataset(host), title=host.title or name, assumed=", ".join(host.assumed))
        made.savefig(picture, format="svg")
        title = escaped(host.title or name)
        out.append(f"\n## {name}\n\n{title}: {len(host.nodes)} nodes, {format_bytes(host.memory_bytes)}.\n\n")
        out.append(f"![Nodes and distances of {title}](machines/{name}.svg)\n\n")
        for label, text in (("Source", host.source), ("Note", host.note), ("Assumed", ", ".join(host.assumed))):
            if text:
                out.append(f"{label}: {inline(' '.join(text.split()))}\n\n")
    return "".join(out)


# ---------------------------------------------------------------------------------------------------------- API


def face() -> str:
    """What ``import workbench as wb`` offers, and where each name lives."""
    import workbench

    rows = []
    for name in workbench.__all__:
        one = getattr(workbench, name)
        said = (inspect.getdoc(one) or "").strip().split("\n\n")[0]
        rows.append([code_cell(f"wb.{name}"), cell(said), code_cell(one.__module__)])
    return f"# Python\n\n{docstring(workbench.__doc__)}\n" + table(["name", "what it is", "lives in"], rows)


def _modules(name: str) -> Iterator[Any]:
    module = importlib.import_module(f"workbench.{name}")
    yield module
    for entry in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not entry.name.startswith("_"):
            yield importlib.import_module(f"workbench.{name}.{entry.name}")


def api(title: str, names: tuple[str, ...]) -> str:
    """The public functions and classes of some modules."""
    out = [f"# {title}\n"]
    for name in names:
        for module in _modules(name):
            said = [_entry(module, key, one) for key, one in vars(module).items() if _own(module, key, one)]
            if said:
                out.append(f"\n## {module.__name__}\n\n{docstring(module.__doc__)}\n" + "\n".join(said))
    return "".join(out)


def _own(module: Any, key: str, one: Any) -> bool:
    """Whether a name of a module is public, made there, and says what it is."""
    made = inspect.isfunction(one) or inspect.isclass(one)
    return bool(
        made and not key.startswith("_") and one.__module__ == module.__name__ and one.__doc__ and one.__name__ == key
    )


def _signature(one: Any) -> str:
    """Parameters as they are called, with what is taken if one is left out where that is short."""
    try:
        given = inspect.signature(one)
    except (TypeError, ValueError):
        return "()"
    words: list[str] = []
    kinds = [parameter.kind for parameter in given.parameters.values()]
    for position, parameter in enumerate(given.parameters.values()):
        star = (
            "*"
            if parameter.kind is parameter.VAR_POSITIONAL
            else "**"
            if parameter.kind is parameter.VAR_KEYWORD
            else ""
        )
        first = parameter.KEYWORD_ONLY not in kinds[:position] and parameter.VAR_POSITIONAL not in kinds[:position]
        if parameter.kind is parameter.KEYWORD_ONLY and first:
            words.append("*")
        standard = ""
        if parameter.default is not parameter.empty:
            shown = repr(parameter.default)
            standard = "=" + (shown if re.fullmatch(r"[-\w.'\" ]{1,30}|\(\)", shown) else "...")
        words.append(f"{star}{parameter.name}{standard}")
    return "(" + ", ".join(words) + ")"


def _entry(module: Any, key: str, one: Any) -> str:
    if inspect.isfunction(one):
        return f":::{{py:function}} {module.__name__}.{key}{_signature(one)}\n\n{docstring(one.__doc__)}:::\n"
    constructed = "" if issubclass(one, BaseModel) else _signature(one)
    inside = [docstring(one.__doc__)]
    for name, member in vars(one).items():
        plain = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if name.startswith("_") or not inspect.isfunction(plain) or not plain.__doc__:
            continue
        bound = re.sub(r"^\((self|cls)(, )?", "(", _signature(plain))
        kind = "\n:classmethod:" if isinstance(member, classmethod) else ""
        inside.append(f":::{{py:method}} {name}{bound}{kind}\n\n{docstring(plain.__doc__)}:::\n")
    return f"::::{{py:class}} {module.__name__}.{key}{constructed}\n\n" + "\n".join(inside) + "::::\n"
