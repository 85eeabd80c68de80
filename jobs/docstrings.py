"""A corpus that is on every machine: the docstrings of the installed Python distributions, one site a distribution.

It is English prose on many subjects, needs no download, and falls apart naturally into sites.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

MIN_CHARS, MAX_CHARS = 80, 2_000
MAX_FILE_BYTES = 1_000_000
_BATCH = 64
# where the prose of a docstring ends: numpy's, Google's and Sphinx's ways to begin a list of parameters, and doctests
_END = re.compile(
    r"^(?:(?:Other )?(?:Parameters|Returns?|Yields?|Raises|Attributes|Examples?|References|See Also|Methods|Notes?|Warnings?|Usage)"
    r"\n *[-=~^]{3,}"
    r"|(?:Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Attributes|Examples?|Keyword Args|Shape|Usage)\s*:{1,2}[ \t]*$"
    r"|:(?:param|returns?|rtype|raises|type|keyword|ivar)\b|@(?:param|return)\b|>>> |```|\.\. [\w-]+::)",
    re.MULTILINE,
)
_ROLE = re.compile(r":[\w:+.-]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
_MARKS = re.compile(r"``|`|\*\*|__(?=\w)(?![a-z]+__)")


def build_corpus(path: str | Path, documents: int | None = None, *, whole: bool = False, processes: int = 2) -> int:
    """Write docstrings to a JSON lines file with the columns id, text, site and title, and return how many.

    Parameters
    ----------
    path : str or Path
        The file to write; it appears when it is whole.
    documents : int, optional
        Stop at so many. Files are read in the order of a hash of their names, so that a smaller corpus is the beginning
        of a larger one and holds all sites. None takes everything (55,000 in this project's environment).
    whole : bool, default=False
        Docstrings as they are, tables of parameters and doctests included, instead of their prose.

    Notes
    -----
    The same environment gives the same file, whatever the number of processes.
    """
    target, part = Path(path), Path(f"{path}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    with part.open("w", encoding="utf-8") as out:
        for site, title, text in _docstrings(processes, whole):
            key = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if key in seen:
                continue
            seen.add(key)
            out.write(json.dumps({"id": f"{len(seen):07d}", "text": text, "site": site, "title": title}, ensure_ascii=False) + "\n")
            if len(seen) == documents:
                break
    part.replace(target)
    return len(seen)


def prose(docstring: str) -> str:
    """Return what a docstring says in words: without tables of parameters, doctests and markup, at most 2,000 characters."""
    text = inspect.cleandoc(docstring)
    end = _END.search(text)
    if end is not None:
        text = text[: end.start()]
    text = _MARKS.sub("", _ROLE.sub(r"\1", text))
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n".join(filter(None, paragraphs))[:MAX_CHARS].rstrip()


def _docstrings(processes: int, whole: bool) -> Iterator[tuple[str, str, str]]:
    files = _files()
    batches = [files[i : i + _BATCH] for i in range(0, len(files), _BATCH)]
    # forkserver: a fork of a process that has threads may hang
    with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
        ahead = 2 * processes
        waiting: list[Future[list[tuple[str, str, str]]]] = [pool.submit(_read, batch, whole) for batch in batches[:ahead]]
        try:
            for number in range(len(batches)):
                yield from waiting.pop(0).result()
                if number + ahead < len(batches):
                    waiting.append(pool.submit(_read, batches[number + ahead], whole))
        finally:
            pool.shutdown(cancel_futures=True)


def _files() -> list[tuple[str, str, str]]:
    """Return (site, module, path) of every installed source file, ordered by a hash of site and module."""
    found: dict[str, tuple[str, str, str]] = {}
    for distribution in importlib.metadata.distributions():
        site = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "unknown").lower()
        for file in distribution.files or ():
            if file.suffix == ".py" and ".." not in file.parts:
                module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
                found[f"{site} {module}"] = (site, module, str(distribution.locate_file(file)))
    return [found[key] for key in sorted(found, key=lambda key: hashlib.blake2b(key.encode()).digest())]


def _read(files: list[tuple[str, str, str]], whole: bool) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    warnings.simplefilter("ignore")  # invalid escapes in other people's sources
    for site, module, path in files:
        try:
            source = Path(path).read_bytes()
            if len(source) > MAX_FILE_BYTES or (b'"""' not in source and b"'''" not in source):
                continue
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # a template, another Python's syntax, a file removed since
        found += [(site, name, text) for name, text in _walk(tree, module, whole)]
    return found


def _walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, whole: bool) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node, clean=False)
    # lone surrogates cannot be written as UTF-8
    if docstring is not None and len(docstring) > MIN_CHARS:
        text = (inspect.cleandoc(docstring) if whole else prose(docstring)).encode("utf-8", "ignore").decode()
        if len(text) > MIN_CHARS:
            yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}", whole)
