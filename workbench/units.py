"""Sizes and durations as people write them ("2 MiB", "80 ns") to integers, at the border of the package."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from workbench.errors import WorkbenchError
from workbench.limits import PROCESSES, SECONDS

if TYPE_CHECKING:
    import pint

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
"""Bytes of a base page (x86-64)."""
PAGE_ORDERS = {"4 KiB": 0, "2 MiB": 9, "1 GiB": 18}
"""Order of each page size that page tables can map (x86-64), smallest first."""
_BINARY = {unit: 1 << 10 * power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))}

_NUMBER = r"(?:[0-9]{1,24}(?:\.[0-9]{0,24})?|\.[0-9]{1,24})(?:[eE][-+]?[0-9]{1,2})?"
_PLAIN = re.compile(r"\s{0,8}([0-9]{1,15})\s{0,8}(B|[KMGTP]iB)\s{0,8}", re.ASCII)
"""What nearly every scenario writes."""
_SIZE = re.compile(rf"\s{{0,8}}([-+]?{_NUMBER})\s{{0,8}}([A-Za-z]{{0,12}})\s{{0,8}}", re.ASCII)
_PRINTED = re.compile(rf"-?{_NUMBER}", re.ASCII)


def parse_number(word: str) -> float:
    """A number as programs print it: ASCII digits, a point, an exponent. Raises ValueError for all else.

    ``float`` takes ``1_0``, digits of other scripts, ``nan`` and ``infinity`` besides.

    >>> parse_number("-12.5e3")
    -12500.0
    """
    if not _PRINTED.fullmatch(word):
        raise ValueError(f"{word[:30]!a} is no number")
    return float(word)


def check_seconds(value: float, field: str) -> float:
    """A time limit in seconds as it was given. Raises WorkbenchError for none (NaN too) and for more than a year."""
    if not 0 < value <= SECONDS:
        raise WorkbenchError(f"{field}: {value!r:.30} seconds; a number above 0 and up to {SECONDS:,} is needed")
    return value


def check_processes(value: int, field: str, least: int = 1) -> int:
    """How many processes may be started at once, as it was given. Raises WorkbenchError for too few or too many."""
    if not least <= value <= PROCESSES:
        raise WorkbenchError(f"{field}: {value!r:.30} at once; {least} to {PROCESSES:,} are allowed")
    return value


@functools.cache
def _registry() -> pint.UnitRegistry:
    import pint

    return pint.UnitRegistry(cache_folder=None)


@functools.lru_cache(maxsize=64)
def _bytes_of(unit: str) -> Fraction | None:
    """Bytes of a unit of information (none: a byte); None if it is none."""
    if not unit:
        return Fraction(1)
    import pint

    registry = _registry()
    try:
        one = registry.Quantity(1, unit).to_root_units()
    except (pint.errors.PintError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError):
        return None
    return (
        Fraction(one.m) / 8 if one.u == registry.bit else None
    )  # pint has bits, radians and per cent without dimension


def parse_bytes(value: int | str, field: str = "size") -> int:
    """Return a size in bytes from an integer (bytes) or a text such as ``"512 MiB"`` or ``"1.5 GiB"``.

    >>> parse_bytes("1.5 GiB"), parse_bytes("2MiB"), parse_bytes(4096)
    (1610612736, 2097152, 4096)
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise WorkbenchError(f"{field}: {value!r} is not a size; write bytes or a text such as '2 MiB'")
    if isinstance(value, int):
        number = value
    else:
        try:
            number = _bytes_of_text(value)
        except ValueError as error:
            raise WorkbenchError(f"{field}: {error}") from None
    if number < 0:
        raise WorkbenchError(f"{field}: {value!r} is negative; sizes are 0 or more")
    return number


@functools.lru_cache(maxsize=4096)  # operations have the same few lengths
def _bytes_of_text(text: str) -> int:
    """Bytes of a number and a unit; negative ones, too. Raises ValueError."""
    if plain := _PLAIN.fullmatch(text):  # without the second that importing pint takes
        return int(plain[1]) * _BINARY[plain[2]]
    # One number and one unit. pint reads expressions too, would work out "9**9**9**9 B" for ever, and takes "017"
    # for 0: it says what a unit is, and no more.
    found = _SIZE.fullmatch(text)
    factor = None if found is None else _bytes_of(found[2])
    if found is None or factor is None:
        shown = repr(text) if len(text) <= 64 else f"{text[:20]!r}..."
        raise ValueError(f"{shown} is not a size such as '2 MiB'")
    exact = Fraction(found[1]) * factor
    if exact.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return exact.numerator


def page_size_name(value: object) -> object:
    """A page size by its name here, however it is written (``"2MiB"``, ``2097152``); anything else as it is."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            size = parse_bytes(value)
        except WorkbenchError:
            return value
        return next((name for name, order in PAGE_ORDERS.items() if PAGE_SIZE << order == size), value)
    return value


def byte_unit(largest: float) -> tuple[float, str]:
    """The unit in which numbers up to ``largest`` bytes are read best: (bytes of one unit, name)."""
    for unit, size in reversed(_BINARY.items()):
        if abs(largest) >= size:
            return float(size), unit
    return 1.0, "B"


def format_bytes(number: float) -> str:
    """Return a size for people.

    >>> format_bytes(1536 * 2**20)
    '1.5 GiB'
    """
    size, unit = byte_unit(number)
    return f"{number / size:.4g} {unit}"


def exact_bytes(number: int) -> str:
    """A size that :func:`parse_bytes` reads back to the same number.

    >>> exact_bytes(256 << 30), exact_bytes(4100 << 10), exact_bytes(1025)
    ('256 GiB', '4100 KiB', '1025 B')
    """
    unit, size = next((u, size) for u, size in reversed(_BINARY.items()) if number % size == 0 and (number or u == "B"))
    return f"{number // size} {unit}"
