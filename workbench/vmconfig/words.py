"""Command lines as people keep them: in scripts, in libvirt's logs, from ``ps`` or /proc/PID/cmdline."""

from __future__ import annotations

import json
import re
from typing import Any

from workbench.bitmap_lists import is_whole
from workbench.errors import WorkbenchError, at_line

_UNITS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,18}(?:\.[0-9]{1,9})?)\s{0,4}([bBkKmMgGtTpP]?)(?:i?[bB])?")
MAX_WORDS = 20_000


class Word(str):
    """A word that knows the line it starts in."""

    line: int

    def __new__(cls, text: str, line: int = 0) -> Word:
        word = super().__new__(cls, text)
        word.line = line
        return word


def line_of(word: str) -> int:
    """The line of a word, 0 if it has none."""
    return getattr(word, "line", 0)


def split(text: str) -> list[Word]:
    """Words of a command line: quotes, escapes and continued lines as a shell has them, JSON in braces as it stands.

    A text with NUL characters is /proc/PID/cmdline and is split at those alone.
    """
    if "\x00" in text:
        return [Word(word) for word in text.split("\x00") if word]
    words: list[Word] = []
    position, end = 0, len(text)
    line, counted = 1, 0
    while position < end:
        character = text[position]
        if character.isspace():
            position += 1
        elif character == "#" and (position == 0 or text[position - 1] in "\n\r"):
            position = text.find("\n", position) if "\n" in text[position:] else end
        elif text.startswith(("\\\n", "\\\r\n"), position):
            position += 2
        else:
            line, counted = line + text.count("\n", counted, position), position
            with at_line(line):
                word, position = _word(text, position)
            words.append(Word(word, line))
            if len(words) > MAX_WORDS:
                raise WorkbenchError(f"more than {MAX_WORDS} words; one command line is expected", line)
    return words


def _word(text: str, position: int) -> tuple[str, int]:
    if text[position] == "{":  # from ps, which takes the quotes off
        try:
            value, stop = json.JSONDecoder().raw_decode(text, position)
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(value, dict):
                return text[position:stop], stop
    parts: list[str] = []
    start, end = position, len(text)
    while position < end and not text[position].isspace():
        character = text[position]
        if character == "'":
            stop = text.find("'", position + 1)
            if stop < 0:
                raise WorkbenchError(f"quote ' is not closed after {text[start : start + 30]!r}")
            parts.append(text[position + 1 : stop])
            position = stop + 1
        elif character == '"':
            position += 1
            while position < end and text[position] != '"':
                if text[position] == "\\" and position + 1 < end and text[position + 1] in '"\\$`\n':
                    position += 1
                parts.append(text[position])
                position += 1
            if position >= end:
                raise WorkbenchError(f'quote " is not closed after {text[start : start + 30]!r}')
            position += 1
        elif character == "\\" and position + 1 < end:
            if text[position + 1] not in "\r\n":
                parts.append(text[position + 1])
            elif text.startswith("\r\n", position + 1):
                position += 1
            position += 2
            if parts == [] and position < end and text[position].isspace():
                break
        else:
            parts.append(character)
            position += 1
    return "".join(parts), position


def key_values(text: str, first: str) -> list[tuple[str, str]]:
    """``a,b=1,c=x,,y`` to pairs; the first part without ``=`` is the value of ``first``, others are ``on``.

    QEMU: util/keyval.c, util/qemu-option.c. A comma in a value is doubled.
    """
    pairs: list[tuple[str, str]] = []
    for number, part in enumerate(text.replace(",,", "\x01").split(",")):
        plain = part.replace("\x01", ",")
        key, equals, value = plain.partition("=")
        if equals:
            pairs.append((key, value))
        elif number == 0:
            pairs.append((first, plain))
        elif plain:
            pairs.append((plain, "on"))
    return pairs


def size(text: Any, what: str, unit: str = "b") -> int:
    """``4G``, ``1.5G``, ``0x1000`` or a number of ``unit`` as bytes (QEMU: util/cutils.c, qemu_strtosz)."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text << _UNITS[unit]
    found = _SIZE.fullmatch(str(text).strip()) if len(str(text)) < 64 else None
    if found is None:
        raise WorkbenchError(f"{what}: {str(text)[:30]!r} is not a size such as 4G")
    number, suffix = found.groups()
    shift = _UNITS[(suffix or unit).lower()]
    if "." in number:
        bytes_ = round(float(number) * (1 << shift))
    else:
        bytes_ = int(number, 16 if number.startswith("0x") else 10) << shift
    if bytes_ > 1 << 60:
        raise WorkbenchError(f"{what}: {str(text)[:30]!r} is more than an exbibyte")
    return bytes_


def whole(text: Any, what: str, most: int = 1 << 20) -> int:
    """A count or id."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not is_whole(text.strip()) or int(text) > most:
        raise WorkbenchError(f"{what}: {str(text)[:30]!r} is not a number up to {most}")
    return int(text)
