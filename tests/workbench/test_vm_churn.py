"""Machines arriving and leaving: the published size mix, every page accounted for, and the time it may take."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import vm_churn
from workbench.errors import WorkbenchError

SMALL = {"memory": "512 GiB", "nodes": 4}


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
    came = {int(m): k for k, (m, units, _) in enumerate(churn.events) if units}
    left = {int(m): k for k, (m, units, _) in enumerate(churn.events) if not units}
    assert came.keys() == left.keys() == set(range(500))
    assert all(came[m] < left[m] for m in came)


@pytest.mark.parametrize("unit", ["2 MiB", "1 GiB"])
def test_everything_is_free_again_at_the_end_and_fragmentation_in_between(unit: str) -> None:
    churn = vm_churn.generate(machines=2000, unit=unit, seed=1, **SMALL)
    dataset = vm_churn.serve(churn, samples=50, **SMALL)
    total = (512 << 30) // 4096
    for fit in dataset["fit"].values:
        part = dataset.sel(fit=fit)
        assert int(part["free_pages"][-1]) == total
        assert int(part["largest_free_pages"][-1]) == total // 4
        assert int(part["free_pages"].min()) < total // 2
        assert int(part["free_ranges"].max()) > 4
        assert (part["usable_pages"] <= part["free_pages"]).all()
        assert (part["largest_free_pages"] <= part["free_pages"]).all()
    assert len(set(dataset["arrivals"].values)) == 1


def test_what_a_counting_pool_refuses_is_refused_by_the_range_allocator_too() -> None:
    """Units are alike, so as long as ranges may be cut nobody is turned away for fragmentation alone."""
    churn = vm_churn.generate(machines=3000, fill=1.3, seed=2, **SMALL)
    refused = vm_churn.hugetlb_refused(churn, **SMALL)
    dataset = vm_churn.serve(churn, samples=10, **SMALL)
    assert refused > 0
    assert (dataset["refused"] == refused).all()


def test_100000_machines_on_16_tib_in_under_a_minute() -> None:
    churn = vm_churn.generate("16 TiB", 100_000)
    dataset = vm_churn.serve(churn, samples=100)
    assert (dataset["seconds"] < 60).all()
    assert (dataset["arrivals"] == 100_000).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"machines": 0}, "machines"), ({"fill": 3}, "fill"), ({"unit": "3 MiB"}, "unit"), ({"column": "x"}, "column")],
)
def test_bad_input(options: dict[str, object], message: str) -> None:
    with pytest.raises(WorkbenchError, match=message):
        vm_churn.generate(**{"machines": 10, **SMALL, **options})  # type: ignore[arg-type]
