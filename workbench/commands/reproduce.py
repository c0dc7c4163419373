"""The command ``reproduce``: published tables beside the model."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def reproduce(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Tables by id, or YAML files; all if left out.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the tables and stop.")] = False,
    kinds: Annotated[bool, typer.Option("--kinds", help="Describe what a table of your own may ask for.")] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Leave each machine out in turn and predict it from the others.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print rows and summaries as JSON.")] = False,
) -> None:
    """Run the model on published tables: published value, modelled value, deviation.

    Exit code 1 if a value that must be exact is not.
    """
    from workbench.truth import published

    if list_:
        for name in published.table_names():
            typer.echo(f"{name:<24}{published.read_table(name).title}")
        return
    if kinds:
        for kind, text in published.DESCRIPTIONS.items():
            typer.echo(f"{kind}: {text}")
        return
    if held_out:
        _print_held_out(json_)
        return
    results = published.reproduce_each(tables)
    summaries = [published.summary(result) for result in results]
    if json_:
        documents = [
            {
                **{key: str(value) for key, value in result.attrs.items()},
                "rows": _rows(result),
                "summary": _finite(summary),
            }
            for result, summary in zip(results, summaries, strict=True)
        ]
        typer.echo(json.dumps(documents, indent=1))
    else:
        typer.echo(published.HEADING)
        for result, summary in zip(results, summaries, strict=True):
            typer.echo()
            for line in published.lines(result):
                typer.echo(line)
            typer.echo(f"  {_sentence(summary)}")
        if len(results) > 1:
            typer.echo(f"\n{len(results)} tables: {_sentence(published.summary(published.combine(results)))}")
    if any(summary["exact_misses"] for summary in summaries):
        raise typer.Exit(1)


def _print_held_out(as_json: bool) -> None:
    from workbench.truth import held_out

    rows = held_out.held_out()
    found = held_out.summaries(rows)
    if as_json:
        answers = [{**vars(one), "question": vars(one.question), "reached": one.reached} for one in found]
        typer.echo(json.dumps({"rows": [vars(row) for row in rows], "questions": answers}, indent=1))
        return
    typer.echo(
        f"{'predicted':<20}{'given':<40}{'values':>7}{'median':>9}{'goal':>7}{'worst':>9}{'inside':>9}{'goal':>7}{'range':>9}"
    )
    for one in found:
        line = f"{one.question.name:<20}{one.question.given:<40}{one.values:>7}"
        line += f"{_part(one.median, ' %'):>9}{_part(one.question.goal, ' %', 0):>7}{_part(one.worst, ' %'):>9}"
        line += f"{_part(100 * one.inside / one.values, ' %', 0):>9}{_part(100 * one.question.inside, ' %', 0):>7}"
        line += f"{_part(one.width, ' x', 2):>9}"
        if one.question.signs:
            line += f"  {one.signs} of {one.values} signs right; {one.signs_possible} can be: some of the same traffic differ"
        typer.echo(line)
    typer.echo(
        "range: from low to high, the median; inside: published values that lie in theirs. No machine predicts itself."
    )


def _part(value: float, unit: str, digits: int = 1) -> str:
    return "-" if value != value else f"{value:.{digits}f}{unit}"


def _rows(result: object) -> list[dict[str, object]]:
    frame = result.to_dataframe()  # type: ignore[attr-defined]
    rows: list[dict[str, object]] = json.loads(frame.to_json(orient="records", double_precision=12))
    return rows


def _finite(summary: dict[str, float]) -> dict[str, float | None]:
    return {key: (None if value != value else value) for key, value in summary.items()}


def _sentence(summary: dict[str, float]) -> str:
    parts = []
    if summary["exact"]:
        kinds = ", ".join(f"{int(summary[name])} {name}" for name in ("derived", "formula") if summary[name])
        parts.append(f"{int(summary['exact'])} exact values ({kinds}), {int(summary['exact_misses'])} wrong")
    for name in ("predicted", "calibrated"):
        if summary[name]:
            parts.append(
                f"{int(summary[name])} {name}, median {summary[f'{name}_median']:.1f} %, "
                f"worst {summary[f'{name}_worst']:.1f} %, {int(summary[f'{name}_beyond_goal'])} beyond 25 %, "
                f"{int(summary[f'{name}_inside'])} inside their range"
            )
    parts.append(f"{int(summary['set'])} set, {int(summary['unmodelled'])} without a model")
    return "; ".join(parts)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(reproduce)
