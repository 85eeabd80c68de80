"""`topicscale report`: one self-contained HTML file about a store's newest run."""

from __future__ import annotations

import os
from pathlib import Path

from topicscale import report as page
from topicscale.errors import RequestError
from topicscale.store import Store


def report(store: str, output: str | Path) -> Path:
    """Write the report and return its path. A file that is there already is replaced at once or not at all.

    Raises
    ------
    RequestError
        The output's folder does not exist, or the output is a folder.
    """
    if "://" in str(output):
        raise RequestError(f"--output must be a file of this machine. Got {str(output)!r} instead: write it here, then copy it there.")
    path = Path(output).expanduser().resolve()
    if path.is_dir():
        raise RequestError(f"--output must be a file. {str(path)!r} is a folder.")
    if not path.parent.is_dir():
        raise RequestError(f"--output must be in a folder that exists. Make it first: mkdir -p {path.parent}")
    source = Store(store)
    data = page.load(source, title=source.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(page.build(data), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
