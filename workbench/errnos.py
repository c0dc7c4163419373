"""Names of errno values, as the kernel has them."""

from __future__ import annotations

import errno

EHWPOISON = 133
"""include/uapi/asm-generic/errno.h; Python's errno has no name for it."""
_KERNEL = {errno.EAGAIN: "EAGAIN", errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP", EHWPOISON: "EHWPOISON"}
"""Where Python knows several names, or none: the one that the kernel's sources use."""


def errno_name(number: int) -> str:
    """The kernel's name of an errno, empty for 0; the number where there is no name."""
    return _KERNEL.get(number) or errno.errorcode.get(number, str(number)) if number else ""
