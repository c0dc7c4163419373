"""Boots of many guests: each is the boot of a guest of its size, and the mix is the published one."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.designs import compare, stalls
from workbench.errors import WorkbenchError
from workbench.plots import designs as plots_designs
from workbench.studies import boot_stalls, vm_churn

DESIGNS = ("hugetlb-hvo", "thp")


def test_each_boot_is_that_of_a_guest_of_its_size() -> None:
    many = boot_stalls.boot_stalls(12, designs=DESIGNS, seed=3)
    drawn = np.sort(np.ceil(vm_churn.vm_sizes(12, np.random.default_rng(3))))
    np.testing.assert_array_equal(many["guest_gib"].values, np.clip(drawn, 1, 256))
    size = int(many["guest_gib"][-2])
    assert size >= 8
    vcpus = size // boot_stalls.GIB_A_VCPU
    one = stalls.stalls(compare.guest_run(f"{size} GiB", "1 GiB", 0, vcpus=vcpus), DESIGNS, vcpus=vcpus - 1)
    for name in ("boot_stall", "boot_wait"):
        np.testing.assert_array_equal(many[name].isel(guest=-2).values, one[name].values)
    np.testing.assert_array_equal(many["longest_stall"].isel(guest=-2).values, one["stall"].max("conversion").values)
    np.testing.assert_array_equal(many["boot_headroom"].isel(guest=-2).values, one["headroom"].sum("node").values)
    assert len(plots_designs.boot_stalls(many).axes) == 4


def test_four_gib_are_split_at_most_and_nobody_waits_beside_one_vcpu() -> None:
    """Low memory, the first of high memory and the top: 2 pages of 1 GiB in guests of 2 GiB, 3 of 3, 4 from 4 GiB on."""
    many = boot_stalls.boot_stalls(12, designs=DESIGNS, seed=3)
    first = many.isel(draw=0)
    pages = np.clip(many["guest_gib"].values, 2, 4) * 4095
    np.testing.assert_array_equal(first["boot_headroom"].sel(design="hugetlb-hvo").values, pages)
    assert (first["boot_headroom"].sel(design="thp") == 0).all()
    alone = many["guest_gib"] < 2 * boot_stalls.GIB_A_VCPU
    assert (many["boot_wait"].where(alone, 0.0) == 0).all() and (first["boot_wait"].isel(guest=-1) > 0).all()


def test_what_is_refused() -> None:
    with pytest.raises(WorkbenchError, match="machines: 0; from 1 to"):
        boot_stalls.boot_stalls(0)
