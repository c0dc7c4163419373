"""The order of a host's touches is that of the rotation's steps, whether or not single pages are tracked."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb

PAGE = 4096
ORDERS = [{"order": "reverse"}, {"order": "strided", "stride": 3}, {"order": "random", "seed": 7}]


def nodes(order, *more, start=4, count=20):
    """Node of each page after a touch in an order under a policy that interleaves, -1 where there is none."""
    host = {"name": "h", "distances": [[10, 20, 20], [20, 10, 20], [20, 20, 10]],
            "nodes": [{"id": n, "memory_bytes": 1 << 30, "cpus": [n]} for n in range(3)]}  # fmt: skip
    operations = [
        {"op": "create"},
        {"op": "mbind", "offset": 0, "length": 32 * PAGE, "mode": "interleave", "nodes": "0-2"},
        *more,
        {"op": "fault", "by": "host", "offset": start * PAGE, "length": count * PAGE, **order},
    ]
    dataset = wb.simulate(wb.Scenario.model_validate(
        {"host": host, "guest": {"memory": 32 * PAGE}, "operations": operations, "output": "pages", "strict": False}
    ))  # fmt: skip
    return dataset["page_node"].values.ravel().tolist(), dataset


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order["order"])
def test_a_pin_elsewhere_does_not_change_where_pages_go(order):
    """One page of the file is pinned: from then on every page of it is tracked."""
    first = {"op": "fault", "by": "host", "offset": 31 * PAGE, "length": PAGE}
    plain, _ = nodes(order, first)
    tracked, _ = nodes(order, first, {"op": "pin", "offset": 31 * PAGE, "length": PAGE})
    assert plain == tracked and sorted(set(plain)) == [-1, 0, 1, 2]
    assert plain[4:24] != np.resize([1, 2, 0], 20).tolist(), "not the order of the pages"


@pytest.mark.parametrize(("order", "first"), [(ORDERS[0], 39), (ORDERS[1], 33)], ids=["reverse", "strided"])
def test_the_first_page_that_fails_is_the_first_in_order(order, first):
    """Touches of [24, 40) of a file of 32 pages; of a stride of 3, page 33 is the first beyond the end."""
    pin = {"op": "pin", "offset": 0, "length": PAGE}
    for more in ((), (pin,)):
        _, dataset = nodes(order, *more, start=24, count=16)
        detail = str(dataset["event_detail"].values[-1])
        assert f'"first": {first}' in detail and '"bad": 8' in detail


@pytest.mark.parametrize(("count", "first"), [(10, 13), (40, 43)], ids=["within", "beyond the end"])
def test_the_first_private_page_in_reverse_order(count, first):
    """Pages 6, 7 and 13 are private: the last of them fails first, or the last page of all, which is beyond the end."""
    host = {"name": "h", "distances": [[10]], "nodes": [{"id": 0, "memory_bytes": 1 << 30, "cpus": [0]}]}
    operations = [
        {"op": "create"},
        {"op": "convert", "to": "shared"},
        *({"op": "convert", "to": "private", "offset": page * PAGE, "length": PAGE} for page in (6, 7, 13)),
        {"op": "fault", "offset": 4 * PAGE, "length": count * PAGE, "order": "reverse"},
    ]
    guest = {
        "memory": 32 * PAGE,
        "vm_type": "sw_protected",
        "conversion": {"mode": "in-place"},
    }
    dataset = wb.simulate(
        wb.Scenario.from_mapping({"host": host, "guest": guest, "operations": operations, "strict": False})
    )
    detail = str(dataset["event_detail"].values[-1])
    assert f'"first": {first}' in detail and f'"bad": {3 if count == 10 else 3 + 12}' in detail
