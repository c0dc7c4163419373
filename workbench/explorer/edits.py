"""Edits that touch several fields of a scenario's mapping at once, and the workload as a few parameters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench import safe_yaml
from workbench.design import DESIGNS, FILEMAP, HUGETLB
from workbench.errors import WorkbenchError
from workbench.policy import format_nodes, nodemask, nodes_of, parse_nodes
from workbench.scenario import Scenario
from workbench.topology.host import Host, machine_names
from workbench.units import PAGE_SIZE, exact_bytes, format_bytes, parse_bytes

Mapping = dict[str, Any]
MAX_CONVERSIONS = 512
"""Conversions that the workload editor makes at most; a scenario file can have any number."""
_KEYS_WITH_NODES = ("nodes", "mems", "initiators")


def use_host(mapping: Mapping, host: Host) -> None:
    """Put a guest on another host: nodemasks, vCPUs and hogs that name missing nodes move to nodes that are there."""
    mapping["host"] = host.model_dump(mode="json", exclude_defaults=True)
    ids = [node.id for node in host.nodes]
    with_memory = [node.id for node in host.nodes if node.memory_bytes] or ids
    with_cpus = [node.id for node in host.nodes if node.cpus] or ids
    guest = mapping.setdefault("guest", {})

    def nodes_here(text: object) -> str:
        here = parse_nodes(text) & nodemask(ids)  # type: ignore[arg-type]
        return format_nodes(here or nodemask(with_memory))

    for number, vcpu in enumerate(guest.get("vcpus", ())):
        if vcpu.get("cpu") is not None or vcpu.get("node") not in with_cpus:
            guest["vcpus"][number] = {"node": with_cpus[number % len(with_cpus)]}
    if not guest.get("vcpus"):
        guest["vcpus"] = [{"node": with_cpus[0]}]
    for holder in (*guest.get("policies", ()), *mapping.get("operations", ())):
        for key in _KEYS_WITH_NODES:
            if holder.get(key):
                holder[key] = nodes_here(holder[key])
        if holder.get("home_node") is not None and holder["home_node"] not in ids:
            holder["home_node"] = with_memory[0]
        if isinstance(holder.get("weights"), dict):
            holder["weights"] = {int(k): v for k, v in holder["weights"].items() if int(k) in ids} or None
    mapping["operations"] = [
        operation
        for operation in mapping.get("operations", ())
        if operation["op"] not in ("hog", "move_pages") or operation["node"] in ids
    ]
    for task in mapping.get("tasks", ()):
        if task.get("cpu") is not None or task.get("node") not in (None, *ids):
            task.pop("cpu", None)
            task["node"] = with_cpus[0]
    boot = mapping.get("boot", {})
    for key in ("weights", "hugetlb_pages"):
        if boot.get(key):
            boot[key] = {int(k): v for k, v in boot[key].items() if int(k) in ids} or None


def set_page_size(mapping: Mapping, page_size: str) -> None:
    """Huge pages need a design that has them, and whole huge pages of memory."""
    guest = mapping.setdefault("guest", {})
    guest["page_size"] = page_size
    if page_size not in DESIGNS[guest.get("design", FILEMAP.name)].page_sizes:
        guest["design"] = HUGETLB.name
    if page_size == "4 KiB":
        guest.pop("small_page_fallback", None)


def spread_vcpus(mapping: Mapping, nodes: Sequence[int], count: int) -> None:
    """``count`` vCPUs, dealt to nodes in consecutive groups as a hypervisor pins them."""
    if not nodes:
        raise WorkbenchError("guest.vcpus: choose at least one node for the vCPUs")
    if not 1 <= count <= 1024:
        raise WorkbenchError(f"guest.vcpus: {count} vCPUs; must be 1 to 1024")
    mapping.setdefault("guest", {})["vcpus"] = [{"node": nodes[i * len(nodes) // count]} for i in range(count)]


# -------------------------------------------------------------------------------------------------------- policies


def whole_policy(nodes: Sequence[int], mode: str = "interleave") -> Mapping:
    """A policy for the whole guest."""
    return {"mode": mode, "nodes": format_nodes(nodemask(nodes)) if mode not in ("default", "local") else ""}


def policy_range(policy: Mapping, memory: int) -> tuple[int, int]:
    """Bytes [start, end) that a policy covers."""
    start = parse_bytes(policy.get("offset", 0))
    length = policy.get("length")
    return start, memory if length is None else min(memory, start + parse_bytes(length))


def move_policy(mapping: Mapping, index: int, start: int, end: int) -> None:
    """Give a policy other bounds; they are rounded to whole folios of the guest."""
    guest = mapping["guest"]
    policies = guest.setdefault("policies", [])
    if not 0 <= index < len(policies):
        raise WorkbenchError(f"guest.policies: there is no range {index}")
    memory = parse_bytes(guest.get("memory", 1 << 30))
    size = parse_bytes(guest.get("page_size", "4 KiB"))
    if not 0 <= start < end <= memory:
        raise WorkbenchError(
            f"guest.policies.{index}: {format_bytes(start)} to {format_bytes(end)}; "
            f"must be a range within 0 to {format_bytes(memory)}"
        )
    start = start // size * size
    end = min(memory, max(start + size, -(-end // size) * size))
    policies[index]["offset"] = start
    if end >= memory:
        policies[index].pop("length", None)
    else:
        policies[index]["length"] = end - start


def add_policy(mapping: Mapping, policy: Mapping, start: int | None = None, end: int | None = None) -> int:
    """Append a policy range and return its number. The last range wins where ranges overlap."""
    policies = mapping.setdefault("guest", {}).setdefault("policies", [])
    policies.append(dict(policy))
    if start is not None and end is not None:
        move_policy(mapping, len(policies) - 1, start, end)
    return len(policies) - 1


# -------------------------------------------------------------------------------------------------------- workload


@dataclass(frozen=True)
class Workload:
    """The workload editor's parameters; :meth:`operations` makes a scenario's operations of them."""

    touch: str = "first_touch"  # or "prefault", "nothing"
    by: str = "guest"
    order: str = "sequential"
    stride: int = 1
    turn: int = 0
    shared: bool = False
    hogs: tuple[tuple[int, int], ...] = field(default=())  # (node id, bytes left free)
    convert_percent: float = 0.0
    convert_size: int = 2 << 20
    convert_back: bool = True
    pinned: int = 0

    def operations(self, memory: int, seed: int) -> list[Mapping]:
        """Operations in order: hogs, first touch, then conversions at places drawn from ``seed``."""
        operations: list[Mapping] = [{"op": "hog", "node": node, "leave_free": free} for node, free in self.hogs]
        places = self._places(memory, seed)
        if places:
            operations.append({"op": "convert", "to": "private"})  # a guest that will share starts all private
        if self.touch == "prefault":
            operations.append({"op": "prefault"})
        elif self.touch == "first_touch":
            touch: Mapping = {"op": "first_touch"}
            for key, value, default in (
                ("by", self.by, "guest"),
                ("order", self.order, "sequential"),
                ("stride", self.stride, 1),
                ("turn", self.turn, 0),
                ("shared", self.shared, False),
            ):
                if value != default:
                    touch[key] = value
            operations.append(touch)
        else:
            operations.append({"op": "mmap"})  # no operations at all would be a first touch
        operations += [_on(place, self.convert_size, "convert", to="shared") for place in places]
        # A pinned page makes the conversion of its range back to private fail, with its offset.
        operations += [_on(place, PAGE_SIZE, "pin", kind="long_term") for place in places[: self.pinned]]
        if self.convert_back:
            operations += [_on(place, self.convert_size, "convert", to="private") for place in places]
        return operations

    def _places(self, memory: int, seed: int) -> list[int]:
        if not self.convert_percent:
            return []
        slots = memory // self.convert_size
        wanted = round(slots * self.convert_percent / 100)
        if wanted > MAX_CONVERSIONS:
            raise WorkbenchError(
                f"conversions: {self.convert_percent:g} % of {format_bytes(memory)} in pieces of "
                f"{format_bytes(self.convert_size)} are {wanted} conversions; at most {MAX_CONVERSIONS}: "
                f"choose larger pieces or a smaller share"
            )
        if not wanted:
            raise WorkbenchError(
                f"conversions: {self.convert_percent:g} % of {format_bytes(memory)} is less than one piece of "
                f"{format_bytes(self.convert_size)}: choose smaller pieces or a larger share"
            )
        return sorted(place * self.convert_size for place in random.Random(seed).sample(range(slots), wanted))


def _on(offset: int, length: int, op: str, **more: object) -> Mapping:
    return {"op": op, "offset": offset, "length": length, **more}


def workload_of(mapping: Mapping) -> Workload | None:
    """The parameters behind a scenario's operations, or None if the workload editor could not have made them."""
    operations = mapping.get("operations", [])
    memory = parse_bytes(mapping.get("guest", {}).get("memory", 1 << 30))
    seed = int(mapping.get("seed", 0))
    hogs: list[tuple[int, int]] = []
    rest = list(operations)
    while rest and rest[0]["op"] == "hog":
        hog = rest.pop(0)
        if hog.get("leave_free") is None or len([key for key, value in hog.items() if value is not None]) != 3:
            return None
        hogs.append((int(hog["node"]), parse_bytes(hog["leave_free"])))
    if rest and rest[0]["op"] == "convert":
        rest.pop(0)
    parameters: dict[str, Any] = {"touch": "nothing" if operations else "first_touch", "hogs": tuple(hogs)}
    if rest and rest[0]["op"] in ("first_touch", "prefault"):
        touch = {key: value for key, value in rest.pop(0).items() if value is not None}
        parameters["touch"] = touch.pop("op")
        parameters.update(touch)
    elif rest and rest[0]["op"] == "mmap":
        rest.pop(0)
    converted = [operation for operation in rest if operation["op"] == "convert" and operation.get("to") == "shared"]
    if converted:
        size = parse_bytes(converted[0].get("length") or memory)
        slots = max(1, memory // max(1, size))
        parameters.update(
            convert_percent=round(100 * len(converted) / slots, 6),
            convert_size=size,
            convert_back=any(operation["op"] == "convert" and operation.get("to") == "private" for operation in rest),
            pinned=sum(operation["op"] == "pin" for operation in rest),
        )
    try:
        workload = Workload(**parameters)
        made = workload.operations(memory, seed)
    except (TypeError, WorkbenchError):
        return None
    if not operations:
        return workload
    return (
        workload
        if [_plain(operation) for operation in made] == [_plain(operation) for operation in operations]
        else None
    )


def _plain(operation: Mapping) -> Mapping:
    sizes = ("offset", "length", "leave_free")
    plain = {key: value for key, value in operation.items() if value is not None}
    plain.update({key: parse_bytes(plain[key]) for key in sizes if key in plain})
    defaults = (("offset", 0), ("kind", "long_term"))
    return {key: value for key, value in plain.items() if (key, value) not in defaults}


def set_workload(mapping: Mapping, workload: Workload) -> None:
    """Replace the operations of a scenario."""
    memory = parse_bytes(mapping.get("guest", {}).get("memory", 1 << 30))
    mapping["operations"] = workload.operations(memory, int(mapping.get("seed", 0)))


def policy_nodes(policy: Mapping) -> list[int]:
    """Node ids of a policy."""
    return nodes_of(parse_nodes(policy.get("nodes", "")))


def set_memory(mapping: Mapping, memory: int) -> None:
    """Another size of the guest: policy ranges are cut to it, and generated conversions are drawn anew."""
    workload = workload_of(mapping)
    guest = mapping.setdefault("guest", {})
    guest["memory"] = memory
    kept = []
    for policy in guest.get("policies", ()):
        start, end = policy_range(policy, memory)
        if start < end:
            if policy.get("length") is not None and end >= memory:
                policy.pop("length")
            kept.append(policy)
    if kept or guest.get("policies"):
        guest["policies"] = kept
    if workload is not None and mapping.get("operations"):
        set_workload(mapping, workload)


def set_seed(mapping: Mapping, seed: int) -> None:
    """Another seed; generated conversions are drawn anew from it."""
    workload = workload_of(mapping)
    mapping["seed"] = seed
    if workload is not None and mapping.get("operations"):
        set_workload(mapping, workload)


SIZES = ("memory", "offset", "length", "leave_free", "memory_bytes", "free_bytes")
"""Fields of a scenario that hold bytes."""


def with_units(part: Any) -> None:
    """Write the sizes of a scenario's mapping as people do, in place: ``64 GiB`` instead of 68719476736; exact."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, (dict, list)):
            with_units(value)
        elif key in SIZES and isinstance(value, int) and value >= PAGE_SIZE:
            part[key] = exact_bytes(value)


def short_yaml(scenario: Scenario) -> str:
    """The scenario as YAML, with the machine's name instead of its whole description where it is one we have."""
    mapping = scenario.to_mapping()
    host = scenario.host
    if host.name in machine_names() and Host.from_machine(host.name) == host:
        mapping["host"] = host.name
    with_units(mapping)
    return safe_yaml.dump(mapping, allow_unicode=True, width=100)
