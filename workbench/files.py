"""Files that are either whole or not there: written beside their place, then renamed onto it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import WorkbenchError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; rename it to ``path`` at the end, remove it on any failure.

    The directory is made if it is missing, and tried at once, so that a place nobody may write to is refused before
    the work is done. Raises WorkbenchError for a read-only or full directory.
    """
    path = Path(path)
    if path.is_dir():
        raise WorkbenchError(f"cannot write {str(path)!r}: it is a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise WorkbenchError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
        except OSError as error:
            raise WorkbenchError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
