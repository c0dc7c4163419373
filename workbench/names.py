"""Names that are nearly right: what someone who typed one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 60
"""Characters of a name that are repeated."""


def near(name: str, names: Iterable[str]) -> str:
    """``"did you mean 'fault'? "`` where one of the names is meant, as far as its letters say; else nothing.

    >>> near("falt", ["fault", "mbind"])
    "did you mean 'fault'? "
    """
    known = list(names)
    folded = {one.casefold(): one for one in reversed(known)}
    wanted = name.casefold()
    found = difflib.get_close_matches(wanted, folded, n=1)
    if not found and len(wanted) >= 3:  # a part of a long name, or nearly its beginning
        found = [one for one in folded if wanted in one][:1]
        starts = {one[: len(wanted)]: one for one in reversed(folded)}
        found = found or [starts[start] for start in difflib.get_close_matches(wanted, starts, n=1, cutoff=0.8)]
    return f"did you mean {folded[found[0]]!r}? " if found else ""


def unknown(name: str, names: Iterable[str], what: str = "there are") -> str:
    """A name that is none of ``names``: which one may be meant, and all of them."""
    known = list(names)
    return f"{name[:_SHOWN]!r} is unknown; {near(name, known)}{what} {', '.join(known)}"
