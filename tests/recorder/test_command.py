"""``workbench record``: errors are one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(*arguments, stdin=""):
    command = [sys.executable, "-m", "workbench.commands.cli", "record", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel-selftest-mbind", "--kernel", "nowhere", "-o", "OUT"], "--kernel nowhere: no such file or directory"),
        (["snp-guest-boots", "--kernel", "nowhere", "-o", "OUT"], "--kernel nowhere: no such file or directory"),
        (["kernel-selftest-mbind", "--kernel", "."], "-o: missing"),
        (
            ["snp-guest-boots", "--kernel", "nowhere", "-o", "OUT", "--set", "kernel_profile=none"],
            "'none' is unknown; there are 6.12",
        ),
        (["snp-guest-boots", "--kernel", "nowhere", "-o", "OUT", "--host", "none"], "machine: 'none' is not known"),
        (["nothing.txt", "--kernel", ".", "-o", "OUT"], "'nothing.txt': No such file or directory"),
        (
            ["kernel-selftest-mbind", "--kernel", ".", "-o", "OUT", "--qemu", "no-qemu"],
            "Debian package qemu-system-x86",
        ),
        (["kernel-selftest-mbind", "--kernel", ".", "-o", "OUT", "--budget", "much"], "much"),
        (["full-node", "--kernel", ".", "-o", "OUT"], "at most 512 MiB"),
        (["interface-fbind", "--kernel", ".", "-o", "OUT"], "guest.policy_interface: 'fbind' cannot be recorded"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    out = tmp_path / "r.json.gz"
    done = run(*[str(out) if word == "OUT" else word for word in arguments])
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("workbench: ") and message in lines[0], done.stderr
    assert not out.exists()


def test_script_needs_a_host(tmp_path):
    script = tmp_path / "s.txt"
    script.write_text("scenario a\ncreate g0 4 0\n")
    done = run(script, "--kernel", ".", "-o", tmp_path / "r.json")
    assert done.returncode == 2 and "--host: missing" in done.stderr


def test_help_names_the_packages():
    done = run("--help")
    assert done.returncode == 0
    for package in ("qemu-system-x86", "libc6-dev", "linux-binary-VERSION"):
        assert package in done.stdout
