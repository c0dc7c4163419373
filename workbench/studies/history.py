"""Which kernel does what: one scenario under the rules of one released kernel after another.

The rules of each version are in :mod:`workbench.profiles`, with the recordings or the source that show them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from workbench import policy as mp
from workbench import profiles
from workbench.bitmap_lists import format_list
from workbench.scenario import Scenario
from workbench.simulation import simulate


def released() -> list[str]:
    """Names of the profiles of released kernels, oldest first."""
    return [name for name in profiles.KERNEL_PROFILES if name[0].isdecimal()]


def history(
    scenario: Scenario | str | Path,
    kernels: Sequence[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The Dataset of :func:`workbench.simulate` with a dimension ``kernel``.

    scenario : a scenario, the name of a ready one or a file, as ``simulate`` takes it
    kernels : names of profiles; all released ones, oldest first, if left out
    progress : called with (operations done, operations in all)
    """
    return simulate(scenario, kernel_profiles=list(kernels or released()), progress=progress)


def table(dataset: xr.Dataset) -> list[dict[str, object]]:
    """One row for each call: its number, what it was, each kernel's answer, and the kernels at which the answer changes.

    An answer is "ok" or the errno's name, with the pages that the call placed by node, or with what it was asked.
    """
    names = [str(name) for name in dataset["kernel"].values]
    rows: list[dict[str, object]] = []
    for event in dataset["event"].values:
        one = dataset.sel(event=event)
        answers = [_answer(one.sel(kernel=name)) for name in names]
        changes = [
            name for name, answer, before in zip(names[1:], answers[1:], answers, strict=False) if answer != before
        ]
        capability = json.loads(str(one["event_detail"].values[0])).get("capability", "")
        text = f"{one['event_op'].values[0]} {capability or one['event_file'].values[0]}".strip()
        rows.append({"event": int(event), "call": text, **dict(zip(names, answers, strict=True)), "changes": changes})
    return rows


def first_refusal(dataset: xr.Dataset) -> dict[str, str]:
    """For each kernel on which a call fails that others take: which one, its errno, and the reason if it has one."""
    out = {}
    errors = dataset["event_errno"].transpose("kernel", "event").values
    for row, name in enumerate(dataset["kernel"].values):
        own = np.flatnonzero((errors[row] != 0) & (errors == 0).any(axis=0))
        if len(own):
            one = dataset.isel(kernel=row, event=int(own[0]))
            reason = json.loads(str(one["event_detail"].item())).get("reason")
            answer = str(one["event_error"].item()) + (f": {reason}" if reason else "")
            out[str(name)] = f"event {int(own[0])} ({one['event_op'].item()}): {answer}"
    return out


def _answer(event: xr.Dataset) -> str:
    if int(event["event_errno"]):
        return str(event["event_error"].values)
    if asked := _asked(event):
        return f"ok: {asked}"
    nodes: dict[int, list[int]] = {}
    for node, count in zip(event["node"].values.tolist(), event["event_pages"].values.tolist(), strict=True):
        if count:
            nodes.setdefault(count, []).append(node)
    placed = [f"{count:,}{' each' if len(on) > 1 else ''} on {format_list(on)}" for count, on in nodes.items()]
    return "ok" if not placed else "ok: " + ", ".join(placed)


def _asked(event: xr.Dataset) -> str:
    """The answer of a call that asks the kernel something; empty for any other."""
    op, detail = str(event["event_op"].values), json.loads(str(event["event_detail"].values))
    if op == "check_extension":
        return str(int(event["event_ret"]))
    if op != "get_mempolicy":
        return ""
    if "node" in detail:
        return f"node {detail['node']}"
    mode = int(detail["mode"])
    flags = [name for name, bit in mp.MODE_FLAGS.items() if mode & bit]
    words = [
        mp.MODES[mode & ~sum(mp.MODE_FLAGS.values())],
        str(detail["nodes"]),
        f"({', '.join(flags)})" if flags else "",
    ]
    return " ".join(word for word in words if word)
