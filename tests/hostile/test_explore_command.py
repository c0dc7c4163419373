"""``workbench explore``: a port of its own, a token that only its user sees, and an end with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import import_item

from workbench.commands import explore
from workbench.commands.explorer_sessions import MOST_SESSIONS, Sessions
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


def test_no_more_sessions_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def starts(self: AsyncMappingKernelManager, **_: object) -> str:
        await asyncio.sleep(0)
        self._kernels[str(len(self))] = None
        return str(len(self))

    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", starts)
    kernels = Sessions()

    async def open_tabs(count: int) -> list[object]:
        return await asyncio.gather(*(kernels.start_kernel() for _ in range(count)), return_exceptions=True)

    opened = asyncio.run(open_tabs(MOST_SESSIONS + 2))
    refused = [tab for tab in opened if isinstance(tab, HTTPError)]
    assert len(opened) - len(refused) == len(kernels) == MOST_SESSIONS == 8
    assert {tab.status_code for tab in refused} == {503} and "close a tab" in str(refused[0].reason)
    kernels._kernels.popitem()
    assert not isinstance(asyncio.run(open_tabs(1))[0], HTTPError)


def test_the_server_takes_the_limits() -> None:
    """What Voila makes of its arguments: our sessions, culled when idle, and no token among them."""
    from voila.app import Voila

    arguments = explore.voila_command(Path("x.ipynb"), 1234)[3:]
    app = Voila()
    app.parse_command_line(arguments)
    named = app.config.VoilaConfiguration.multi_kernel_manager_class
    assert import_item(named) is Sessions
    kernels = Sessions(parent=app)
    assert kernels.cull_idle_timeout == explore.IDLE_SECONDS and kernels.cull_interval == 30
    assert not kernels.cull_connected
    assert not any("token" in word for word in arguments)


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


def test_a_server_that_is_interrupted_while_it_starts_has_nothing_to_say() -> None:
    code = (
        "import os, signal, sys\nfrom workbench.commands import explorer_server\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'voila.configuration': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\nexplorer_server.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
