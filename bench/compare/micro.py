"""The whole path over a memory ring and the opening of sessions, as each tree's own micro-benchmarks measure them.

The sources of two commits differ in names and shape, so neither can measure the other. What both have is asked for:
pytest-benchmark's JSON of bench/micro/test_path.py, where a test's name says what it measures, and `ns_per_packet` its
median. The fastest run counts here: what the machine does beside makes runs slower, never faster.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from fastmasq.errors import FastmasqError
from fastmasq_bench.compare.trees import Tree
from fastmasq_bench.lab.figures import Figure

NAME = "micro"

_TESTS = "bench/micro/test_path.py"
_CHOICE = "whole_path or open_sessions"
_SECONDS = "0.3"  # for each: memory falls out differently for every process, so more processes tell more than more time
_COMPLAINT_LINES = 15


def measure(tree: Tree) -> dict[Figure, float]:
    """Return nanoseconds per packet, in one process of the tree's own. Raises FastmasqError if its tests fail."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        # Without the tree's own options, which switch benchmarks off, and without plugins that shuffle them.
        argv = [str(tree.python), "-m", "pytest", _TESTS, "-k", _CHOICE, "-o", "addopts=", "-q", "--tb=short",
                "-p", "no:cacheprovider", "-p", "no:randomly",
                f"--benchmark-json={file}", f"--benchmark-max-time={_SECONDS}"]  # fmt: skip
        done = subprocess.run(argv, cwd=tree.root, capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()[-_COMPLAINT_LINES:]
            raise FastmasqError("\n".join([f"{_TESTS} failed:", *said]))
        return figures_of(json.loads(file.read_text()))


def figures_of(document: dict) -> dict[Figure, float]:
    """Return the figures in a JSON document of pytest-benchmark, named by the tests."""
    figures = {}
    for one in document["benchmarks"]:
        fastest = one["stats"]["min"] / one["stats"]["median"]
        figures[_figure(one["name"])] = one["extra_info"]["ns_per_packet"] * fastest
    return figures


def _figure(test: str) -> Figure:
    return Figure(test, f"micro, {test.removeprefix('test_').replace('_', ' ')}", "ns/packet", higher_is_better=False)
