"""Stalls: steps of each conversion are those of the run as a whole, and times are steps at the prices given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import costs
from workbench.design import DESIGNS
from workbench.designs import compare as designs
from workbench.designs import stalls
from workbench.engine import conversion_streams as gen
from workbench.errors import WorkbenchError
from workbench.kernels.folios import run as folio
from workbench.plots import designs as plots_designs

GIB = 1 << 18


@given(seed=st.integers(0, 1000), page_size=st.sampled_from(["2 MiB", "1 GiB"]))
@settings(max_examples=4)
def test_steps_add_up_to_what_the_comparison_counts(seed: int, page_size: str) -> None:
    run = designs.guest_run("2 GiB", page_size, 40, seed=seed)
    priced, compared = stalls.stalls(run), designs.compare(run, samples=1)
    steps = priced["steps"].sum("conversion")
    for step, name in (("invalidation", "invalidations"), ("page split or merged", "pages_restructured")):
        np.testing.assert_array_equal(steps.sel(step=step).values, compared[name].values)
    to_private = run.stream[(run.stream[:, folio.OP] == folio.CONVERT) & (run.stream[:, folio.ARGUMENT] == 0)]
    assert (steps.sel(step="folio checked") <= to_private[:, folio.LENGTH].sum() // 4096).all()
    assert (steps.sel(step="call") == (run.stream[:, folio.OP] == folio.CONVERT).sum()).all()
    assert (priced["headroom"].sum("node") <= compared["vmemmap_taken_pages"]).all()


def one_page(page_size: str = "1 GiB") -> designs.FileWorkload:
    """4 GiB on one node; page 5 of the second GiB is shared and taken back."""
    rows = [(folio.CONVERT, (GIB + 5) * 4096, 4096, to, 0, 0) for to in (1, 0)]
    stream = np.concatenate((gen.prefault(4 * GIB * 4096, page_size, 1), np.array(rows, np.int64)))
    return designs.FileWorkload(4 * GIB, page_size, (8 * GIB,), stream, "snp")


def test_one_page_shared_and_taken_back() -> None:
    """Step by step, for every design; PSMASH once, then 4 KiB entries."""
    priced = stalls.stalls(one_page())
    table = {str(name): priced["steps"].sel(design=name).values.tolist() for name in priced["design"].values}
    zeros = [0, 0, 0]
    assert table["filemap"] == [[1, 1, 0, 0, 0, 0, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]]
    assert (
        table["hugetlb"] == [[1, 1, 0, GIB, *zeros, 1, 1, 0], [1, 1, 1, GIB, *zeros, 1, 0, 0]] == table["hugetlb-hvo"]
    )
    assert table["thp"] == [[1, 1, 0, 512, *zeros, 1, 1, 0], [1, 1, 1, 512, *zeros, 1, 0, 0]]
    assert [row[:4] for row in table["contiguous-4k"]] == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert table["pfn-range"] == [[1, 1, 0, 0, 64, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 1, 0, 1, 0, 0]]
    inside = {str(name): priced["inside"].sel(design=name).values.tolist() for name in priced["design"].values}
    nothing = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert inside["filemap"] == nothing == inside["contiguous-4k"]
    assert inside["hugetlb"] == [[4161, 0, 0, 0, 0], nothing[0]]
    assert inside["hugetlb-hvo"] == [[4161, 4095, 0, 4095, 1], [0, 0, 4095, 0, 1]]
    assert inside["thp"] == [[8, 0, 0, 0, 0], nothing[0]]
    assert inside["pfn-range"] == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert priced["headroom"].values.ravel().tolist() == [0, 0, 4095, 1, 0, 0]
    ghz = costs.value("cpu_frequency")
    # the RMPUPDATE and the PSMASH are counted above; nobody has published what they take, so they are in no time
    split = (costs.value("conversion_fixed") + costs.value("invalidation")) / ghz
    split += GIB * costs.value("split_merge_per_page") / ghz
    assert priced.attrs["untimed"] == "RMPUPDATE, PSMASH" and not [name for name in costs.COSTS if "rmp" in name]
    assert float(priced["stall"].sel(design="hugetlb", draw=0, conversion=0)) == pytest.approx(split)
    assert float(priced["boot_stall"].sel(design="thp").min()) > 0
    # 16 vCPUs that fault every 100 us: a stall of `split` cycles keeps 16 * (1 - exp(-split / 100 us)) of them waiting.
    kept = 16 * (1 - np.exp(-split / costs.value("fault_interval")))
    waiting = priced["waiting"].sel(draw=0, conversion=0)
    assert float(waiting.sel(design="hugetlb")) == pytest.approx(kept)
    assert float(waiting.sel(design="filemap")) < 1 < kept
    both = (priced["waiting"] * priced["stall"] / 2).sum("conversion")
    np.testing.assert_allclose(priced["boot_wait"].values, both.values)
    made = plots_designs.stalls(priced)
    assert len(made.axes) == 4
    bars = [bar.get_width() for bar in made.axes[3].patches]
    assert bars == [0, 0, 4095 / 256, 1 / 256, 0, 0]


def test_without_conversions_there_is_nothing_to_price() -> None:
    with pytest.raises(WorkbenchError, match="0 conversions; from 1 to"):
        stalls.stalls(designs.FileWorkload(GIB, "1 GiB", (4 * GIB,), gen.prefault(GIB * 4096, "1 GiB", 1)))
    with pytest.raises(WorkbenchError, match=f"there are {', '.join(DESIGNS)}"):
        stalls.stalls(one_page(), ["paper"])
