"""Simulate a scenario: the Dataset of a run (:mod:`workbench.running`), or of several along a dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench import profiles, results
from workbench import scenario as sc
from workbench.design import choose
from workbench.errors import WorkbenchError
from workbench.kernels.compile import prepare
from workbench.ready import scenario as read_ready
from workbench.running import Progress, kernels_needed, run
from workbench.variables import Simulation


def simulate(
    scenario: sc.Scenario | str | Path,
    *,
    designs: Sequence[str] | None = None,
    kernel_profiles: Sequence[str] | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> xr.Dataset:
    """Simulate a scenario and return its Dataset (see :mod:`workbench.results` for the variables).

    >>> result = simulate("weighted-interleave-cxl")
    >>> result.pages_per_node.sel(file="guest").values.tolist()
    [1048580, 838858, 209714, 0]

    Parameters
    ----------
    scenario : the scenario, the name of a ready one (``"weighted-interleave-cxl"``), a file with one or its YAML text
    designs : run it under each of these designs instead of its own; every variable that has the same shape under all of
        them then has a dimension ``design`` (tables of zones, whose pools differ, are left out)
    kernel_profiles : run it under the rules of each of these kernels (:data:`workbench.profiles.KERNEL_PROFILES`), along
        ``kernel`` in the same way
    progress : called with (operations done, operations in all)
    cancelled : asked now and then; when it returns True the run ends with :class:`workbench.errors.Cancelled`

    Raises
    ------
    WorkbenchError
        The scenario asks for something that is no operation of its host. A call that the kernel refuses is not an
        error: its event carries the errno, and the run goes on.
    Cancelled
        ``cancelled`` returned True.
    """
    scenario = read_ready(scenario)
    if designs is not None and kernel_profiles is not None:
        raise WorkbenchError("designs and kernel profiles: one of the two can be compared in a run")
    if designs is not None:
        choose(designs)
        return _along(scenario, "design", "guest.design", designs, progress, cancelled)
    if kernel_profiles is not None:
        _choose_kernels(kernel_profiles)
        return _along(scenario, "kernel", "kernel_profile", kernel_profiles, progress, cancelled)
    answer = run(scenario, progress=progress, cancelled=cancelled)
    return results.make(
        Simulation,
        {name: answer[name] for name in answer.names},
        answer.coords,
        provenance=results.provenance(scenario),
        attributes=answer.attrs,
    )


def _choose_kernels(names: Sequence[str]) -> None:
    for name in names:
        profiles.look_up(profiles.KERNEL_PROFILES, name, "kernel_profile")
    if not names or len(set(names)) != len(names):
        raise WorkbenchError(f"kernel profiles: {', '.join(names) or 'none'}; each of them once")


def _along(
    scenario: sc.Scenario,
    name: str,
    field: str,
    values: Sequence[str],
    progress: Progress | None,
    cancelled: Callable[[], bool],
) -> xr.Dataset:
    """The same scenario with each of ``values`` in ``field``, along the dimension ``name``."""
    chosen = [scenario.replace(**{field: value}) for value in values]
    prepare((module for one in chosen for module in kernels_needed(one)), wait=False)
    parts: list[xr.Dataset] = []
    for number, one in enumerate(chosen):

        def step(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(values) * total)

        parts.append(simulate(one, progress=step, cancelled=cancelled))
    parts = _with_equal_tables(_with_all_files(parts))
    shapes = [{name: variable.shape for name, variable in part.data_vars.items()} for part in parts]
    common = [name for name in shapes[0] if all(shape.get(name) == shapes[0][name] for shape in shapes)]
    kept = [name for name in common if "zone" not in parts[0][name].dims]
    kept_parts = [part[kept].drop_vars("zone", errors="ignore") for part in parts]
    made = results.stack(Simulation, kept_parts, name, list(values), provenance=results.provenance(scenario))
    return made.assign_attrs(_attributes([part.attrs for part in parts], name, values))


def _attributes(parts: Sequence[Mapping[str, Any]], along: str, values: Sequence[str]) -> dict[str, str]:
    """What runs say of themselves: what all say once, other lines as ``kernel 7.3: line``, other words in a row."""
    out: dict[str, str] = {}
    for name in dict.fromkeys(name for part in parts for name in part if name != "provenance"):
        said = [str(part.get(name, "")) for part in parts]
        if len(set(said)) == 1:
            out[name] = said[0]
        elif name in ("warnings", "assumed"):
            common = [line for line in said[0].splitlines() if all(line in other.splitlines() for other in said)]
            own = [
                f"{along} {value}: {line}"
                for value, lines in zip(values, said, strict=True)
                for line in lines.splitlines()
                if line not in common
            ]
            out[name] = "\n".join([*common, *own])
        else:
            out[name] = ("; " if name.endswith("_text") else ", ").join(dict.fromkeys(said))
    return out


def _with_all_files(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """Files that only some of the runs have (a second backend) are there with no pages in the others."""
    names = list(dict.fromkeys(str(name) for part in parts for name in part["file"].values))
    nothing: dict[str, object] = {"page_node": -1, "page_pfn": -1}
    out = []
    several = next((part["file_inode"].attrs for part in parts if "file_inode" in part), None)
    for part in parts:
        if several is not None:  # places among all names; a name that this run has not is nobody's other name
            own = part["file"].values
            first = own[part["file_inode"].values] if "file_inode" in part else own
            of_name = dict(zip(own.tolist(), first.tolist(), strict=True))
            part = part.drop_vars("file_inode", errors="ignore")
        fill = {str(name): nothing.get(str(name), 0) for name, made in part.data_vars.items() if "file" in made.dims}
        if part["file"].values.tolist() != names:  # fewer, or in another order
            kinds = {name: made.dtype for name, made in part.data_vars.items() if name in fill}
            part = part.reindex(file=names, fill_value=fill)
            part = part.assign({name: part[name].astype(kind) for name, kind in kinds.items()})
        if several is not None:
            places = np.array([names.index(of_name.get(name, name)) for name in part["file"].values.tolist()], np.int64)
            part = part.assign(file_inode=("file", places, several))
        out.append(part)
    return out


_TABLES = ("run", "observed_run", "small_run", "stretch", "small_stretch", "tile_entry", "page", "range")
"""Dimensions of tables whose rows a run has as many of as it needs."""


def _with_equal_tables(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """Tables of runs, stretches and ranges are as long as the longest: rows that are no rows name no file and no node."""
    longest = {dim: max(part.sizes.get(dim, 0) for part in parts) for dim in _TABLES}
    out = []
    for part in parts:
        more = {dim: (0, most - part.sizes[dim]) for dim, most in longest.items() if part.sizes.get(dim, most) < most}
        empty: Any = {
            name: "" if made.dtype.kind == "U" else False if made.dtype.kind == "b" else _NOBODY.get(str(name), 0)
            for name, made in part.data_vars.items()
        }
        out.append(part.pad(more, constant_values=empty) if more else part)
    return out


_NOBODY = dict.fromkeys(
    ("run_node", "observed_run_node", "observed_run_event", "small_run_node", "tile_node", "page_node", "page_pfn"), -1
)
