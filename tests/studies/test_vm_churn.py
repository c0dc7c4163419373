"""Machines arriving and leaving: the published size mix, every page accounted for, and the time it may take."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from reference.scale import JIT_DISABLED
from workbench.errors import WorkbenchError
from workbench.plots import designs as plots_designs
from workbench.studies import vm_churn

SMALL = {"memory": "512 GiB", "nodes": 4}
MACHINES = 60 if JIT_DISABLED else 2000


def test_sizes_follow_the_published_buckets() -> None:
    sizes = vm_churn.vm_sizes(50_000, np.random.default_rng(0))
    edges = [1, 2, 4, 8, 32, 64, 513]
    share = 100 * np.histogram(sizes, edges)[0] / len(sizes)
    np.testing.assert_allclose(share, [12.0, 16.7, 32.9, 29.2, 6.5, 2.8], atol=0.7)


def test_stream_is_reproducible_and_every_machine_leaves_after_it_came() -> None:
    churn = vm_churn.generate(machines=500, seed=4, **SMALL)
    again = vm_churn.generate(machines=500, seed=4, **SMALL)
    np.testing.assert_array_equal(churn.events, again.events)
    assert (np.diff(churn.hours) >= 0).all()
    came = {int(m): k for k, (m, pages, _) in enumerate(churn.events) if pages}
    left = {int(m): k for k, (m, pages, _) in enumerate(churn.events) if not pages}
    assert came.keys() == left.keys() == set(range(500))
    assert all(came[m] < left[m] for m in came)


@pytest.fixture(scope="module")
def served() -> xr.Dataset:
    """Odd sizes, every allocator, the whole stream."""
    churn = vm_churn.generate(machines=MACHINES, seed=1, **SMALL)
    return vm_churn.serve(churn, samples=60, days=None, **SMALL)


def test_everything_is_free_again_at_the_end_and_fragmentation_in_between(served: xr.Dataset) -> None:
    total = (512 << 30) // 4096
    assert list(served["allocator"].values) == list(vm_churn.ALLOCATORS)
    assert (served["free_pages"][:, -1] == total).all()
    assert (served["machines"][:, -1] == 0).all()
    assert (served["free_pages"] + served["held_pages"] == total).all()
    assert (served["free_pages"].min("sample") < total // 2).all()
    largest = served["largest_free_pages"][:, -1].values
    assert largest.tolist() == [total // 4] * 3 + [1024, 512, 1 << 18]
    for name in ("unusable_2mib", "unusable_1gib", "mappable_2mib", "mappable_1gib", "local"):
        assert (served[name] >= 0).all()
        assert (served[name] <= 1).all()
    for variable in served.data_vars.values():
        assert {"units", "long_name", "basis"} <= variable.attrs.keys()


def test_what_each_allocator_can_and_cannot_do(served: xr.Dataset) -> None:
    busy = served.isel(sample=(served["machines"].min("allocator") > 5).values)
    ranges = busy.sel(allocator=["first-fit", "best-fit", "buddy in ranges"])
    kernel, small, large = (busy.sel(allocator=name) for name in ("kernel buddy", "hugetlb 2 MiB", "hugetlb 1 GiB"))
    assert float(ranges["mappable_1gib"].min()) > 0.8
    for never in (kernel, small):
        assert (never["mappable_1gib"] == 0).all()
        assert (never["unusable_1gib"] == 1).all()
    assert (large["mappable_1gib"] == 1).all()
    assert (kernel["largest_free_pages"] <= 1024).all()
    assert float(kernel["mappable_2mib"].min()) > 0.99
    assert float(kernel["extents_per_machine"].mean()) > 100 * float(ranges["extents_per_machine"][0].mean())
    assert (large["held_pages"] > ranges["held_pages"][0]).any()  # machines are rounded up to whole GiB
    kernel_asked = served["asked_pages"].sel(allocator="kernel buddy")
    assert (kernel_asked > 0).all()
    assert float(kernel_asked[0] / kernel_asked.sum()) > 0.99
    host = served.attrs["host_bytes"]
    expected = [0, 0, 0, host // 64, host // 64, host // 64]
    assert served["struct_page_bytes"].values.tolist() == expected
    hvo = served["struct_page_bytes_hvo"].values
    tables = host >> 27  # page tables of vmemmap: one for 128 MiB
    assert hvo[4:].tolist() == [((host >> 21) + tables + 1) * 4096, ((host >> 30) + tables + 1) * 4096]
    refused = dict(zip(served["allocator"].values, served["refused_1gib"].values, strict=True))
    assert refused["kernel buddy"] == refused["hugetlb 2 MiB"] == MACHINES
    assert refused["hugetlb 1 GiB"] < MACHINES


@pytest.mark.parametrize(("unit", "pool"), [("2 MiB", "hugetlb 2 MiB"), ("1 GiB", "hugetlb 1 GiB")])
def test_who_counts_free_pages_refuses_the_same_machines(unit: str, pool: str) -> None:
    """Sizes are whole huge pages, so as long as ranges may be cut nobody is turned away for fragmentation alone."""
    churn = vm_churn.generate(machines=MACHINES, fill=1.3, seed=2, unit=unit, **SMALL)
    chosen = ("first-fit", "best-fit", "buddy in ranges", pool)
    dataset = vm_churn.serve(churn, samples=10, allocators=chosen, **SMALL)
    assert (dataset["refused"] > 0).all()
    assert len(set(dataset["refused"].values)) == 1
    assert (dataset["held_pages"] == dataset["held_pages"][0]).all()


def test_asking_for_2_mib_at_once_costs_the_large_mappings() -> None:
    churn = vm_churn.generate(machines=MACHINES, seed=3, **SMALL)
    options = {"samples": 20, "allocators": ("first-fit",), **SMALL}
    aligned = vm_churn.serve(churn, **options)  # type: ignore[arg-type]
    plain = vm_churn.serve(churn, largest_unit="2 MiB", **options)  # type: ignore[arg-type]
    assert float(plain["mappable_1gib"].mean()) < 0.5 * float(aligned["mappable_1gib"].mean())
    assert (plain["held_pages"] == aligned["held_pages"]).all()


@pytest.mark.skipif(JIT_DISABLED, reason="says nothing of plain Python")
def test_100000_machines_on_16_tib_in_under_a_minute() -> None:
    """The kernel's buddy allocator, which takes the longest, is measured in the benchmark."""
    churn = vm_churn.generate("16 TiB", 100_000)
    chosen = ("first-fit", "best-fit", "buddy in ranges", "hugetlb 1 GiB")
    dataset = vm_churn.serve(churn, samples=100, allocators=chosen)
    assert (dataset["seconds"] < 60).all()
    assert (dataset["arrivals"] == 100_000).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocators": ("slab",)}, "slab"),
        ({"memory": "5 GiB", "nodes": 4}, "memory"),
        ({"samples": 0}, "samples"),
        ({"largest_unit": "4 KiB"}, "largest_unit"),
    ],
)
def test_bad_host(options: dict[str, object], message: str) -> None:
    churn = vm_churn.generate(machines=10, **SMALL)
    with pytest.raises(WorkbenchError, match=message):
        vm_churn.serve(churn, **{**SMALL, **options})  # type: ignore[arg-type]


def test_figure() -> None:
    churn = vm_churn.generate(machines=50, **SMALL)
    dataset = vm_churn.serve(churn, samples=5, allocators=("first-fit", "hugetlb 1 GiB"), **SMALL)
    figure = plots_designs.churn(dataset)
    assert [len(ax.get_lines()) for ax in figure.axes] == [2, 2, 2, 2]
    assert all(ax.get_title(loc="left") for ax in figure.axes)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"machines": 0}, "machines"), ({"fill": 3}, "fill"), ({"unit": "3 MiB"}, "unit"), ({"column": "x"}, "column")],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        vm_churn.generate(**{"machines": 10, **SMALL, **options})  # type: ignore[arg-type]
