"""What the whole-run benchmarks share: corpora as JSON lines, runs of a whole process tree, tables with their command."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from jobs.benchmark import machine as machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CACHE = HERE.parent / ".cache" / "benchmarks"
PEER = HERE.parent / ".venv-bertopic" / "bin" / "python"
TOPICSCALE = (
    [sys.executable, "-m", "jobs.cli"] if not (Path(sys.prefix) / "bin" / "topicscale").exists() else [f"{sys.prefix}/bin/topicscale"]
)
_SAMPLED_EVERY = 0.5


def corpus(name: str, data: Path, *, documents: int | None = None) -> Path:
    """Return a JSON lines file with the columns id, text and, where there are any, label.

    Parameters
    ----------
    name : str
        ``agnews``, ``banking77`` (from ``data``), ``docstrings`` or ``paragraphs`` (of the installed packages).
    documents : int, optional
        The first so many.
    """
    if name in ("agnews", "banking77") and not data.is_dir():
        raise SystemExit(f"--data must be the folder with the corpora. There is no {data}.")
    path = CACHE / f"{name}{'' if documents is None else f'-{documents}'}.jsonl"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    if name == "docstrings":
        from jobs.docstrings import build_corpus

        build_corpus(path, documents, whole=True)
        return path
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as out:
        for number, row in enumerate(_rows(name, data)):
            if number == documents:
                break
            out.write(json.dumps({"id": f"{number:07d}", **row}, ensure_ascii=False) + "\n")
    part.replace(path)
    return path


def _rows(name: str, data: Path) -> Iterator[dict[str, str]]:
    if name == "agnews":
        with (data / "agnews_test.csv").open(encoding="utf-8", newline="") as file:
            for label, title, description in csv.reader(file):
                yield {"text": f"{title} {description}", "label": label}
    elif name == "banking77":
        for part in ("banking77_train.csv", "banking77_test.csv"):
            with (data / part).open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    yield {"text": row["text"], "label": row["category"]}
    elif name == "paragraphs":
        # more documents than there are docstrings, and of one distribution however many are taken
        seen: set[str] = set()
        for line in corpus("docstrings", data).open(encoding="utf-8"):
            for paragraph in re.split(r"\n\s*\n", json.loads(line)["text"]):
                text = paragraph.strip()
                if len(text) > 80 and text not in seen:
                    seen.add(text)
                    yield {"text": text}
    else:
        raise SystemExit(f"There is no corpus {name!r}.")


def read(path: Path) -> tuple[list[str], list[str]]:
    """Return texts and labels (empty where there are none)."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return [row["text"] for row in rows], [row["label"] for row in rows if "label" in row]


@dataclass(frozen=True)
class Run:
    """One process tree, from start to end."""

    seconds: float
    peak: int
    """Bytes: the highest sum of proportional set sizes (shared pages counted once) over the tree."""
    output: str


def run(command: Sequence[str], *, timeout: float = 7200) -> Run:
    """Run a command and return what it took; a failure ends the benchmark with its error output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=HERE.parent)
        peak, ended = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended), daemon=True)
        watcher.start()
        try:
            code = process.wait(timeout)
            seconds = time.perf_counter() - began
        except BaseException:
            process.terminate()
            process.wait(60)
            raise
        finally:
            ended.set()
            watcher.join()
        out.seek(0)
        err.seek(0)
        if code:
            raise SystemExit(f"{shlex.join(command)} ended with {code}:\n{err.read()[-3000:]}")
        return Run(seconds, peak[0], out.read())


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    known: dict[int, psutil.Process] = {}
    while not ended.wait(_SAMPLED_EVERY):
        try:
            for process in [root := psutil.Process(pid), *root.children(recursive=True)]:
                known.setdefault(process.pid, process)
        except psutil.Error:
            continue
        total = 0
        for number, process in list(known.items()):  # also those whose parent has ended since
            if not process.is_running():
                del known[number]
                continue
            total += _proportional(number)
        peak[0] = max(peak[0], total)


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(name: str, title: str, parts: Sequence[str]) -> None:
    """Print a result and write it to ``benchmarks/results/``, with the command and the machine."""
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"`{command}` on {machine()}, load at the end {os.getloadavg()[0]:.1f}.", *parts]) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
