"""Texts that people are shown: names, titles and comments, without characters that terminals or files take as commands."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator

_OTHER = {"Cc": "control character", "Cs": "lone surrogate", "Zl": "line separator", "Zp": "paragraph separator"}
# They turn the direction of the text around them (Unicode TR 36).
_TURNS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def without_controls(text: str, allowed: str = "") -> str:
    """The text as it is. Raises ValueError that names the first character that may not stand in it."""
    if text.isascii() and text.isprintable():
        return text
    for position, character in enumerate(text):
        what = "turn of direction" if character in _TURNS else _OTHER.get(unicodedata.category(character))
        if what and character not in allowed:
            raise ValueError(f"{text[:40]!a} has a {what} (U+{ord(character):04X}) at {position}; names have none")
    return text


Name = Annotated[str, AfterValidator(without_controls)]
"""One line."""
Prose = Annotated[str, AfterValidator(lambda text: without_controls(text, "\n\t"))]
"""Lines."""
