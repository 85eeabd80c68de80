"""Rows of local files or a Delta table, some columns of them, in batches of strings; bad rows are counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from topicscale.errors import InputError
from topicscale.inputs import InputPlan

_ROWS = 10_000
"""Rows of a batch."""


def batches(plan: InputPlan, columns: Mapping[str, str], dropped: Counter[str]) -> Iterator[pa.Table]:
    """Yield the chosen columns, all as strings, under our names."""
    theirs = list(dict.fromkeys(columns.values()))
    sources: Iterable[pa.RecordBatch]
    for path in plan.paths:
        try:
            if plan.format == "delta":
                from deltalake import DeltaTable

                data = DeltaTable(path, version=plan.version).to_pyarrow_dataset()
                sources = data.scanner(columns=theirs, batch_readahead=2, fragment_readahead=1).to_batches()
            elif plan.format == "parquet":
                import pyarrow.parquet as pq

                sources = pq.ParquetFile(path).iter_batches(_ROWS, columns=theirs)
            elif plan.format in ("csv", "tsv"):
                sources = _csv(path, plan, theirs, dropped)
            else:
                sources = _lines(path, plan, theirs, dropped)
            for batch in sources:
                yield pa.table({ours: _strings(batch.column(name)) for ours, name in columns.items()})
        except (OSError, EOFError, UnicodeError, pa.ArrowException) as error:
            raise InputError(f"Input {path!r} cannot be read as {plan.format}: {error}") from error


def _csv(path: str, plan: InputPlan, columns: list[str], dropped: Counter[str]) -> Iterator[pa.RecordBatch]:
    from pyarrow import csv

    options = plan.options
    quote, escape = options.get("quote", ""), options.get("escape", "")
    separator = options.get("sep", ",").replace("\\t", "\t")
    if len(separator) != 1:
        raise InputError(f"input.options.sep must be one character for labelled input. Got {separator!r} instead.")

    def bad(row: Any) -> str:
        dropped["bad_row"] += 1
        return "skip"

    yield from csv.open_csv(
        path,
        read_options=csv.ReadOptions(
            column_names=[column.name for column in plan.columns],
            skip_rows=int(options.get("header") == "true"),
            encoding=options.get("encoding", "UTF-8"),
            use_threads=False,  # so that rows are counted once, and come in order
        ),
        parse_options=csv.ParseOptions(
            delimiter=separator,
            quote_char=quote or False,
            double_quote=bool(quote) and escape == quote,
            escape_char=escape if quote and escape not in ("", quote) else False,
            newlines_in_values=bool(quote) and options.get("multiLine") == "true",
            invalid_row_handler=bad,
        ),
        convert_options=csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )


def _lines(path: str, plan: InputPlan, columns: list[str], dropped: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file of JSON objects, or of texts, one a line."""
    rows: list[list[str | None]] = []
    with pa.input_stream(path, compression="detect") as stream:
        text = io.TextIOWrapper(
            io.BufferedReader(stream), encoding=plan.options.get("encoding", "UTF-8").replace("UTF-8", "utf-8-sig"), newline="\n"
        )
        for line in text:
            if plan.format == "text":
                rows.append([line])
            elif line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    rows.append([_plain(row.get(name)) for name in columns])
                else:
                    dropped["bad_row"] += 1
            if len(rows) == _ROWS:
                yield _batch(rows, columns)
                rows = []
    if rows:
        yield _batch(rows, columns)


def _batch(rows: list[list[str | None]], columns: list[str]) -> pa.RecordBatch:
    return pa.record_batch([pa.array([row[i] for row in rows], pa.string()) for i in range(len(columns))], names=columns)


def _plain(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _strings(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise InputError(f"A column of labelled input must hold text or numbers. Got {column.type} instead.")
    return column.cast(pa.string())
