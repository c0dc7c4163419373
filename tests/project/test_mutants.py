"""The list of mutants is of this code: what each replaces stands once where it says, and the tests that it asks are there."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTANTS = tomllib.loads((ROOT / "tests/mutants/mutants.toml").read_text(encoding="utf-8"))["mutant"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant["name"] for mutant in MUTANTS])
def test_what_a_mutant_replaces_stands_once(mutant: dict) -> None:
    """Only a part of the list runs each day: a mutant that lost its place would be found weeks later."""
    assert (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"]) == 1
    assert mutant["new"] != mutant["old"]
    assert all((ROOT / name.partition("::")[0]).exists() for name in mutant["tests"])
