"""What stands before the VMM on its command line and decides where its threads run and allocate.

``numactl`` (numactl.c, libnuma.c: numa_parse_nodestring), ``taskset``, and wrappers that change nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workbench.bitmap_lists import parse_list, parse_mask
from workbench.errors import WorkbenchError, at_line
from workbench.vmconfig.machine import Mode, NodePolicy, VirtualMachine
from workbench.vmconfig.words import line_of

_POLICIES: dict[str, Mode] = {
    "--membind": "bind", "-m": "bind", "--interleave": "interleave", "-i": "interleave", "--preferred": "preferred",
    "-p": "preferred", "--preferred-many": "preferred_many", "-P": "preferred_many",
    "--weighted-interleave": "weighted_interleave", "-w": "weighted_interleave",
}  # fmt: skip
_NODES = ("--cpunodebind", "-N", "-c")
_CPUS = ("--physcpubind", "-C")
_LOCAL = ("--localalloc", "-l", "--local")
_NOTHING = ("--balancing", "-b", "--all", "-a", "--strict", "-t", "--")
_WITH_VALUE = {
    "sudo": ("-u", "-g", "-p", "-C", "-h", "-T", "-D", "-R", "-r", "-t"), "doas": ("-u", "-C"), "env": ("-u", "-C", "-S"),
    "nice": ("-n",), "ionice": ("-c", "-n"), "stdbuf": ("-i", "-o", "-e"), "chrt": ("-T", "-P", "-D"), "time": ("-f", "-o"),
}  # fmt: skip
WRAPPERS = ("sudo", "env", "exec", "nohup", "nice", "setsid", "time", "chrt", "ionice", "stdbuf", "doas")


def node_set(text: str, online: Iterable[int], what: str) -> tuple[int, ...]:
    """``0-1,3``, ``all``, ``!0`` (all but) or ``+0`` (counted within what is allowed, here all nodes)."""
    nodes = sorted(online)
    plain = text.strip()
    if plain == "all":
        return tuple(nodes)
    inverted, relative = plain.startswith("!"), plain.startswith("+")
    try:
        ids = parse_list(plain.lstrip("!+"))
    except ValueError as error:
        raise WorkbenchError(f"{what}: {error}") from None
    if not ids:
        raise WorkbenchError(f"{what}: names no node; nodes {nodes} are on the host")
    if relative:
        if max(ids) >= len(nodes):
            raise WorkbenchError(f"{what}: the host has {len(nodes)} nodes, counted from 0")
        ids = tuple(nodes[position] for position in ids)
    unknown = sorted(set(ids) - set(nodes))
    if unknown:
        raise WorkbenchError(f"{what}: node {unknown[0]} is not on this host, which has nodes {nodes}")
    return tuple(node for node in nodes if node not in ids) if inverted else tuple(sorted(set(ids)))


def read_around(words: Sequence[str], vm: VirtualMachine, online: Iterable[int]) -> None:
    """Take what stands before the VMM into ``vm``; what is not understood is listed."""
    position = 0
    while position < len(words):
        word = words[position]
        tool = word.rpartition("/")[2]
        position += 1
        if tool == "numactl":
            with at_line(line_of(word)):
                position = _numactl(words, position, vm, online)
        elif tool == "taskset":
            vm.lines["cpus"] = line_of(word)
            with at_line(line_of(word)):
                position = _taskset(words, position, vm)
        elif tool in WRAPPERS or _is_assignment(word):
            while position < len(words) and (words[position].startswith("-") or _is_assignment(words[position])):
                option = words[position]
                position += 1 + (option in _WITH_VALUE.get(tool, ()))
            if tool == "chrt" and position < len(words) and words[position].isdecimal():
                position += 1
        else:
            vm.unknown.append(word)


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "a").isalnum() and not name[:1].isdigit()


def _numactl(words: Sequence[str], position: int, vm: VirtualMachine, online: Iterable[int]) -> int:
    nodes = sorted(online)
    while position < len(words) and words[position].startswith("-"):
        option, equals, value = words[position].partition("=")
        if not equals and not option.startswith("--") and len(option) > 2:  # -m0
            option, value, equals = option[:2], option[2:], "="
        position += 1
        takes = option in _POLICIES or option in _NODES or option in _CPUS
        if takes and not equals:
            if position >= len(words):
                raise WorkbenchError(f"numactl: {option} needs a value")
            value = words[position]
            position += 1
        setting = f"numactl {option}{'=' if option.startswith('--') else ' '}{value}"
        if option in _POLICIES:
            _set_policy(vm, NodePolicy(setting, _POLICIES[option], node_set(value, nodes, setting)))
        elif option in _NODES:
            vm.cpu_nodes = node_set(value, nodes, setting)
        elif option in _CPUS:
            vm.cpus = _cpu_list(value.lstrip("+"), setting)
            vm.lines["cpus"] = line_of(words[position - 1])
        elif option in _LOCAL:
            _set_policy(vm, NodePolicy(f"numactl {option}", "local"))
        elif option not in _NOTHING:
            vm.unknown.append(f"numactl {option}")
    return position


def _set_policy(vm: VirtualMachine, policy: NodePolicy) -> None:
    if vm.task_policy is not None:
        raise WorkbenchError(f"{policy.setting}: {vm.task_policy.setting} is there already; numactl takes one policy")
    if policy.mode == "preferred" and len(policy.nodes) != 1:
        raise WorkbenchError(f"{policy.setting}: one node is expected; --preferred-many takes several")
    vm.task_policy = policy


def _taskset(words: Sequence[str], position: int, vm: VirtualMachine) -> int:
    as_list = False
    while position < len(words) and words[position].startswith("-"):
        as_list |= "c" in words[position]
        position += 1
    if position < len(words):
        setting = f"taskset {'-c ' * as_list}{words[position]}"
        try:
            vm.cpus = parse_list(words[position]) if as_list else parse_mask(words[position])
        except ValueError as error:
            raise WorkbenchError(f"{setting[:60]}: {error}") from None
        position += 1
    return position


def _cpu_list(text: str, what: str) -> tuple[int, ...]:
    if text == "all":
        return ()
    try:
        return parse_list(text)
    except ValueError as error:
        raise WorkbenchError(f"{what}: {error}") from None
