"""Published tables: exact rows agree to the digit, predictions stay within the goal or say why, roles are honest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import WorkbenchError
from workbench.truth import published

EXACT = {"accept_exits": 6, "hvo_savings": 20, "hvo_split_cost": 8, "snp_rmp": 6, "swiotlb_size": 27, "walk_refs": 9,
         "wi_auto": 16, "wi_page_counts": 12, "wi_socket_aware": 4, "tdx_pamt": 2}  # fmt: skip


@pytest.fixture(scope="module")
def everything():
    return published.reproduce_all()


@pytest.mark.parametrize("name", EXACT)
def test_exact_rows_are_exact(name):
    summary = published.summary(published.reproduce(name))
    assert summary["exact"] == EXACT[name] and summary["exact_misses"] == 0


def test_every_table_has_source_and_model(everything):
    names = published.table_names()
    assert set(everything["table"].values) == set(names)
    for name in names:
        table = published.read_table(name)
        assert len(table.source) > 10
        assert "kind" in table.model


def test_predictions_meet_the_goal_or_say_why(everything):
    predicted = everything.sel(row=everything["role"] == "predicted")
    deviation = np.abs(predicted["deviation"].values)
    median_goal, worst_goal = published.PREDICTED_GOAL
    assert len(deviation) >= 130
    assert np.median(deviation) <= median_goal
    beyond = deviation > worst_goal
    assert beyond.sum() <= 2
    assert all(predicted["note"].values[beyond] != "")


def test_unmodelled_rows_say_why(everything):
    rows = everything.sel(row=everything["role"] == "unmodelled")
    assert rows.sizes["row"] and all(len(note) > 20 for note in rows["note"].values)


def test_set_values_are_not_counted_as_predictions(everything):
    """What set a parameter agrees by construction; it must not improve the figures of the predictions."""
    only_set = everything.sel(row=everything["role"] == "set")
    assert published.summary(only_set)["predicted"] == 0
    stream = published.reproduce("wi_stream")
    assert set(stream["quantity"].values[stream["role"] == "set"]) == {"DRAM only", "CXL only"}


def test_units_are_carried(everything):
    compared = everything.sel(row=everything["role"] != "unmodelled")
    assert all(unit != "" for unit in compared["unit"].values)


def test_counts_of_weighted_interleave_react_to_the_weights(tmp_path):
    text = published.datasets_path("published", "wi_page_counts.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("54828", "54827"))
    assert published.summary(published.reproduce(wrong))["exact_misses"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: nested_walks", "kind: magic"), "model.kind"),
        (("columns: [guest page, ", "columns: ["), "values for"),
        (("source:", "origin:"), "'source' is missing"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, change, message):
    text = published.datasets_path("published", "walk_refs.yaml").read_text()
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(WorkbenchError, match=message) as error:
        published.reproduce(path)
    assert "\n" not in str(error.value)


def test_unknown_table_names_the_known_ones():
    with pytest.raises(WorkbenchError, match="wi_stream"):
        published.reproduce("nonsense")


def test_a_lock_nobody_waits_for():
    assert published.contended(1, 50.0, 10.0) == 60.0


def test_a_lock_that_is_always_held():
    assert published.contended(16, 0.0, 10.0) == pytest.approx(160.0)


@given(st.floats(0.0, 1e3), st.floats(0.1, 1e3), st.integers(1, 64))
def test_contention_is_bounded(own, locked, users):
    time = published.contended(users, own, locked)
    assert max(own + locked, users * locked) - 1e-6 <= time <= own + users * locked + 1e-6
    assert published.contended(users + 1, own, locked) >= time - 1e-9


@given(st.floats(1.0, 1e3), st.floats(0.1, 1e2))
def test_lock_parameters_are_recovered(own, locked):
    found = published.lock_parameters((1, own + locked), (26, published.contended(26, own, locked)))
    assert found == pytest.approx((own, locked), rel=1e-6, abs=1e-6)
