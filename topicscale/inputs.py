"""What the input is, found out without an engine: files, format, columns, size, and a fingerprint of the listing."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath, PurePosixPath
from typing import Any

from topicscale import storage
from topicscale.config import InputConfig, fingerprint, option_text
from topicscale.errors import InputError, StoreError
from topicscale.files import Folder, said
from topicscale.sniff import Column, Sample, sample_file

_COMPRESSED = (".gz", ".zst", ".bz2")
_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}
_HIDDEN = ("_", ".")
_SEEN = 100
"""Rows of a Delta table whose vectors are looked at."""
_CHECKED = 200
"""Files whose head is read at most; of later csv files the header alone."""


@dataclass(frozen=True)
class InputPlan:
    """What will be read, and how."""

    paths: tuple[str, ...]
    """Files, or the Delta table's folder, in name order; remote addresses as they were given."""
    format: str
    """csv, tsv, jsonl, parquet, text or delta."""
    columns: tuple[Column, ...]
    """Columns of the files, in the input's order; empty when only the engine can know (an address that it alone can open)."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of Spark's reader, the defaults filled in."""
    rows: int | None = None
    """Estimated number of rows."""
    bytes: int | None = None
    fingerprint: str = ""
    """Digest of the listing: path, size and time of change of each file, or a Delta table's id and version; of an address that the
    engine alone can open, another each time."""
    version: int | None = None
    """Version of a Delta table."""
    dimension: int | None = None
    """Length of the vectors in ``embedding_column``, from the first rows."""
    characters: int | None = None
    """Estimated number of characters of the texts, None where the files' heads do not tell."""
    folders: tuple[str, ...] = ()
    """Columns of text that the names of the files' folders are (``month`` of ``month=01``), below what was given."""

    @property
    def kinds(self) -> dict[str, str]:
        """Column -> kind, of all columns; empty where those of the files are."""
        return {column.name: column.kind for column in with_folders(self.columns, self.folders)} if self.columns else {}


def inspect(config: InputConfig) -> InputPlan:
    """Return the plan for reading ``config.paths``.

    Raises
    ------
    InputError
        Nothing is named or found, a file is empty or unreadable, formats are mixed, a column is missing (the nearest
        name is given) or of a type that cannot serve.
    """
    if not config.paths:
        raise InputError("input.paths must name at least one file, folder or glob. Got none instead.")
    expanded = [(given, path, told) for given in config.paths for path, told in _expand(given)]
    found = {path: told for _, path, told in expanded}
    paths = sorted(found)
    chosen = config.format if config.format != "auto" else _agreed_format(paths)
    options = reader_options(chosen, config.options)
    _check_encoding(chosen, options)
    if chosen == "delta":
        return _inspect_delta(config, paths, options)
    if any(is_remote(path) for path in paths):
        return InputPlan(tuple(paths), chosen, (), options, fingerprint=uuid.uuid4().hex)
    sizes = {path: size for path, (size, _) in found.items()}
    paths = [path for path in paths if sizes[path]]
    samples: list[Sample] = []
    blank = set()
    for path in paths:
        if (head := sample_file(path, chosen, options)).columns:
            samples.append(head)
        else:
            blank.add(path)
        if len(samples) == _CHECKED:
            break
    paths = [path for path in paths if path not in blank]
    if not samples:
        raise InputError(f"Every input file is empty: {_few(list(sizes))}.")
    columns = _agreed_columns(paths, samples, chosen)
    if chosen in ("csv", "tsv"):
        # the engine skips each file's header unread: columns in another order would change places silently
        for path in paths[len(samples) :]:
            if (head := sample_file(path, chosen, options, head_bytes=1 << 14)).columns:
                _agreed_columns([paths[0], path], [samples[0], head], chosen)
    folders = _folders((given, path) for given, path, _ in expanded)
    if chosen == "jsonl" and not (len(samples) == len(paths) and all(sample.whole for sample in samples)):
        # further rows can have other keys
        known = {column.name for column in with_folders(columns, folders)}
        columns += tuple(Column(name, "late") for name in config.keep or () if name not in known)
    check_columns(with_folders(columns, folders), config, chosen)
    total = sum(sizes[path] for path in paths)
    seen_bytes, seen_rows = sum(s.bytes for s in samples), sum(s.rows for s in samples)
    rows = (
        sum(s.rows for s in samples)
        if chosen == "parquet" and len(samples) == len(paths)
        else round(total * seen_rows / max(1, seen_bytes))
    )
    seen_characters = sum(s.characters.get(name, 0) for s in samples for name in text_columns(config, chosen))
    listing = [(path, *found[path]) for path in paths]
    lengths = [
        s.dimensions[config.embedding_column] for s in samples if config.embedding_column and config.embedding_column in s.dimensions
    ]
    return InputPlan(
        tuple(paths),
        chosen,
        columns,
        options,
        rows=rows,
        bytes=total,
        fingerprint=fingerprint(listing, chosen, options),
        dimension=lengths[0] if lengths else None,
        characters=round(total * seen_characters / max(1, seen_bytes)),
        folders=folders,
    )


def with_folders(columns: Sequence[Column], folders: Sequence[str]) -> list[Column]:
    """Return the columns of files, and those that their folders' names are, unless the files have them."""
    known = {column.name.lower() for column in columns}
    return [*columns, *(Column(name, "string") for name in folders if name.lower() not in known)]


def reader_options(chosen: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of Spark's reader for a format: ours where the user says nothing.

    A csv file is read by RFC 4180 (quotes doubled, line breaks inside quotes), as pandas and spreadsheets write it. A
    tsv file has no quoting unless asked for: stray quotes are common there, and one would swallow the rows after it.
    """
    ours: dict[str, Any] = {}
    if chosen == "csv":
        ours = {"header": True, "sep": ",", "quote": '"', "escape": '"', "multiLine": True, "encoding": "UTF-8"}
    elif chosen == "tsv":
        ours = {"header": True, "sep": "\t", "quote": "", "escape": '"', "multiLine": "quote" in given, "encoding": "UTF-8"}
    elif chosen in ("jsonl", "text"):
        ours = {"encoding": "UTF-8"}
    known = {key.lower(): key for key in ours} | {"delimiter": "sep", "charset": "encoding"}
    for key, value in given.items():
        if value is None:
            raise InputError(
                f"input.options.{key} must be a text, a number, true or false. Got null instead. Put what is to be a text in quotes of its "
                f"own: --set 'input.options.{key}=\"~\"'."
            )
        ours[known.get(key.lower(), key)] = value
    return {key: option_text(value) for key, value in ours.items()}


def _check_encoding(chosen: str, options: Mapping[str, str]) -> None:
    """Raise InputError for an encoding that is not known, or in which Spark, which looks for bytes, would not find the ends of lines."""
    encoding = options.get("encoding", "UTF-8")
    try:
        by_bytes = "\n".encode(encoding) == b"\n"
    except LookupError:
        raise InputError(f"input.options.encoding must be a known encoding. Got {encoding!r} instead.") from None
    if not by_bytes and (chosen in ("jsonl", "text") or options.get("multiLine", "").lower() == "false"):
        raise InputError(
            f"input.options.encoding must be one that ends a line with one byte, as ASCII does, where {chosen} is read. Got {encoding!r} "
            f"instead. Write the files anew: iconv -f {encoding} -t UTF-8"
        )


def check_columns(columns: Sequence[Column], config: InputConfig, chosen: str) -> None:
    """Raise InputError unless the columns that ``config`` names exist and can serve."""
    kinds = {column.name: column.kind for column in columns}
    for text in text_columns(config, chosen):
        check_named(text, kinds, "input.text_column")
        if kinds[text] not in ("string", "number", "boolean", "time", "unknown"):
            raise InputError(f"input.text_column must be a column of text. Got {text!r}, which holds {kinds[text]} values, instead.")
    for single, option in [(config.id_column, "input.id_column"), (config.embedding_column, "input.embedding_column")]:
        if single is not None:
            check_named(single, kinds, option)
    if config.id_column is not None and kinds[config.id_column] in ("vector", "nested", "binary"):
        raise InputError(
            f"input.id_column must hold text or numbers. Got {config.id_column!r}, which holds {kinds[config.id_column]} values, instead."
        )
    if config.embedding_column is not None and kinds[config.embedding_column] not in ("vector", "unknown"):
        raise InputError(
            f"input.embedding_column must hold arrays of numbers. Got {config.embedding_column!r}, which holds "
            f"{kinds[config.embedding_column]} values, instead."
        )
    for name in config.keep or ():
        check_named(name, kinds, "input.keep")


def text_columns(config: InputConfig, chosen: str) -> tuple[str, ...]:
    """Return the columns that hold the text; a plain text file has but one."""
    return ("text",) if chosen == "text" else config.text_column


def is_remote(path: str) -> bool:
    """Return whether a path is an address that only the engine can open."""
    return "://" in path and not path.startswith("file://") and storage.address(path) is None


def listed(paths: Iterable[str]) -> list[str]:
    """Return the files, and the folders of Delta tables, that files, folders and globs mean, each once and by its whole path.

    Raises
    ------
    InputError
        Nothing is there, or it cannot be read.
    """
    return sorted({path for given in paths for path, _ in _expand(given)})


def _expand(given: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the paths of files and Delta tables that are meant, each with its size and time of change (0 where that is not known)."""
    if (place := storage.address(given)) is not None:
        yield from _expand_remote(given, place)
        return
    if is_remote(given):
        yield given, (0, 0)
        return
    name = os.path.expanduser(given.removeprefix("file://"))
    if os.path.exists(name):
        found = [name]
        if os.path.isfile(name):
            _check_shown(name)
    else:
        # as in folders: what hides its name is no input (_SUCCESS)
        found = [path for path in sorted(glob.glob(name, recursive=True)) if not os.path.basename(path.rstrip("/")).startswith(_HIDDEN)]
        if not found:
            raise InputError(f"There is no input {given!r}.{_similar_file(name)}")
    for one in found:
        path = os.path.abspath(one)
        if not os.path.isdir(path):
            if not os.access(path, os.R_OK):
                raise InputError(f"Input {path!r} cannot be read: permission denied.")
            yield path, _told(path)
        elif os.path.isdir(os.path.join(path, "_delta_log")):
            yield path, (0, 0)
        else:
            inside = sorted(_inside(path))
            if not inside:
                raise InputError(f"Input folder {given!r} holds no files.")
            yield from ((one, _told(one)) for one in inside)


def _inside(folder: str) -> Iterator[str]:
    """Yield the files in a folder and in the folders in it, then in those that links lead to: each is entered once, by its own name."""
    entered, links = set(), [folder]
    while links:
        for place, folders, names in os.walk(links.pop(0)):
            if (real := os.path.realpath(place)) in entered:
                folders.clear()
                continue
            entered.add(real)
            _check_no_table(place, folders)
            folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
            links += filter(os.path.islink, (os.path.join(place, name) for name in folders))
            paths = (os.path.join(place, name) for name in names if not name.startswith(_HIDDEN))
            yield from filter(os.path.isfile, paths)


def _check_no_table(folder: str, names: Collection[str]) -> None:
    """Raise an InputError for a Delta table among files: each by itself, its files hold the rows that were deleted or replaced, too."""
    if "_delta_log" in names:
        raise InputError(f"A folder of input files must hold no Delta table. Got {folder!r}, which is one, instead: give it by itself.")


def _folders(found: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the columns that folders' names are, of what was given and each path that it means: those that were not given by name."""
    parts = set[str]()
    for given, path in found:
        whole = given if "://" in given else os.path.abspath(os.path.expanduser(given))
        parts |= {*PurePosixPath(path).parent.parts} - {*PurePosixPath(whole).parts}
    return tuple(sorted({name for name, sign, _ in (part.partition("=") for part in parts) if name and sign}))


_NAMED_BY_CONTENT = re.compile(r"/_work/input-[0-9a-f]{32}/input\.parquet$")
"""Documents that were in memory (see :mod:`topicscale.documents`): when they were put there says nothing of them."""


def _check_shown(path: str) -> None:
    """Raise an InputError for a file that Spark would leave out without a word."""
    if PurePosixPath(path).name.startswith(_HIDDEN):
        raise InputError(f"Input {path!r} is hidden: Spark reads no files whose names begin with {' or '.join(_HIDDEN)}. Rename it.")


def _told(path: str) -> tuple[int, int]:
    """Return the size and the time of change of a local file, or raise an InputError for one that Spark cannot open."""
    if ":" in os.path.basename(path):  # Hadoop takes what stands before it for a scheme
        raise InputError(f"Input {path!r} has a colon in its name, which Spark cannot read. Rename it.")
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _expand_remote(given: str, place: storage.Address) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the files of an object store that are meant: one object, a folder, a Delta table, or what a glob fits."""
    try:
        folder = Folder(given)
        if (alone := folder.find()) is not None:
            _check_shown(folder.uri)
            yield folder.uri, (alone.size, 0 if _NAMED_BY_CONTENT.search(folder.uri) else alone.changed)
            return
        if folder.exists("_delta_log"):
            yield folder.uri, (0, 0)
            return
        # the first part with a wildcard, and all before it
        plain, wild = place.key, ""
        if (match := re.search(r"[*?\[]", place.key)) is not None:
            plain, _, first = place.key[: match.start()].rpartition("/")
            wild = first + place.key[match.start() :]
        root = Folder(str(dataclasses.replace(place, key=plain)))
        # a folder that fits brings what is in it, as it does on a disk
        fits = re.compile(f"{_pattern(wild.rstrip('/'))}(?:/.*)?" if wild else ".*", re.DOTALL)
        inside = [file for file in root.files(deep=True) if fits.fullmatch(file.name)]
        for below in {PurePosixPath(file.name).parent for file in inside}:
            if not _hidden(below.parent):
                _check_no_table(f"{root.uri}/{below.parent}".removesuffix("/."), [below.name])
        inside = [file for file in inside if not _hidden(PurePosixPath(file.name))]
    except StoreError as error:
        raise InputError(f"Input {given!r} cannot be read: {error}") from error
    if not inside:
        raise InputError(f"There is no input {given!r}.")
    yield from ((f"{root.uri}/{file.name}", (file.size, file.changed)) for file in inside)


def _pattern(wild: str) -> str:
    """Return a glob as a regular expression: ``**`` stands for any folders, the others for characters of one name."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translated(match: re.Match[str]) -> str:
        text = match.group()
        if text in parts:
            return parts[text]
        if len(text) > 1:  # a set of characters
            return "[" + text[1:-1].replace("\\", "\\\\").replace("!", "^", 1 if text[1] == "!" else 0) + "]"
        return re.escape(text)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]|.", translated, wild, flags=re.DOTALL)


def _hidden(path: PurePath) -> bool:
    return any(part.startswith(_HIDDEN) for part in path.parts)


def _similar_file(name: str) -> str:
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        return ""
    close = difflib.get_close_matches(os.path.basename(name), os.listdir(folder), n=1)
    return f" Did you mean {os.path.join(folder, close[0])!r}?" if close else ""


def _format_of(path: str) -> str | None:
    if "://" not in path and os.path.isdir(path):
        return "delta"
    name = path.lower().rstrip("/")
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    known = _FORMATS.get(os.path.splitext(name)[1])
    if known is None and storage.address(path) is not None and Folder(path).exists("_delta_log"):
        return "delta"
    return known


def _agreed_format(paths: Sequence[str]) -> str:
    formats: dict[str | None, str] = {}
    for path in paths:
        formats.setdefault(_format_of(path), path)
    if None in formats:
        raise InputError(
            f"The format of {formats[None]!r} cannot be told from its name. Name it with input.format "
            f"({', '.join(dict.fromkeys(_FORMATS.values()))}, delta)."
        )
    if len(formats) > 1:
        mixed = ", ".join(f"{kind} ({path})" for kind, path in formats.items())
        raise InputError(f"All input files must be of one format. Got {mixed} instead.")
    found = next(iter(formats))
    assert found is not None
    return found


def _agreed_columns(paths: Sequence[str], samples: Sequence[Sample], chosen: str) -> tuple[Column, ...]:
    first = samples[0].columns
    if chosen in ("csv", "tsv"):
        for path, other in zip(paths, samples, strict=False):
            if [c.name for c in other.columns] != [c.name for c in first]:
                names = [[c.name for c in columns] for columns in (first, other.columns)]
                raise InputError(f"All input files must have the same columns. {paths[0]!r} has {names[0]}, {path!r} has {names[1]}.")
    types: dict[str, tuple[str, str]] = {}
    for path, other in zip(paths, samples, strict=False):
        for name, kind in other.types.items():
            known, where = types.setdefault(name, (kind, path))
            if known != kind:
                raise InputError(
                    f"Column {name!r} must have one type in all parquet files. It is {known} in {where!r} and {kind} in {path!r} (pandas "
                    "writes whole numbers with a gap as double). Write the files with one type, or run each kind into the store by itself."
                )
    merged: dict[str, str] = {}
    for sample in samples:
        for column in sample.columns:
            known = merged.setdefault(column.name, column.kind)
            if known != column.kind:
                merged[column.name] = column.kind if known == "unknown" else known if column.kind == "unknown" else "string"
    lowered: dict[str, str] = {}
    for name in merged:
        if lowered.setdefault(name.lower(), name) != name:
            raise InputError(f"Columns must differ in more than case. Got {lowered[name.lower()]!r} and {name!r} in {paths[0]!r}.")
    return tuple(Column(name, kind) for name, kind in merged.items())


def check_named(name: str, kinds: Mapping[str, str], option: str) -> None:
    """Raise an InputError with the nearest name if ``name`` is no column of ``kinds`` (column -> kind)."""
    if name not in kinds:
        close = difflib.get_close_matches(name.lower(), [kind.lower() for kind in kinds], n=1)
        meant = next((kind for kind in kinds if close and kind.lower() == close[0]), None)
        hint = f" Did you mean {meant!r}?" if meant else ""
        if meant and meant.strip() == name and option in ("input.text_column", "input.keep"):
            # blanks in an option's text may only separate names
            hint += f" Blanks around a name are kept in a list alone: --set '{option}=[\"{meant}\"]'."
        raise InputError(f"{option} names {name!r}, which the input lacks.{hint} Its columns: {_few(list(kinds), 20)}.")


def _inspect_delta(config: InputConfig, paths: Sequence[str], options: Mapping[str, str]) -> InputPlan:
    if len(paths) != 1:
        raise InputError(f"A Delta input must be one table. Got {len(paths)} paths instead.")
    if is_remote(paths[0]):
        return InputPlan(tuple(paths), "delta", (), dict(options), fingerprint=uuid.uuid4().hex)
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from topicscale.sniff import arrow_columns

    asked = {key.lower(): value for key, value in options.items()}
    options = {key: value for key, value in options.items() if key.lower() not in ("versionasof", "timestampasof")}
    try:
        table = DeltaTable(paths[0], storage_options=storage.delta_options(paths[0]))
        _travel(table, asked)
        schema = table.schema().to_arrow()
        import pyarrow as pa

        columns = arrow_columns(pa.schema(schema))
        metadata, version = table.metadata(), table.version()
        actions = pa.table(table.get_add_actions(flatten=True)).to_pydict()
    except (DeltaError, OSError, ValueError) as error:
        raise InputError(f"Input {paths[0]!r} is not a Delta table that can be read: {said(error)}") from error
    check_columns(columns, config, "delta")
    dimension = None if config.embedding_column is None else _dimension(table, config.embedding_column)
    counts = actions.get("num_records") or []
    rows = sum(counts) if counts and all(count is not None for count in counts) else None
    return InputPlan(
        tuple(paths),
        "delta",
        columns,
        dict(options),
        rows=rows,
        bytes=sum(actions.get("size_bytes") or []),
        fingerprint=fingerprint(paths, str(metadata.id), version, dict(options)),
        version=version,
        dimension=dimension,
    )


def _travel(table: Any, asked: Mapping[str, str]) -> None:
    """Go to the version of a Delta table that reader options name, by their names in lower case."""
    from deltalake.exceptions import DeltaError

    name, wanted = next(((name, asked[name]) for name in ("versionasof", "timestampasof") if name in asked), ("", ""))
    try:
        if name == "versionasof":
            table.load_as_version(int(wanted))
        elif name:
            at = datetime.fromisoformat(wanted)
            table.load_as_version(at if at.tzinfo else at.replace(tzinfo=UTC))  # as Spark's sessions here take it
    except (DeltaError, ValueError, OverflowError) as error:
        has = "a version or a time that the Delta table has"
        raise InputError(f"input.options must name {has}. Got {wanted!r} instead: {error}") from error


def _dimension(table: Any, column: str) -> int | None:
    """Return the commonest length of the vectors of a Delta table's first rows; None where they cannot be read here."""
    try:
        vectors = table.to_pyarrow_dataset().head(_SEEN, columns=[column])[column].to_pylist()
    except Exception:  # features of Delta that this reader lacks and Spark has; a vector of a wrong length then fails its unit
        return None
    lengths = Counter(len(vector) for vector in vectors if vector)
    return lengths.most_common(1)[0][0] if lengths else None


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
