"""A device that maps all blocks conversions where it pins, and is told where it asks."""

from __future__ import annotations

import pytest

from workbench.errors import WorkbenchError
from workbench.plots import designs as plots_designs
from workbench.studies.device_users import WAYS, device_users


def test_a_device_that_maps_all_blocks_what_it_pins() -> None:
    """Five ranges: refused where pages are pinned; told, and lost page by page, where they are not."""
    made = device_users("16 MiB", 5)
    private, shared, while_shared = (made.sel(way=way) for way in WAYS)
    light = made["design"].values == "pfn-range"
    assert private["device_mapped_pages"].values.tolist() == [4096 if told else 0 for told in light]
    assert private["refused"].values.tolist() == [0] * 6
    assert shared["refused"].values.tolist() == [0 if told else 5 for told in light]
    assert shared["conversions"].values.tolist() == [5] * 6
    assert shared["device_lost_pages"].values.tolist() == [5 * 16 if told else 0 for told in light]
    assert shared["told"].sel(user="iommu").values.tolist() == [5 if told else 0 for told in light]
    assert private["told"].sel(user="iommu").values.tolist() == [10 if told else 0 for told in light]
    assert while_shared["refused"].values.tolist() == [0] * 6
    assert while_shared["conversions"].values.tolist() == [10] * 6
    assert while_shared["device_calls"].values.tolist() == [10] * 6
    assert while_shared["told"].sel(user="iommu").values.tolist() == [0] * 6  # unmapped before anything goes
    assert len(plots_designs.device_users(made).axes) == 3


def test_bad_input() -> None:
    with pytest.raises(WorkbenchError, match="conversions: 9 of 16 MiB"):
        device_users("16 MiB", 9)
