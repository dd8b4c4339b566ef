"""The Dockerfile, compose.yaml and Procfile as their programs read them, and run without these programs."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.processes import ROOT

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
"""Where `python` is the one of the tests."""


class Dockerfile:
    """The instructions of a Dockerfile, in order."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"(?m)^\s*#.*\n", "", path.read_text(encoding="utf-8"))
        joined = re.sub(r"\\\n\s*", " ", text)
        lines = [line for line in joined.splitlines() if line.strip()]
        self.instructions = [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]

    def all(self, name: str) -> list[str]:
        """Return the arguments of every instruction of this name."""
        return [arguments for instruction, arguments in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        """Return the arguments of the instruction that counts."""
        return self.all(name)[-1]

    @property
    def env(self) -> dict[str, str]:
        """What ENV sets."""
        pairs = [pair.split("=", 1) for arguments in self.all("ENV") for pair in shlex.split(arguments)]
        return dict(pairs)

    @property
    def command(self) -> list[str]:
        """CMD, in its exec form: the shell form does not parse."""
        return list(json.loads(self.last("CMD")))

    @property
    def healthcheck(self) -> list[str]:
        """The command of HEALTHCHECK, in its exec form."""
        return list(json.loads(self.last("HEALTHCHECK").partition("CMD ")[2]))


def build_context(folder: Path) -> Path:
    """Copy what COPY . . would: what git knows or would take, without what .dockerignore names."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file() and not is_ignored(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def is_ignored(name: str) -> bool:
    """Tell whether .dockerignore keeps a path out of the image."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    parts = name.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for pattern in patterns:
        if not pattern or pattern.startswith("#"):
            continue
        if pattern.startswith("**/"):
            if any(fnmatch.fnmatch(part, pattern[3:]) for part in parts):
                return True
        elif any(path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern) for path in above):
            return True
    return False


def procfile() -> dict[str, str]:
    """Return the command line of each process type."""
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in lines if line}


class Compose:
    """compose.yaml, with its variables at their defaults."""

    def __init__(self) -> None:
        text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        self.services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]

    def env(self, service: str, places: dict[str, str]) -> dict[str, str]:
        """Return a service's environment, with the names of other services replaced by where they are here."""
        return {
            name: translated(str(value), places)
            for name, value in self.services[service].get("environment", {}).items()
        }

    def healthcheck(self, service: str) -> list[str]:
        """Return the command of a service's own health check."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return command


def translated(text: str, places: dict[str, str]) -> str:
    """Replace every place of the containers by the one that stands for it."""
    for there, here in places.items():
        text = text.replace(there, here)
    return text


def run(command: list[str], *, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, cwd=cwd, env={"PATH": PATH, **env}, capture_output=True, text=True, timeout=240
    )
