"""A command line that cannot be read is one line on standard error and exit code 2, for every command and option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from workbench.commands import cli


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that name it; groups too."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


cli._register_all()
ROOT = typer.main.get_command(cli.app)
ALL = dict(commands(ROOT))
PLAIN = {words: command for words, command in ALL.items() if not hasattr(command, "commands")}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command line is told; it must be one line, name the command, and end with 2."""
    monkeypatch.setattr(cli, "app", ROOT)  # made once, which takes longer than reading a line

    def ask(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["workbench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        assert ended.value.code == 2, (words, shown)
        assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("workbench"), (words, shown)
        assert "Usage:" not in shown.err and "Traceback" not in shown.err
        return shown.err

    return ask


def test_there_are_commands() -> None:
    assert len(PLAIN) >= 20 and ("machines", "show") in PLAIN


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_an_unknown_option_is_told_the_known_ones_and_the_nearest(words: tuple[str, ...], said: Any) -> None:
    assert "--nonesuch: there is no such option; there are " in said(*words, "--nonesuch")
    for param in ALL[words].params:
        long = max(param.opts, key=len)
        if long.startswith("--") and len(long) > 6:
            typed = long[:4] + long[5:]
            assert f"{typed}: there is no such option; did you mean '--" in said(*words, typed)


@pytest.mark.parametrize(
    "words", [words for words, command in ALL.items() if hasattr(command, "commands")], ids=" ".join
)
def test_an_unknown_command_is_told_the_known_ones(words: tuple[str, ...], said: Any) -> None:
    names = list(ALL[words].commands)
    typed = names[0][:-1] + "x" + names[0][-1]
    line = said(*words, typed)
    assert f"{typed!r} is unknown; did you mean {names[0]!r}?" in line and ", ".join(names) in line


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_values_that_are_missing_or_wrong(words: tuple[str, ...], said: Any) -> None:
    name = " ".join(["workbench", *words])
    arguments = [one for one in PLAIN[words].params if one.param_type_name == "argument"]
    if any(one.required for one in arguments):
        assert said(*words).startswith(f"{name}: ") and " is missing: " in said(*words)
    if not any(one.nargs == -1 for one in arguments):
        line = said(*words, *(["a"] * (len(arguments) + 1)))
        assert "unexpected extra argument" in line or (" is missing: " in line and "--" in line)
    for param in PLAIN[words].params:
        long = max(param.opts, key=len)
        if param.param_type_name != "option" or param.is_flag:
            continue
        assert said(*words, long) == f"workbench: {long}: a value is missing\n"
        if any(kind in str(param.type_descriptor.annotation) for kind in ("int", "float")):
            rest = ["a"] * sum(one.required for one in arguments)
            line = said(*words, f"{long}=abc", *rest)
            assert line.startswith(f"{name}: {long}: 'abc' must be a valid ")


def test_nothing_asked_is_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["workbench"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("Usage: workbench ")
