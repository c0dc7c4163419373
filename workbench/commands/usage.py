"""What a command line that cannot be read is told: one line with the word as it was typed, and what is allowed there."""

from __future__ import annotations

import re
import sys
from typing import Any

from typer.exceptions import TyperException

from workbench.names import near, unknown

_COMMAND = re.compile(r"^No such command '(.*?)'(?:\. Did you mean .*)?$", re.DOTALL)
_MOST = 60
"""Characters of a value that are repeated."""


def usage_line(error: TyperException) -> str | None:
    """The line for an error of the command line's own reader; None where nothing was asked and help is the answer."""
    ctx: Any = getattr(error, "ctx", None)
    if ctx is None:
        option = getattr(error, "option_name", None)
        return f"workbench: {f'{option}: a value is missing' if option else error.format_message()}"
    if error.message == ctx.get_help():
        return None
    return f"{ctx.command_path}: {_said(error, ctx)}; {ctx.command_path} --help explains"


def _said(error: TyperException, ctx: Any) -> str:
    """What is wrong, without the command in front of it."""
    if found := _COMMAND.match(error.message):
        return unknown(found[1], ctx.command.list_commands(ctx))
    if (param := getattr(error, "param", None)) is not None:
        return _of_parameter(error, param)
    if (option := getattr(error, "option_name", None)) is not None:
        known = _options(ctx.command.params)
        typed = _typed(option)
        return f"{typed}: there is no such option; {near(typed, known)}there are {', '.join(known)}"
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]


def _of_parameter(error: TyperException, param: Any) -> str:
    name = _name(param)
    if not error.message:
        return f"{name} is missing: {_kind(param)}"
    given = _value(param)
    wanted = error.message.replace("Input should be", "must be").partition(", unable to")[0]
    return f"{name}: {'' if given is None else f'{given[:_MOST]!a} '}{wanted}: {_kind(param)}"


def _name(param: Any) -> str:
    return (
        max(param.opts, key=len) if param.param_type_name == "option" else str(param.metavar or param.name).strip("{}")
    )


def _kind(param: Any) -> str:
    """What a parameter takes: its help, or the kind of value."""
    return str(getattr(param, "help", None) or param.make_metavar_for_help())


def _options(params: list[Any]) -> list[str]:
    return [max(one.opts, key=len) for one in params if one.param_type_name == "option"] + ["--help"]


def _typed(option: str) -> str:
    """The whole word of which the reader names the first letter only: it takes ``-wrokers`` for ``-w``."""
    words = [word.partition("=")[0] for word in sys.argv[1:]]
    return next((word for word in words if word.startswith(option)), option)


def _value(param: Any) -> str | None:
    """The value of an option as it was typed."""
    words = sys.argv[1:]
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in param.opts:
            return value if equals else next(iter(words[at + 1 :]), None)
    return None
