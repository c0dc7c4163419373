"""What the cost model is worth on machines that are left out; the figures in the documentation are these."""

from __future__ import annotations

import json
import math

import pytest

from workbench.cost import profile as profiles
from workbench.truth import held_out


@pytest.fixture(scope="module")
def rows() -> tuple[held_out.HeldOut, ...]:
    return held_out.held_out()


def test_goals_are_reached_by_the_median(rows: tuple[held_out.HeldOut, ...]) -> None:
    found = held_out.summaries(rows)
    assert [one.question.name for one in found if not one.reached] == []
    assert all(one.width < 2.5 for one in found)
    generation = found[-1]
    assert generation.inside / generation.values >= 0.9


def test_no_machine_predicts_itself(rows: tuple[held_out.HeldOut, ...]) -> None:
    classes = profiles.classes()
    was = classes["rome"].costs["dram_latency"]
    mine = next(row for row in rows if (row.machine, row.quantity) == ("rome", "dram_latency"))
    assert mine.published == was.value
    assert mine.predicted == pytest.approx(classes["genoa"].costs["dram_latency"].value), "Naples' is an estimate"
    cascade = next(row for row in rows if (row.machine, row.quantity) == ("cascadelake", "dram_latency"))
    both = (classes[name].costs["dram_latency"].value for name in ("skylake", "sapphire-rapids"))
    assert cascade.predicted == pytest.approx(math.sqrt(math.prod(both)))


def test_estimates_have_the_range_that_neighbours_were_found_to_have() -> None:
    factors = held_out.neighbour_factors()
    for made in profiles.classes().values():
        for name, cost in made.costs.items():
            if name in factors and "estimate from neighbouring" in cost.source:
                half = min(cost.value / cost.low, cost.high / cost.value)
                assert half >= factors[name] - 0.005, (made.name, name)


def test_the_command_prints_the_table() -> None:
    import typer
    from typer.testing import CliRunner

    from workbench.commands import reproduce

    app = typer.Typer()
    app.callback()(lambda: None)
    reproduce.register(app)
    shown = CliRunner().invoke(app, ["reproduce", "--held-out", "--json"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.output)
    assert {row["question"] for row in document["rows"]} == {q.name for q in held_out.QUESTIONS}
