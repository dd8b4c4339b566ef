"""The package can be imported before Django is set up, and after."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_can_be_imported_before_django_is_set_up() -> None:
    names = run(
        "import comm; print(*[name for name in comm.__all__ if getattr(comm, name) is not None])"
    ).split()
    assert {"ChatCommunicator", "IEventFilter", "AIBEmitters", "Decision", "Envelope"} <= set(names)


def test_the_package_imports_no_models() -> None:
    assert run("import comm, sys; print('comm.models' in sys.modules)").strip() == "False"
