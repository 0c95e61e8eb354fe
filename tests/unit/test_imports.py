"""What programs import before they do anything: nobody forwards while they do, and each command waits for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ARRAYS = "numpy"
RARE = ("asyncio", "click", "multiprocessing", "psutil", "rich", "subprocess", "tempfile")


def imported(code: str, *names: str) -> list[str]:
    """Return which of these modules a new Python has imported after it has run some code."""
    said = f"{code}\nimport sys, json\nprint(json.dumps([name for name in {names} if sys.modules.get(name)]))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["legacy.command", "legacy.forwarding"])
def test_the_names_of_1999_need_no_arrays(module):
    assert imported(f"import fastmasq.{module}", ARRAYS, *RARE) == []


def test_commands_that_ask_a_forwarder_import_what_they_show_only_when_they_show_it():
    asking = ("confirm", "forward", "log", "proc", "redirect", "reload", "rule", "sessions", "status", "upgrade", "vpn")
    modules = ", ".join(f"fastmasq.cli.{name}" for name in asking)
    code = f"import fastmasq.control.client, {modules}"
    assert imported(code, ARRAYS, "asyncio", "fastmasq.daemon", "fastmasq.kernel", "psutil", "rich") == []


def test_a_configuration_is_read_without_arrays():
    assert imported("from fastmasq.config.load import SAMPLE, load; load(SAMPLE)", ARRAYS, "asyncio", "rich") == []


def test_a_forwarder_is_imported_without_what_it_never_calls():
    code = (
        "from fastmasq.daemon import lean\n"
        "with lean.imports():\n"
        "    from fastmasq.config.load import load\n"
        "    from fastmasq.daemon.engine import run_forever\n"
    )
    never = ("ssl", "_ssl", "_hashlib", "cryptography")  # of _hashlib libcrypto comes
    ours = [f"fastmasq.{folder}" for folder in ("advice", "deploy", "lab", "legacy", "migrate", "tools")]
    assert imported(code, *never, *ours, "click", "multiprocessing", "psutil", "rich", "tempfile") == []


def test_what_the_daemon_is_imported_without_can_be_had_afterwards():
    code = (
        "from fastmasq.daemon import lean\n"
        "with lean.imports():\n"
        "    import asyncio, numpy\n"
        "import gc, os, ssl\n"
        "assert gc.isenabled() and 'OPENBLAS_NUM_THREADS' not in os.environ\n"
    )
    assert imported(code, "ssl") == ["ssl"]
