"""``workbench explore``: a port of its own, a token that only its user sees, and an end with its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.commands import explore
from workbench.errors import WorkbenchError


def test_ports_that_cannot_be_had_are_one_line() -> None:
    with pytest.raises(WorkbenchError, match="--port: 99999 is not a port"):
        explore._port_to_use(99999)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkbenchError, match=f"--port: {port} cannot be had"):
            explore._port_to_use(port)
        assert explore._listens(os.getpid(), port)
        assert not explore._listens(os.getppid(), port), "a stranger's port is not the child's"


def _ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_the_command_and_hides_the_token(how: signal.Signals) -> None:
    command = [sys.executable, "-m", "workbench.commands.cli", "explore", "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        token = line.strip().partition("token=")[2]
        assert line.startswith("explorer: http://127.0.0.1:") and len(token) > 20
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert children
        for pid in [parent.pid, *map(int, children)]:
            assert token not in Path(f"/proc/{pid}/cmdline").read_text()
        parent.send_signal(how)
        parent.wait(40)
        deadline = time.monotonic() + 40
        while not all(_ended(int(pid)) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert all(_ended(int(pid)) for pid in children)
