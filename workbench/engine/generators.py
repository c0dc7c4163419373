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
from workbench.limits import MAX_OPERATIONS, TRACE_ROWS, TRACKED_FOLIOS
from workbench.units import PAGE_ORDERS, PAGE_SIZE, format_bytes

Int64s = npt.NDArray[np.int64]
_CHUNK = 1 << 22  # folios of one chunk


def expand(scenario: sc.Scenario) -> list[sc.Operation]:
    """The operations that are really carried out, in order.

    A scenario that uses the guest's file and never creates it gets ``create`` and the guest's policies in front, and one without
    operations gets a first touch by the vCPUs. ``first_touch`` without turns becomes one fault for each vCPU;
    ``prefault`` becomes fallocate, ``convert_stream`` the conversions that a guest makes.
    """
    operations: list[sc.Operation] = list(scenario.operations)
    if sets_up(scenario):
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


def sets_up(scenario: sc.Scenario) -> bool:
    """Whether the guest's file and its policies are made in front of the operations, which do not do it themselves."""
    operations = scenario.operations
    made = {operation.file for operation in operations if isinstance(operation, (sc.Create, sc.Memfd))}
    used = {getattr(operation, "file", None) for operation in operations}
    return not operations or ("guest" in used and "guest" not in made)


def policies_left_out(scenario: sc.Scenario) -> list[str]:
    """A line where ``guest.policies`` are given to a scenario that makes its files itself: nobody sets them."""
    if not scenario.guest.policies or sets_up(scenario):
        return []
    return [
        "guest.policies: not set, because the operations make the guest's memory themselves; leave 'create' out of them, or "
        "set the policies there (mbind)"
    ]


class ConvertMany(sc.Operation):
    """A part of a stream: rows int64 (n, 6) as :mod:`workbench.kernels.folios.run` has them, one event all together."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    op: Literal["convert_stream"] = "convert_stream"
    file: str = "guest"
    rows: Int64s


MOST_SINGLE = 4096
"""A longer stream of conversions out of place is about :data:`EVENTS` events, if the scenario does not say otherwise."""
MOST_SINGLE_IN_PLACE = 100_000
"""The same of conversions in place."""
EVENTS = 250
MOST_EVENTS = MAX_OPERATIONS
"""As many events are of one stream at most, each some :data:`EVENT_BYTES` of the result while it is made."""
EVENT_BYTES = 6_000
MOST_CHUNKS = TRACE_ROWS
"""So many chunks of memory a balloon takes and gives back at most, each a call that takes :data:`CHUNK_SECONDS`."""
CHUNK_SECONDS = 0.0005


def _converted(scenario: sc.Scenario, operation: sc.ConvertStream) -> list[sc.Operation]:
    """The conversions of a stream, each an operation of its own, or many together."""
    in_place = scenario.conversion_mode == "in-place"
    if operation.stream == "ballooning":  # before the stream is made
        _check_balloon(scenario, operation)
    if in_place and operation.stream == "boot":
        _check_boot(scenario)
    stream = _stream(scenario, operation)
    single = len(stream) <= (MOST_SINGLE_IN_PLACE if in_place else MOST_SINGLE)
    every = operation.every or (1 if single else -(-len(stream) // EVENTS))
    events = -(-len(stream) // every)
    if events > MOST_EVENTS:
        raise WorkbenchError(
            f"convert_stream.every: {every}: {len(stream)} conversions would be {events} events, which take some "
            f"{format_bytes(events * EVENT_BYTES)} of memory; at most {MOST_EVENTS} are: leave it out, or take "
            f"{-(-len(stream) // MOST_EVENTS)} or more"
        )
    if every == 1:
        return gen.operations(stream, operation.file, operation.task)
    return [
        ConvertMany(task=operation.task, file=operation.file, rows=stream[low : low + every])
        for low in range(0, len(stream), every)
    ]


def _balloon_chunk(scenario: sc.Scenario) -> int:
    return max(2 << 20, PAGE_SIZE << PAGE_ORDERS[scenario.guest.page_size])


def _check_balloon(scenario: sc.Scenario, operation: sc.ConvertStream) -> None:
    """Memory that a balloon takes and gives back, if that is too much to run."""
    calls = 2 * int(scenario.guest.memory // _balloon_chunk(scenario) * operation.fraction)
    if calls > MOST_CHUNKS:
        raise WorkbenchError(
            f"convert_stream.fraction: {operation.fraction:g} of {format_bytes(scenario.guest.memory)} are {calls} calls of "
            f"{format_bytes(_balloon_chunk(scenario))}, which take some {calls * CHUNK_SECONDS / 60:.0f} minutes; at most "
            f"{MOST_CHUNKS} are: take a smaller fraction, or larger pages"
        )


def _check_boot(scenario: sc.Scenario) -> None:
    """What a guest accepts in a boot, if its file is too large to be tracked."""
    guest = scenario.guest
    folios = guest.memory // (PAGE_SIZE << PAGE_ORDERS[guest.page_size])
    if folios > TRACKED_FOLIOS:
        raise WorkbenchError(
            f"convert_stream.stream: boot: {folios} folios of {guest.page_size} would be tracked one by one in place; at most "
            f"{TRACKED_FOLIOS} are: take less memory, larger pages, or conversion.mode out-of-place"
        )


def _stream(scenario: sc.Scenario, operation: sc.ConvertStream) -> Int64s:
    memory, seed = scenario.guest.memory, scenario.seed if operation.seed is None else operation.seed
    vcpus = max(1, len(scenario.guest.vcpus))
    if operation.stream == "boot":
        stream, _ = gen.boot(gen.BootGuest(memory, vcpus, queues=5 * vcpus // 2))
    elif operation.stream == "bounce_buffers":
        stream = gen.bounce_buffers(memory, operation.count, in_flight=2 * vcpus, seed=seed)
    elif operation.stream == "ballooning":
        stream = gen.ballooning(memory, operation.fraction, chunk=_balloon_chunk(scenario), seed=seed)
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
