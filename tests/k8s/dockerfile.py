"""Read a Dockerfile, and run in a clean folder those of its steps that need no container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.k8s.rendering import K8S, ROOT

CONTAINER_ONLY = re.compile(r"\b(apt-get|useradd)\b")
"""Commands that change the machine itself."""


def instructions(name: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions: the word, and the rest on one line."""
    text = (K8S / "images" / f"{name}.Dockerfile").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


def build(name: str, root: Path, environment: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Run an image's steps under ``root``, which stands for its file system.

    Parameters
    ----------
    environment
        Variables that replace those of ENV instructions: the build's own caching and certificates.

    Returns
    -------
    (environment, left_out)
        The variables of the finished image, paths moved below ``root``, and the RUN steps that were not run.
    """
    own: dict[str, str] = {}
    left_out = []
    folder = root

    def moved(value: str) -> str:
        return re.sub(r"(?<![\w/])/opt/", f"{root}/opt/", value)

    for word, rest in instructions(name):
        if word == "ENV":
            own |= {key: moved(value) for key, _, value in (part.partition("=") for part in rest.split())}
        elif word == "ARG" and not rest.startswith("BASE="):
            key, _, value = rest.partition("=")
            own[key] = value
        elif word == "WORKDIR":
            folder = root / rest.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                path, to = ROOT / source, folder / target
                if path.is_dir():
                    shutil.copytree(path, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, to)
        elif word == "RUN" and CONTAINER_ONLY.search(rest):
            left_out.append(rest)
        elif word == "RUN":
            inherited = {
                key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON", "PYSPARK", "SPARK"))
            }
            done = subprocess.run(
                ["sh", "-c", rest], cwd=folder, env=inherited | own | environment, capture_output=True, text=True, timeout=1500, check=False
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return own, left_out
