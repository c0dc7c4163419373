"""Operations made from a few parameters: who touches guest memory first, in which order, and what a guest converts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict

from workbench import scenario as sc
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.limits import TRACKED_FOLIOS
from workbench.tracking.generations import generation
from workbench.units import PAGE_ORDERS, PAGE_SIZE

Int64s = npt.NDArray[np.int64]
_CHUNK = 1 << 22  # folios of one chunk


def expand(scenario: sc.Scenario) -> list[sc.Operation]:
    """The operations that are really carried out, in order.

    A scenario that uses the guest's file and never creates it gets ``create`` and the guest's policies in front, and one without
    operations gets a first touch by the vCPUs. ``first_touch`` without turns becomes one fault for each vCPU;
    ``prefault`` becomes fallocate, ``convert_stream`` the conversions that a guest makes.
    """
    operations: list[sc.Operation] = list(scenario.operations)
    made = {operation.file for operation in operations if isinstance(operation, (sc.Create, sc.Memfd))}
    used = {getattr(operation, "file", None) for operation in operations}
    if not operations or ("guest" in used and "guest" not in made):
        operations = _set_up(scenario) + (operations or [sc.FirstTouch()])
    expanded: list[sc.Operation] = []
    for operation in operations:
        if isinstance(operation, sc.FirstTouch) and not operation.turn:
            expanded.extend(_shares(scenario, operation))
        elif isinstance(operation, sc.Prefault):
            expanded.append(sc.Fallocate(task=operation.task, file=operation.file))
        elif isinstance(operation, sc.ConvertStream):
            expanded.extend(_converted(scenario, operation))
        else:
            expanded.append(operation)
    return expanded


class ConvertMany(sc.Operation):
    """A part of a stream: rows int64 (n, 6) as :mod:`workbench.kernels.folios.run` has them, one event all together."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    op: Literal["convert_stream"] = "convert_stream"
    file: str = "guest"
    rows: Int64s


MOST_EVENTS = 4096
"""A longer stream of conversions out of place is about :data:`EVENTS` events, if the scenario does not say otherwise."""
EVENTS = 250
MOST_IN_PLACE = 100_000
"""A longer stream of conversions in place is as many events, too; what cannot run at once is refused above it."""


def _converted(scenario: sc.Scenario, operation: sc.ConvertStream) -> list[sc.Operation]:
    """The conversions of a stream, each an operation of its own, or many together."""
    in_place = scenario.conversion_mode == "in-place"
    alone = in_place and _one_by_one(scenario, operation)
    if in_place and operation.stream == "boot":  # before the stream is made
        _check_boot(scenario, operation, alone or "")
    stream = _stream(scenario, operation)
    single = len(stream) <= (MOST_IN_PLACE if in_place else MOST_EVENTS)
    every = operation.every or (1 if single else -(-len(stream) // EVENTS))
    if alone or (in_place and every == 1):
        _check_in_place(operation, len(stream), alone or "convert_stream.every is 1")
    if every == 1:
        return gen.operations(stream, operation.file)
    return [
        ConvertMany(task=operation.task, file=operation.file, rows=stream[low : low + every])
        for low in range(0, len(stream), every)
    ]


def _one_by_one(scenario: sc.Scenario, operation: sc.ConvertStream) -> str:
    """Why conversions in place cannot run many at once (:mod:`workbench.engine.bulk_in_place`); empty: they can."""
    others = scenario.operations
    if operation.stream == "ballooning":
        return "a balloon punches and faults"
    if scenario.metadata == "taken":
        return "metadata is taken as each needs it"
    if any(isinstance(other, sc.IommuMap) for other in others):
        return "a device's mappings see each"
    old = generation(scenario.generation).kernel == "B" and scenario.guest.page_size != "4 KiB"
    if old and any(isinstance(other, (sc.Fault, sc.Pin)) for other in others):
        return "pages of generation B are mapped by the host"
    return ""


def _check_boot(scenario: sc.Scenario, operation: sc.ConvertStream, alone: str) -> None:
    """What a guest accepts in a boot, if that is too much to run, or its file too large to be tracked."""
    guest = scenario.guest
    if alone:
        _check_in_place(operation, guest.memory // gen.ACCEPT_CHUNK, alone)
    folios = guest.memory // (PAGE_SIZE << PAGE_ORDERS[guest.page_size])
    if folios > TRACKED_FOLIOS:
        raise WorkbenchError(
            f"convert_stream.stream: boot: {folios} folios of {guest.page_size} would be tracked one by one in place; at most "
            f"{TRACKED_FOLIOS} are: take less memory, larger pages, or conversion.mode out-of-place"
        )


def _check_in_place(operation: sc.ConvertStream, count: int, reason: str) -> None:
    if count > MOST_IN_PLACE:
        field = {"boot": "stream", "ballooning": "fraction"}.get(operation.stream, "count")
        raise WorkbenchError(
            f"convert_stream.{field}: {count} conversions in place ({reason}); at most {MOST_IN_PLACE} are: "
            "take fewer, less memory, or conversion.mode out-of-place"
        )


def _stream(scenario: sc.Scenario, operation: sc.ConvertStream) -> Int64s:
    memory, seed = scenario.guest.memory, scenario.seed if operation.seed is None else operation.seed
    vcpus = max(1, len(scenario.guest.vcpus))
    if operation.stream == "boot":
        stream, _ = gen.boot(gen.BootGuest(memory, vcpus, queues=5 * vcpus // 2))
    elif operation.stream == "bounce_buffers":
        stream = gen.bounce_buffers(memory, operation.count, in_flight=2 * vcpus, seed=seed)
    elif operation.stream == "ballooning":
        unit = PAGE_SIZE << PAGE_ORDERS[scenario.guest.page_size]
        stream = gen.ballooning(memory, operation.fraction, chunk=max(2 << 20, unit), seed=seed)
    elif operation.stream == "bad_guest":
        stream = gen.bad_guest(operation.count)
    else:
        stream = gen.uniform_random(memory, operation.count, largest=min(2 << 20, memory), seed=seed)
    return stream


def _set_up(scenario: sc.Scenario) -> list[sc.Operation]:
    guest = scenario.guest
    policies = guest.policies
    if guest.policy_interface == "create" and policies:
        # One policy for the whole file is all that the create ioctl of v1 and v2 could take.
        first = policies[0]
        create = sc.Create(mode=first.mode, mode_flags=first.mode_flags, nodes=first.nodes)
        return [create, *(_set(policy) for policy in policies[1:])]
    operations: list[sc.Operation] = [sc.Create()]
    for policy in policies:
        operations.append(_set(policy))
        if policy.home_node is not None:
            operations.append(
                sc.SetMempolicyHomeNode(offset=policy.offset, length=policy.length, home_node=policy.home_node)
            )
    return operations


def _set(policy: sc.Policy) -> sc.SetPolicy:
    return sc.SetPolicy(
        offset=policy.offset,
        length=policy.length,
        mode=policy.mode,
        mode_flags=policy.mode_flags,
        nodes=policy.nodes,
    )


def _shares(scenario: sc.Scenario, operation: sc.FirstTouch) -> list[sc.Operation]:
    """One fault for each vCPU over its share of the range, in whole folios."""
    vcpus = max(1, len(scenario.guest.vcpus))
    size = PAGE_SIZE << PAGE_ORDERS[scenario.guest.page_size]
    length = scenario.guest.memory - operation.offset if operation.length is None else operation.length
    edges = [operation.offset + length // size * i // vcpus * size for i in range(vcpus)] + [operation.offset + length]
    return [
        sc.Fault(
            task=f"vcpu{i}",
            file=operation.file,
            offset=edges[i],
            length=edges[i + 1] - edges[i],
            by=operation.by,
            order=operation.order,
            stride=operation.stride,
            seed=scenario.seed + i,
        )
        for i in range(vcpus)
        if edges[i + 1] > edges[i]
    ]


def in_turns(first: int, last: int, vcpus: int, turn: int) -> Iterator[tuple[Int64s, Int64s]]:
    """Chunks of (folio, vCPU): each vCPU walks its own share of ``[first, last)``, ``turn`` folios at a time."""
    edges = first + (last - first) * np.arange(vcpus + 1) // vcpus
    longest = int(np.diff(edges).max())
    turn = max(1, min(turn, longest))  # a longer turn ends with the share
    rounds = -(-longest // turn)
    at_once = max(1, _CHUNK // (turn * vcpus))
    for low in range(0, rounds, at_once):
        number = np.arange(low, min(low + at_once, rounds))
        within = number[:, None, None] * turn + np.arange(turn)[None, None, :]
        pages = edges[:-1][None, :, None] + within
        keep = pages < edges[1:][None, :, None]
        owner = np.broadcast_to(np.arange(vcpus)[None, :, None], pages.shape)
        yield pages[keep], owner[keep]


def shared_turns(first: int, last: int, vcpus: int, turn: int) -> Iterator[tuple[Int64s, Int64s]]:
    """Chunks of (folio, vCPU): all vCPUs walk one range, consecutive turns take consecutive folios."""
    for low in range(first, last, _CHUNK):
        pages = np.arange(low, min(low + _CHUNK, last), dtype=np.int64)
        yield pages, (pages - first) // turn % vcpus
