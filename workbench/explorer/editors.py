"""Editors of a scenario: each shows one part of it and turns what people enter into edits of the controller.

``load`` moves the widgets to a scenario without causing edits; ``show_errors`` puts messages beside the fields.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import ipywidgets as w
import numpy as np

from workbench import profiles, safe_yaml
from workbench import scenario as sc
from workbench.bitmap_lists import format_list, parse_list
from workbench.design import DESIGNS
from workbench.errors import WorkbenchError
from workbench.explorer import edits
from workbench.explorer.controller import Controller, Edit, set_value
from workbench.explorer.widgets import Matrix, NodePicker
from workbench.plots.palette import node_colours
from workbench.scenario import Scenario
from workbench.topology.host import Host, Kind, machine_names
from workbench.units import PAGE_SIZE, exact_bytes, format_bytes, parse_bytes

LABEL = {"description_width": "84px"}
SHORT = {"description_width": "44px"}
SIZES = [f"{n} {unit}" for unit in ("GiB", "TiB") for n in (1, 4, 16, 64, 256) if not (unit == "TiB" and n > 16)]
MODES = {
    "default (follow the task)": "default",
    "local": "local",
    "preferred": "preferred",
    "preferred many": "preferred_many",
    "bind": "bind",
    "interleave": "interleave",
    "weighted interleave": "weighted_interleave",
}
EDITED = "edited host"
MOST_WRITTEN = 400
"""Operations that the text field holds; more would be slow in the browser."""


def wide() -> w.Layout:
    """A layout of its own for each widget: one that is shared would hide them all at once."""
    return w.Layout(width="98%")


class Editor:
    """Fields with a message line each."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._loading = False
        self._messages: dict[str, w.HTML] = {}

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Changes of widgets inside are not edits."""
        before, self._loading = self._loading, True
        try:
            yield
        finally:
            self._loading = before

    def message(self, *fields: str) -> w.HTML:
        """The line under a field that says what is wrong with it."""
        line = w.HTML(layout=w.Layout(display="none", width="98%"))
        line.add_class("wb-error")
        for name in fields:
            self._messages[name] = line
        return line

    def on_change(self, widget: w.Widget, field: str, make: Callable[[Any], Edit], trait: str = "value") -> None:
        """A change of the widget is an edit at ``field``."""

        def changed(change: Mapping[str, Any]) -> None:
            if getattr(widget, "index", 0) is None:  # what is chosen of several is never nothing
                widget.value = change["old"]
            elif not self._loading:
                self.try_edit(field, lambda: make(change["new"]))

        widget.observe(changed, trait)

    def try_edit(self, field: str, make: Callable[[], Edit]) -> bool:
        """Edit; what cannot even be read becomes the field's message."""
        try:
            edit = make()
        except WorkbenchError as error:
            self.controller.refuse(field, str(error))
            return False
        return self.controller.edit(field, edit)

    def show_errors(self, errors: Mapping[str, str]) -> None:
        """Show the messages of this editor's fields and hide the others."""
        shown: dict[int, str] = {}
        for name, line in self._messages.items():
            shown[id(line)] = shown.get(id(line)) or errors.get(name, "")
        for line in set(self._messages.values()):
            text = shown[id(line)]
            line.value = f'<span role="alert">{html.escape(text)}</span>' if text else ""
            line.layout.display = "" if text else "none"

    def load(self, scenario: Scenario) -> None:
        raise NotImplementedError


def _heading(text: str) -> w.HTML:
    return w.HTML(f'<div class="wb-heading">{text}</div>')


def _without_policies(scenario: Scenario) -> str:
    """What decides where pages go if the guest lists no policy: those that operations set, or nothing does."""
    if scenario.kinds.isdisjoint((sc.Mbind, sc.Fbind, sc.SetPolicy, sc.SetMempolicy)):
        return "No policy: pages go where the task that touches them first runs."
    return "No policy of the guest: operations of the scenario set one."


def _node_data(host: Host) -> list[dict[str, Any]]:
    palette = node_colours(host.distance_matrix, np.array([len(node.cpus) for node in host.nodes]))
    return [
        {
            "id": node.id,
            "color": color,
            "title": f"{node.kind}, {format_bytes(node.memory_bytes)}, {len(node.cpus)} CPUs",
        }
        for node, color in zip(host.nodes, palette, strict=True)
    ]


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of ``"0-7,64-71"``."""
    try:
        return parse_list(text)
    except ValueError as error:
        raise WorkbenchError(f"cpus: {error}") from None


class MachineEditor(Editor):
    """Choose a machine, then change its nodes and distances."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        names = machine_names()
        self.machine = w.Dropdown(options=names, description="machine", style=LABEL, layout=wide())
        self.this_host = w.Button(description="this host", tooltip="Read the topology of this computer", icon="")
        self.upload = w.FileUpload(accept=".yaml,.yml,.xml,.txt", multiple=False, description="from a file")
        self.upload.tooltip = "YAML, hwloc XML, or the output of numactl --hardware"
        self.node = w.Dropdown(
            options=[], description="node", style=SHORT, layout=w.Layout(flex="1 1 0", min_width="0")
        )
        self.add = w.Button(description="add", tooltip="Add a node like this one", layout=w.Layout(width="auto"))
        self.remove = w.Button(description="remove", tooltip="Remove this node", layout=w.Layout(width="auto"))
        self.memory = w.Text(description="memory", continuous_update=False, style=LABEL, layout=wide())
        self.cpus = w.Text(
            description="CPUs", placeholder="0-7,64-71", continuous_update=False, style=LABEL, layout=wide()
        )
        self.kind = w.Dropdown(options=list(get_args(Kind)), description="kind", style=LABEL, layout=wide())
        self.movable = w.Checkbox(description="all memory onlined as movable", indent=False)
        self.symmetric = w.Checkbox(value=True, description="edit both directions", indent=False)
        self.matrix = Matrix()
        self.note = w.HTML()
        self.widget = w.VBox(
            [
                self.machine,
                w.HBox([self.this_host, self.upload]),
                self.message("host"),
                self.note,
                _heading("Nodes"),
                w.HBox([self.node, self.add, self.remove]),
                self.memory,
                self.cpus,
                self.kind,
                self.movable,
                self.message("host.node"),
                _heading("Distances (from row to column)"),
                self.symmetric,
                self.matrix,
                self.message("host.distances"),
            ]
        )
        self.host = controller.scenario.host
        self.on_change(self.machine, "host", self._choose)
        self.this_host.on_click(lambda _: self.try_edit("host", lambda: self._use(Host.from_sysfs())))
        self.on_change(self.upload, "host", self._read)
        self.node.observe(lambda _: self._show_node(), "value")
        for widget in (self.memory, self.cpus, self.kind, self.movable):
            self.on_change(widget, "host.node", self._change_node)
        self.add.on_click(lambda _: self.try_edit("host.node", self._add))
        self.remove.on_click(lambda _: self.try_edit("host.node", self._remove))
        self.on_change(self.matrix, "host.distances", self._set_distances, "values")
        self.symmetric.observe(lambda change: setattr(self.matrix, "symmetric", change["new"]), "value")

    def _use(self, host: Host) -> Edit:
        return lambda mapping: edits.use_host(mapping, host)

    def _choose(self, name: str) -> Edit:
        return (lambda mapping: None) if name == EDITED else self._use(Host.from_machine(name))

    def _read(self, files: tuple[Mapping[str, Any], ...]) -> Edit:
        if not files:
            return lambda mapping: None
        name, content = str(files[0]["name"]), bytes(files[0]["content"])
        if len(content) > 10_000_000:
            raise WorkbenchError(f"{name}: {format_bytes(len(content))}; a topology has 10 MB at most")
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            ending = name.lower().rpartition(".")[2]  # of any length and of any characters
            path = Path(directory) / ("host.yaml" if ending in ("yaml", "yml") else "host.xml")
            path.write_bytes(content)
            if path.suffix == ".yaml":
                return self._use(Host.from_yaml(path))
            if ending == "xml":
                return self._use(Host.from_hwloc_xml(path))
            return self._use(Host.from_numactl(content.decode("utf-8", "replace")))

    def _mapping(self) -> dict[str, Any]:
        return self.host.model_dump(mode="json")

    def _rebuilt(self, mapping: dict[str, Any]) -> Edit:
        """The host from its changed mapping; bandwidths of nodes that are gone go too."""
        ids = {node["id"] for node in mapping["nodes"]}
        mapping["access"] = [a for a in mapping.get("access", ()) if a["initiator"] in ids and a["target"] in ids]
        name = str(mapping.get("name") or "host")
        mapping["name"] = name if name.endswith("(edited)") else f"{name} (edited)"
        return self._use(Host.from_mapping(mapping))

    def _position(self) -> int:
        return [node.id for node in self.host.nodes].index(self.node.value)

    def _change_node(self, _value: object) -> Edit:
        mapping = self._mapping()
        node = mapping["nodes"][self._position()]
        node.update(
            memory_bytes=parse_bytes(self.memory.value, "memory"),
            cpus=parse_cpus(self.cpus.value),
            kind=self.kind.value,
            movable=self.movable.value,
        )
        # What was read from the real machine no longer holds for another amount of memory.
        if node["memory_bytes"] != self.host.nodes[self._position()].memory_bytes:
            for stale in ("zones", "free_bytes"):
                if stale in node:
                    node[stale] = None
        return self._rebuilt(mapping)

    def _add(self) -> Edit:
        mapping, here = self._mapping(), self._position()
        new = dict(mapping["nodes"][here], id=max(node["id"] for node in mapping["nodes"]) + 1, cpus=[], zones=None)
        new["free_bytes"] = None
        mapping["nodes"].append({key: value for key, value in new.items() if key in mapping["nodes"][here]})
        rows = [list(row) for row in mapping["distances"]]
        far = max(20, *(value for row in rows for value in row))
        for row in rows:
            row.append(far)
        mapping["distances"] = [*rows, [far] * len(rows) + [10]]
        return self._rebuilt(mapping)

    def _remove(self) -> Edit:
        if len(self.host.nodes) == 1:
            raise WorkbenchError("nodes: a host has at least one node")
        mapping, here = self._mapping(), self._position()
        del mapping["nodes"][here]
        mapping["distances"] = [
            [value for column, value in enumerate(row) if column != here]
            for number, row in enumerate(mapping["distances"])
            if number != here
        ]
        return self._rebuilt(mapping)

    def _set_distances(self, values: list[list[object]]) -> Edit:
        size = len(self.host.nodes)
        if [len(line) for line in values] != [size] * size:
            raise WorkbenchError(f"distances: {size} rows of {size} numbers are needed")
        for row, line in zip(self.host.nodes, values, strict=True):
            for column, value in zip(self.host.nodes, line, strict=True):
                if not isinstance(value, int) or not 10 <= value <= 255:
                    raise WorkbenchError(
                        f"distances: node {row.id} to {column.id} is {value!r}; must be a whole number from 10 to 255"
                    )
        mapping = self._mapping()
        mapping["distances"] = values
        return self._rebuilt(mapping)

    def _show_node(self) -> None:
        if self.node.value is None:
            return
        with self.loading():
            node = self.host.nodes[self._position()]
            self.memory.value = exact_bytes(node.memory_bytes)
            self.cpus.value = format_list(node.cpus)
            self.kind.value = node.kind
            self.movable.value = node.movable

    def load(self, scenario: Scenario) -> None:
        host = scenario.host
        with self.loading():
            if host == self.host and self.node.value is not None:
                self._show_node()
                return
            self.host = host
            names = machine_names()
            known = host.name in names and Host.from_machine(host.name) == host
            self.machine.options = names if known else [EDITED, *names]
            self.machine.value = host.name if known else EDITED
            ids = [node.id for node in host.nodes]
            chosen = self.node.value if self.node.value in ids else ids[0]
            self.node.options = ids
            self.node.value = chosen
            self._show_node()
            with self.matrix.hold_sync():
                self.matrix.ids = ids
                self.matrix.values = [list(row) for row in host.distances]
            cpus = sum(len(node.cpus) for node in host.nodes)
            memory = format_bytes(sum(node.memory_bytes for node in host.nodes))
            source = f" Source: {html.escape(host.source)}." if host.source else ""
            assumed = "".join(f"<br>Assumed (?): {html.escape(line)}." for line in host.assumptions())
            self.note.value = (
                f'<div class="wb-note">{html.escape(host.name)}: {len(ids)} nodes, {memory}, {cpus} CPUs.{source}'
                f"{assumed}</div>"
            )


class GuestEditor(Editor):
    """Memory, vCPUs and their nodes, page size, design, policy interface."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self.memory = w.Combobox(
            options=SIZES, description="memory", continuous_update=False, style=LABEL, layout=wide()
        )
        self.page_size = w.ToggleButtons(options=["4 KiB", "2 MiB", "1 GiB"], description="page size", style=LABEL)
        self.page_size.style.button_width = "58px"
        self.design = w.Dropdown(
            options=[(design.title, name) for name, design in DESIGNS.items()],
            description="design",
            style=LABEL,
            layout=wide(),
        )
        self.fallback = w.Checkbox(description="4 KiB where the pool is empty", indent=False, layout=wide())
        self.fallback.tooltip = "Otherwise a fault that finds no huge page fails"
        self.interface = w.Dropdown(
            options=[
                ("none: mbind has no effect", "none"),
                ("create ioctl (v1, v2)", "create"),
                ("fbind (v3)", "fbind"),
                ("mbind (v4 on, merged)", "mbind"),
            ],
            description="set by",
            style=LABEL,
            layout=wide(),
        )
        self.interface.tooltip = "How a memory policy reaches the file: the four generations of the series"
        self.vm_type = w.Dropdown(
            options=[("ordinary", "none"), ("SW protected", "sw_protected"), ("SEV-SNP", "snp"), ("TDX", "tdx")],
            description="VM type",
            style=LABEL,
            layout=wide(),
        )
        self.kernel = w.Dropdown(
            options=[("oldest that has it", None), *((name, name) for name in profiles.KERNEL_PROFILES)],
            description="kernel",
            style=LABEL,
            layout=wide(),
        )
        self.kernel.tooltip = "Whose rules hold; if left out, the oldest kernel that has what the scenario asks for"
        self.mode = w.Dropdown(
            options=[("the kernel's first", None), ("out of place", "out-of-place"), ("in place", "in-place")],
            description="conversion",
            style=LABEL,
            layout=wide(),
        )
        self.mode.tooltip = "Out of place: attributes, a hole and a second backend (7.3). In place: pages stay (7.4)"
        self.vmm = w.Dropdown(
            options=[("any", None), *((name, name) for name in profiles.VMM_PROFILES)],
            description="VMM",
            style=LABEL,
            layout=wide(),
        )
        self.vmm.tooltip = "Whose calls are made: it decides which pages a policy reaches"
        self.vcpus = w.IntText(continuous_update=False, description="vCPUs", style=LABEL, layout=wide())
        self.vcpu_nodes = NodePicker(label="nodes that the vCPUs run on")
        self.widget = w.VBox(
            [
                self.memory,
                self.message("guest.memory"),
                self.page_size,
                self.message("guest.page_size"),
                self.design,
                self.message("guest.design"),
                self.fallback,
                self.message("guest.small_page_fallback"),
                self.vm_type,
                self.message("guest.vm_type"),
                self.vmm,
                self.message("guest.vmm_profile"),
                self.kernel,
                self.message("kernel_profile"),
                self.mode,
                self.message("guest.conversion"),
                _heading("vCPUs, in equal groups on"),
                self.vcpu_nodes,
                self.vcpus,
                self.message("guest.vcpus"),
                _heading("Memory policy"),
                self.interface,
                self.message("guest.policy_interface"),
            ]
        )
        self.on_change(self.memory, "guest.memory", _set_memory)
        self.on_change(self.page_size, "guest.page_size", lambda v: lambda m: edits.set_page_size(m, v))
        for widget, name in (
            (self.design, "design"),
            (self.interface, "policy_interface"),
            (self.vm_type, "vm_type"),
        ):
            self.on_change(widget, f"guest.{name}", functools.partial(set_value, f"guest.{name}"))
        self.on_change(self.vmm, "guest.vmm_profile", lambda v: set_value("guest.vmm_profile", v))
        self.on_change(self.kernel, "kernel_profile", lambda v: set_value("kernel_profile", v))
        self.on_change(self.mode, "guest.conversion", lambda v: set_value("guest.conversion.mode", v))
        self.on_change(self.fallback, "guest.small_page_fallback", lambda v: set_value("guest.small_page_fallback", v))
        self.on_change(self.vcpus, "guest.vcpus", lambda _: self._spread())
        self.on_change(self.vcpu_nodes, "guest.vcpus", lambda _: self._spread(), "selected")

    def _spread(self) -> Edit:
        chosen, count = list(self.vcpu_nodes.selected), int(self.vcpus.value)
        return lambda mapping: edits.spread_vcpus(mapping, chosen, count)

    def load(self, scenario: Scenario) -> None:
        guest, host = scenario.guest, scenario.host
        with self.loading():
            self.memory.value = exact_bytes(guest.memory)
            self.page_size.value = guest.page_size
            self.design.value = guest.design
            self.fallback.value = guest.small_page_fallback
            self.fallback.layout.display = "" if guest.page_size != "4 KiB" else "none"
            self.interface.value = guest.policy_interface
            self.vm_type.value = guest.vm_type
            self.vmm.value = guest.vmm_profile
            self.kernel.value = scenario.kernel_profile
            self.mode.value = guest.conversion.mode
            self.vcpus.value = len(guest.vcpus)
            with self.vcpu_nodes.hold_sync():
                self.vcpu_nodes.nodes = [
                    data for data, node in zip(_node_data(host), host.nodes, strict=True) if node.cpus
                ] or _node_data(host)
                used = {vcpu.node if vcpu.cpu is None else host.node_of_cpu(vcpu.cpu) for vcpu in guest.vcpus}
                self.vcpu_nodes.selected = sorted(node for node in used if node is not None)


def _set_memory(text: str) -> Edit:
    memory = parse_bytes(text.strip(), "memory")
    return lambda mapping: edits.set_memory(mapping, memory)


class PolicyEditor(Editor):
    """Policy ranges: mode, nodes, weights, bounds; the same ranges can be dragged on the address space."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self.selected = -1
        self.on_select: Callable[[int], None] = lambda index: None
        self.range = w.Dropdown(options=[("no policy", -1)], description="range", style=SHORT, layout=wide())
        self.add = w.Button(description="add", tooltip="Add a range; the last one wins", layout=w.Layout(width="auto"))
        self.remove = w.Button(description="remove", tooltip="Remove this range", layout=w.Layout(width="auto"))
        self.mode = w.Dropdown(options=MODES, description="mode", style=LABEL, layout=wide())
        self.nodes = NodePicker(label="nodes of the policy")
        self.automatic = w.Checkbox(value=True, description="weights the kernel would choose", indent=False)
        self.static = w.Checkbox(description="static nodes", indent=False, layout=w.Layout(width="48%"))
        self.relative = w.Checkbox(description="relative nodes", indent=False, layout=w.Layout(width="48%"))
        self.start = w.Text(description="from", continuous_update=False, style=LABEL, layout=wide())
        self.end = w.Text(description="to", continuous_update=False, style=LABEL, layout=wide())
        self.home = w.Dropdown(options=[("none", -1)], description="home node", style=LABEL, layout=wide())
        self.note = w.HTML()
        self.details = w.VBox(
            [
                self.mode,
                _heading("Nodes"),
                self.nodes,
                self.message("guest.policies"),
                self.automatic,
                self.message("boot.weights"),
                w.HBox([self.static, self.relative]),
                self.home,
                _heading("Range, in bytes of the guest"),
                self.start,
                self.end,
                self.message("guest.policies.range"),
            ]
        )
        # The range has a line of its own: beside the buttons its name would be cut.
        self.widget = w.VBox([self.range, w.HBox([self.add, self.remove]), self.details, self.note])
        self.scenario = controller.scenario
        self.range.observe(self._chosen, "value")
        self.add.on_click(lambda _: self.add_range())
        self.remove.on_click(lambda _: self.try_edit("guest.policies", self._remove))
        self.on_change(self.mode, "guest.policies", lambda _: self._change())
        self.on_change(self.nodes, "guest.policies", lambda _: self._change(), "selected")
        self.on_change(self.static, "guest.policies", lambda _: self._change())
        self.on_change(self.relative, "guest.policies", lambda _: self._change())
        self.on_change(self.home, "guest.policies", lambda _: self._change())
        for widget in (self.start, self.end):
            self.on_change(widget, "guest.policies.range", lambda _: self._bounds())
        self.on_change(self.automatic, "boot.weights", lambda automatic: self._weights(automatic))
        # Moving a slider is the decision against the kernel's own weights.
        self.on_change(self.nodes, "boot.weights", lambda _: self._weights(False), "weights")

    def _chosen(self, change: Mapping[str, Any]) -> None:
        if not self._loading and change["new"] is not None:
            self.select(int(change["new"]))

    def select(self, index: int) -> None:
        """Show a range."""
        self.selected = index
        self.load(self.controller.scenario)
        self.on_select(self.selected)

    def add_range(self, start: int | None = None, end: int | None = None) -> None:
        """Add a range for the whole guest or the given bytes, and select it."""
        host = self.scenario.host
        policy = edits.whole_policy([node.id for node in host.nodes if node.memory_bytes])
        count = len(self.scenario.guest.policies)

        def add(mapping: dict[str, Any]) -> None:
            edits.add_policy(mapping, policy, start, end)

        if self.try_edit("guest.policies", lambda: add):
            self.select(count)

    def move_range(self, index: int, start: int, end: int) -> None:
        """Give a range other bounds."""
        self.try_edit("guest.policies.range", lambda: lambda mapping: edits.move_policy(mapping, index, start, end))

    def _remove(self) -> Edit:
        index = self.selected

        def change(mapping: dict[str, Any]) -> None:
            policies = mapping.get("guest", {}).get("policies", [])
            if not 0 <= index < len(policies):
                raise WorkbenchError("policies: there is no range to remove")
            del policies[index]

        return change

    def _change(self) -> Edit:
        index, mode, chosen = self.selected, self.mode.value, list(self.nodes.selected)
        flags = [name for name, box in (("static", self.static), ("relative", self.relative)) if box.value]
        home = None if self.home.value == -1 else self.home.value
        if not chosen and mode in ("default", "local", "preferred_many", "bind", "interleave", "weighted_interleave"):
            if mode not in ("default", "local"):
                raise WorkbenchError(f"nodes: empty; {mode} needs at least one node")

        def change(mapping: dict[str, Any]) -> None:
            policies = mapping.setdefault("guest", {}).setdefault("policies", [])
            if not 0 <= index < len(policies):
                raise WorkbenchError("policies: add a range first")
            policy = policies[index]
            policy.update(edits.whole_policy(chosen, mode))
            policy["mode_flags"] = [] if mode in ("default", "local") else flags
            policy["home_node"] = home

        return change

    def _bounds(self) -> Edit:
        index = self.selected
        start, end = parse_bytes(self.start.value.strip(), "from"), parse_bytes(self.end.value.strip(), "to")
        return lambda mapping: edits.move_policy(mapping, index, start, end)

    def _weights(self, automatic: bool) -> Edit:
        if automatic:
            return set_value("boot.weights", None)
        weights = {int(node): int(weight) for node, weight in self.nodes.weights.items()}
        for node, weight in weights.items():
            if not 1 <= weight <= 255:
                raise WorkbenchError(f"weights: node {node} has {weight}; weights are 1 to 255")
        return set_value("boot.weights", weights)

    def load(self, scenario: Scenario) -> None:
        self.scenario = scenario
        policies, host = scenario.guest.policies, scenario.host
        with self.loading():
            self.selected = min(max(self.selected, 0), len(policies) - 1)
            options = [
                (f"{i + 1}: {p.mode} {p.nodes}".replace("_", " ").strip(), i) for i, p in enumerate(policies)
            ] or [("no policy", -1)]
            with self.range.hold_sync():
                self.range.options = options
                self.range.value = self.selected
                self.range.tooltip = next(name for name, index in options if index == self.selected)
            self.remove.disabled = not policies
            self.details.layout.display = "" if policies else "none"
            self.note.value = "" if policies else f'<div class="wb-note">{_without_policies(scenario)}</div>'
            if not policies:
                return
            policy = policies[self.selected]
            weights = dict(scenario.boot.weights or automatic_weights(host))
            self.automatic.value = scenario.boot.weights is None
            self.mode.value = policy.mode if policy.mode in MODES.values() else None
            with self.nodes.hold_sync():
                self.nodes.nodes = _node_data(host)
                self.nodes.disabled = policy.mode in ("default", "local")
                self.nodes.largest = max(32, *weights.values())
                self.nodes.weights = {str(node.id): weights.get(node.id, 1) for node in host.nodes}
                self.nodes.selected = edits.policy_nodes({"nodes": policy.nodes})
                self.nodes.weighted = policy.mode == "weighted_interleave"
            self.automatic.layout.display = "" if policy.mode == "weighted_interleave" else "none"
            self.static.value = "static" in policy.mode_flags
            self.relative.value = "relative" in policy.mode_flags
            self.home.options = [("none", -1), *((str(node.id), node.id) for node in host.nodes)]
            self.home.value = -1 if policy.home_node is None else policy.home_node
            self.home.layout.display = "" if policy.mode in ("bind", "preferred_many") else "none"
            start, end = edits.policy_range(policy.model_dump(), scenario.guest.memory)
            self.start.value, self.end.value = exact_bytes(start), exact_bytes(end)


def automatic_weights(host: Host) -> dict[int, int]:
    """The interleave weights that the kernel makes of the host's bandwidths; 1 everywhere where it knows none."""
    if not host.access:
        return {node.id: 1 for node in host.nodes}
    from workbench.engine.booted_host import BootedHost

    booted = BootedHost(Scenario(name="weights", host=host))
    return {int(node): int(weight) for node, weight in zip(booted.node_ids, booted.boot_weights, strict=True)}


class WorkloadEditor(Editor):
    """Who touches memory first, other memory use, conversions and pins; or the operations as YAML."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self.touch = w.Dropdown(
            options=[
                ("vCPUs touch their share first", "first_touch"),
                ("manager takes all (fallocate)", "prefault"),
                ("nothing is touched", "nothing"),
                ("operations as written below", "written"),
            ],
            description="workload",
            style=LABEL,
            layout=wide(),
        )
        self.by = w.Dropdown(
            options=[("guest (KVM fault)", "guest"), ("host mapping", "host"), ("KVM prefault", "prefault")],
            description="faults by",
            style=LABEL,
            layout=wide(),
        )
        self.order = w.Dropdown(
            options=["sequential", "reverse", "strided", "random"], description="order", style=LABEL, layout=wide()
        )
        self.stride = w.IntText(continuous_update=False, description="stride, pages", style=LABEL, layout=wide())
        self.turn = w.IntText(continuous_update=False, description="turn, pages", style=LABEL, layout=wide())
        self.turn.tooltip = "0: each vCPU finishes its share; otherwise vCPUs take turns of so many pages"
        self.shared = w.Checkbox(description="turns walk one range together", indent=False)
        self.hog_node = w.Dropdown(options=[("none", -1)], description="other use on", style=LABEL, layout=wide())
        self.hog_free = w.Text(description="leaves free", continuous_update=False, style=LABEL, layout=wide())
        self.percent = w.FloatSlider(
            min=0, max=100, step=0.5, description="converted, %", readout_format=".1f", style=LABEL, layout=wide()
        )
        self.piece = w.Combobox(
            options=["4 KiB", "64 KiB", "2 MiB", "64 MiB", "1 GiB"],
            description="in pieces of",
            continuous_update=False,
            style=LABEL,
            layout=wide(),
        )
        self.back = w.Checkbox(value=True, description="and back to private", indent=False)
        # No bounds here: a number that is not allowed is refused beside its field, not changed to one that is.
        self.pins = w.IntText(continuous_update=False, description="pinned pieces", style=LABEL, layout=wide())
        self.seed = w.IntText(continuous_update=False, description="seed", style=LABEL, layout=wide())
        self.text = w.Textarea(continuous_update=False, layout=w.Layout(width="98%", height="180px"))
        self.text.add_class("wb-code")
        self.locked = w.HTML()
        self.text.tooltip = "Operations as YAML"
        self.simple = w.VBox(
            [
                self.by,
                self.order,
                self.stride,
                self.turn,
                self.shared,
            ]
        )
        self.extra = w.VBox(
            [
                _heading("Other memory use"),
                self.hog_node,
                self.hog_free,
                self.message("hog"),
                _heading("Conversions private to shared"),
                self.percent,
                self.piece,
                self.back,
                self.pins,
                self.message("conversions"),
            ]
        )
        self.widget = w.VBox(
            [
                self.touch,
                self.message("operations"),
                self.simple,
                self.extra,
                self.seed,
                self.message("seed"),
                _heading("Operations (YAML)"),
                self.locked,
                self.text,
                self.message("operations.text"),
            ]
        )
        self.workload = edits.Workload()
        for widget, names in ((self.by, "by"), (self.order, "order"), (self.turn, "turn"), (self.stride, "stride")):
            self.on_change(widget, "operations", functools.partial(self._with_one, names))
        self.on_change(self.shared, "operations", lambda v: self._with(shared=v))
        self.on_change(self.touch, "operations", self._touch)
        self.on_change(self.hog_node, "hog", lambda _: self._hog())
        self.on_change(self.hog_free, "hog", lambda _: self._hog())
        # Shown at once: a share that needs larger pieces is explained beside the field that sets them.
        self.percent.observe(lambda change: self._show_conversion_fields(change["new"]), "value")
        for widget in (self.percent, self.back, self.pins, self.piece):
            self.on_change(widget, "conversions", lambda _: self._convert())
        self.on_change(self.seed, "seed", lambda v: lambda mapping: edits.set_seed(mapping, int(v)))
        self.on_change(self.text, "operations.text", self._written)

    def _with(self, **changes: Any) -> Edit:
        workload = replace(self.workload, **changes)
        return lambda mapping: edits.set_workload(mapping, workload)

    def _with_one(self, name: str, value: Any) -> Edit:
        return self._with(**{name: value})

    def _touch(self, value: str) -> Edit:
        if value == "written":
            return lambda mapping: None
        return self._with(touch=value)

    def _hog(self) -> Edit:
        if self.hog_node.value == -1:
            return self._with(hogs=())
        return self._with(hogs=((int(self.hog_node.value), parse_bytes(self.hog_free.value or "0", "leaves free")),))

    def _convert(self) -> Edit:
        piece = parse_bytes(self.piece.value or "2 MiB", "pieces")
        if piece < PAGE_SIZE or piece % PAGE_SIZE:
            raise WorkbenchError(f"conversions: pieces of {format_bytes(piece)}; must be a multiple of 4 KiB")
        if not 0 <= self.pins.value <= edits.MAX_CONVERSIONS:
            raise WorkbenchError(f"conversions: {self.pins.value} pinned pieces; must be 0 to {edits.MAX_CONVERSIONS}")
        return self._with(
            convert_percent=float(self.percent.value),
            convert_size=piece,
            convert_back=self.back.value,
            pinned=int(self.pins.value),
        )

    def _show_conversion_fields(self, percent: float) -> None:
        for widget in (self.piece, self.back, self.pins):
            widget.layout.display = "" if percent else "none"

    def _written(self, text: str) -> Edit:
        given = safe_yaml.load(f"operations:\n{text}\n", "operations") if text.strip() else {"operations": []}
        if other := [str(key) for key in given if key != "operations"]:
            raise WorkbenchError(
                f"operations: {other[0][:60]!r} is no entry of the list; other fields have no place here"
            )
        operations = given["operations"]
        if not isinstance(operations, list):
            raise WorkbenchError("operations: must be a list, each entry with a key `op`")
        return set_value("operations", operations)

    def load(self, scenario: Scenario) -> None:
        mapping = scenario.to_mapping()
        workload = edits.workload_of(mapping)
        with self.loading():
            self.seed.value = min(scenario.seed, 2**53)
            operations = mapping.get("operations", [])
            self.text.value = safe_yaml.dump(operations[:MOST_WRITTEN], width=60) if operations else ""
            self.text.disabled = len(operations) > MOST_WRITTEN
            self.locked.value = (
                f'<div class="wb-note" role="note">{len(operations):,} operations: the first {MOST_WRITTEN} are shown '
                "and cannot be edited here. Take all of them from Share, as YAML, and edit that file.</div>"
                if len(operations) > MOST_WRITTEN
                else ""
            )
            self.touch.value = workload.touch if workload else "written"
            self.simple.layout.display = "" if workload and workload.touch == "first_touch" else "none"
            self.extra.layout.display = "" if workload else "none"
            self.hog_node.options = [("none", -1), *((f"node {n.id}", n.id) for n in scenario.host.nodes)]
            self.workload = workload or edits.Workload()
            shown = self.workload
            self.by.value, self.order.value, self.stride.value = shown.by, shown.order, shown.stride
            self.turn.value, self.shared.value = shown.turn, shown.shared
            self.stride.layout.display = "" if shown.order == "strided" else "none"
            self.shared.layout.display = "" if shown.turn else "none"
            self.hog_node.value = shown.hogs[0][0] if shown.hogs else -1
            self.hog_free.value = exact_bytes(shown.hogs[0][1]) if shown.hogs else "1 GiB"
            self.hog_free.layout.display = "" if shown.hogs else "none"
            self.percent.value, self.piece.value = shown.convert_percent, exact_bytes(shown.convert_size)
            self.back.value, self.pins.value = shown.convert_back, shown.pinned
            self._show_conversion_fields(shown.convert_percent)
