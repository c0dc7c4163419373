"""JupyterLab and Voila on 127.0.0.1 with a token, and Debian's Chromium: for tests that look at what a page shows."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
# Root cannot use the sandbox, /dev/shm is tiny in containers, and nothing may look for updates in the background.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
_LAB_SETTINGS = {
    # No pop-up over the page, and cells off screen are in the page too.
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(directory: Path) -> dict[str, str]:
    """No setting of the user leaks into the test, and none of the test into the user's."""
    for name, text in _LAB_SETTINGS.items():
        path = directory / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return os.environ | {
        "JUPYTER_CONFIG_DIR": f"{directory}/config",
        "JUPYTER_DATA_DIR": f"{directory}/data",
        "JUPYTER_RUNTIME_DIR": f"{directory}/runtime",
        "IPYTHONDIR": f"{directory}/ipython",
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTERLAB_SETTINGS_DIR": f"{directory}/settings",
        "JUPYTERLAB_WORKSPACES_DIR": f"{directory}/workspaces",
    }


@contextlib.contextmanager
def started(command: list[str], ready: str, directory: Path) -> Iterator[None]:
    """A server and its kernels, ended together at the end."""
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment(directory),
            cwd=directory,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait(ready, process, directory / "server.log")
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait(url: str, process: subprocess.Popen[Any], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            if reply.status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(url)


def notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


@contextlib.contextmanager
def lab(directory: Path, name: str) -> Iterator[str]:
    """JupyterLab on ``directory``; yields the address that opens the notebook ``name``."""
    port, token = free_port(), secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        *(f"--ServerApp.root_dir={directory}", "--LabApp.expose_app_in_browser=True"),
        "--ServerApp.terminals_enabled=False",
    ]
    base = f"http://127.0.0.1:{port}"
    with started(command, f"{base}/api?token={token}", directory):
        yield f"{base}/lab/tree/{name}?token={token}&reset"


@contextlib.contextmanager
def explorer_app(directory: Path) -> Iterator[str]:
    """``workbench explore``; yields the address with its token. Ctrl-C must end it with 0."""
    command = [sys.executable, "-m", "workbench.commands.cli", "explore", "--no-browser"]
    with (directory / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment(directory), stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            found = process.stdout.readline().removeprefix("explorer: ").strip()
            wait(found.split("?")[0], process, directory / "server.log")
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
            process.stdout.close()
        assert code == 0


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page complained about and which hosts it asked."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._asked)

    def _asked(self, request: object) -> None:
        url = str(request.url)  # type: ignore[attr-defined]
        if url.startswith("http"):
            self.hosts.add(url.split("/")[2].split(":")[0])


def run_all(page: Page, address: str) -> None:
    """Open a notebook in JupyterLab and run every cell."""
    page.goto(address)
    page.wait_for_function("window.jupyterapp !== undefined")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    # The indicator says idle before there is a kernel, and a command sent then is lost: ask the session itself.
    page.wait_for_function(
        """() => {
          const kernel = window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
          return kernel?.connectionStatus === "connected" && kernel.status === "idle";
        }""",
        timeout=60_000,
    )
    # No return value: evaluate() would wait for the command's promise without a time limit.
    page.evaluate("() => { void window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
