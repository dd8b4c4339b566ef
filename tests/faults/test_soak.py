"""`make soak`: it runs, reports, and comes to a verdict."""

import os
import subprocess
import sys

from tests.databases import postgres_or_skip
from tests.processes import ROOT


def test_a_short_soak_ends_with_its_verdict() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.25", "--users", "3"],
        cwd=ROOT, env={**os.environ, "POSTGRES_URL": postgres_or_skip()}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = [line for line in done.stdout.splitlines() if "  " in line]
    assert "subs." in head
    assert rows
    assert " success" in done.stdout
    assert done.stdout.endswith("Verdict: all was well.\n")
