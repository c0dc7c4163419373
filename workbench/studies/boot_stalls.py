"""How long boots of many guests hold their files under each design, and what they need free: a distribution over guests.

Sizes follow the published mix of Azure's 2019 trace (:func:`workbench.studies.vm_churn.vm_sizes`), which says nothing of vCPUs:
a vCPU for every 4 GiB, as general-purpose machines have, is an assumption. Each boot is priced conversion by conversion
(:mod:`workbench.designs.stalls`): steps are counted, times modelled; those of RMPUPDATE and PSMASH are not, for none is
published.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench import results
from workbench.design import DESIGNS, choose
from workbench.designs import compare, stalls
from workbench.designs.runs import DRAWS
from workbench.errors import WorkbenchError
from workbench.studies.vm_churn import vm_sizes
from workbench.variables import BootStalls

GIB_A_VCPU = 4
"""Memory for each vCPU of a guest."""
_MOST_MACHINES = 1000
_LARGEST = 256
"""GiB of the largest guest: nothing changes above, for bounce buffers end at 1 GiB."""


def boot_stalls(
    machines: int = 60,
    page_size: str = "1 GiB",
    designs: Sequence[str] = tuple(DESIGNS),
    *,
    confidential: str = "snp",
    seed: int = 0,
) -> xr.Dataset:
    """Boot guests of the published mix of sizes under each design.

    Returns
    -------
    Dataset over ``design``, ``guest`` (in ascending order of memory) and ``draw``: ``boot_stall`` of all conversions of a boot,
    ``longest_stall`` of one, ``boot_wait`` of the guest's other vCPUs together, and ``boot_headroom``, the free memory for
    restored struct pages at the peak. Guests of one size boot alike and are priced once.
    """
    if not 1 <= machines <= _MOST_MACHINES:
        raise WorkbenchError(f"machines: {machines}; from 1 to {_MOST_MACHINES} boots")
    chosen = [design.name for design in choose(designs)]
    sizes = np.sort(np.clip(np.ceil(vm_sizes(machines, np.random.default_rng(seed))), 1, _LARGEST)).astype(np.int64)
    different, of = np.unique(sizes, return_inverse=True)
    vcpus = np.maximum(1, different // GIB_A_VCPU)
    priced = []
    for size, cpus in zip(different.tolist(), vcpus.tolist(), strict=True):
        run = compare.guest_run(f"{size} GiB", page_size, 0, confidential=confidential, seed=seed, vcpus=cpus)
        priced.append(stalls.stalls(run, chosen, vcpus=cpus - 1))
    longest = [one["stall"].max("conversion").values for one in priced]
    return results.make(
        BootStalls,
        {
            "guest_gib": sizes,
            "boot_stall": np.stack([one["boot_stall"].values for one in priced], axis=1)[:, of],
            "longest_stall": np.stack(longest, axis=1)[:, of],
            "boot_wait": np.stack([one["boot_wait"].values for one in priced], axis=1)[:, of],
            "boot_headroom": np.stack([one["headroom"].sum("node").values for one in priced])[of],
        },
        {"design": np.array(chosen, dtype=str), "guest": np.arange(machines), "draw": np.arange(DRAWS)},
        provenance=results.provenance(
            command="studies.boot_stalls.boot_stalls", machines=machines, page_size=page_size, designs=designs,
            confidential=confidential, seed=seed,
        ),
        attributes={"page_size": page_size, "confidential": confidential, "untimed": priced[-1].attrs["untimed"]},
    )  # fmt: skip
