"""A fault of the workbench itself: what a report of it needs, written to a file with a name that is told."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback

from workbench.results import software_versions


def write(error: BaseException) -> str | None:
    """The command, versions and traceback of an exception in a new file of ours (mode 0600); None if it cannot be kept.

    It lies in the temporary directory, so that it is there when the working directory cannot be written.
    """
    lines = [f"command: {sys.argv!r}", f"python: {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name}: {version}" for name, version in software_versions().items()]
    text = "\n".join([*lines, "", *traceback.format_exception(error)])
    try:
        handle, name = tempfile.mkstemp(prefix="workbench-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return name
