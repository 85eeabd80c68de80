"""Labelled input, read without an engine: files, folders or a Delta table, their columns under the names that recipes know."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from topicscale import storage
from topicscale.config import Config, InputConfig
from topicscale.errors import ConfigError, InputError
from topicscale.finetune.recipe import COLUMNS, NLI, Kind
from topicscale.finetune.rows import batches
from topicscale.inputs import InputPlan, check_named, inspect

ALIASES: dict[str, tuple[str, ...]] = {
    "anchor": ("anchor", "query", "question"),
    "positive": ("positive", "answer", "passage", "response"),
    "negative": ("negative", "hard_negative"),
    "sentence1": ("sentence1", "sentence_1", "sentence_a", "premise", "text1", "question1"),
    "sentence2": ("sentence2", "sentence_2", "sentence_b", "hypothesis", "text2", "question2"),
    "score": ("score", "similarity", "similarity_score", "relatedness_score"),
    "label": ("label", "gold_label", "entailment_judgment", "category", "class", "intent", "topic"),
    "text": ("text", "sentence", "document"),
}
"""Names by which a column is found where it is not mapped; letters' case is no matter."""
_ORDER: tuple[Kind, ...] = ("pairs", "nli", "scored", "classes", "texts")
"""The most telling first: a kind that needs more columns than another comes before it."""
_ROWS = 10_000
"""Rows that are cleaned at once."""


@dataclass(frozen=True)
class Loaded:
    """Labelled rows, cleaned."""

    table: pa.Table
    """The columns of ``kind`` (:data:`~topicscale.finetune.recipe.COLUMNS`), in the input's order."""
    kind: Kind
    dropped: Mapping[str, int]
    """Rows that were left out, by reason: bad_row (of another number of columns, or no JSON object), empty_text, empty_label,
    empty_score, bad_score (no number), unknown_label (of nli)."""
    columns: Mapping[str, str]
    """Our name -> the input's."""
    fingerprint: str
    """Digest of the files' listing, or of a Delta table's id and version."""


def kind_of(columns: Iterable[str]) -> Kind | None:
    """Return the kind of data that columns of these (our) names make, None if they make none."""
    names = set(columns)
    return next((kind for kind in _ORDER if names >= set(COLUMNS[kind])), None)


def read(
    paths: Sequence[str],
    columns: Mapping[str, str],
    *,
    reader: Mapping[str, Any] | None = None,
    score_range: Sequence[float] | None = None,
    kinds: Sequence[Kind] | None = None,
) -> Loaded:
    """Return the rows of csv, tsv, json lines, parquet or text files (also compressed), or of a Delta table.

    Parameters
    ----------
    paths : sequence of str
        As ``input.paths``: files, folders or globs on this machine.
    columns : mapping of str to str
        Our names -> the input's; a file without a header has the columns ``_c0``, ``_c1`` ... Those that are not named are looked up
        (:data:`ALIASES`).
    reader : mapping, optional
        As ``input.options``: header, sep, quote, escape, encoding ...; and ``format``, as ``input.format``.
    score_range : (float, float), optional
        The input's lowest and highest score, mapped to 0 and 1.
    kinds : sequence of str, optional
        Kinds that can be used, preferred first; what the columns make by default.

    Raises
    ------
    ConfigError
        ``columns`` or ``score_range`` is no such thing.
    InputError
        There is no such file or column, a score is out of range, or fewer than two rows are usable.
    """
    if unknown := [name for name in columns if name not in ALIASES]:
        raise ConfigError(f"columns must map {', '.join(ALIASES)}. Got {unknown[0]!r} instead.")
    if score_range is not None and not (len(score_range) == 2 and score_range[0] < score_range[1]):
        raise ConfigError(f"score_range must be two numbers, the lower one first. Got {list(score_range)} instead.")
    options = dict(reader or {})
    named = Config.from_dict({"input": {"format": options.pop("format", "auto")}}).input.format
    if (far := next((path for path in paths if storage.address(path) is not None), None)) is not None:
        raise InputError(f"Labelled input must be on this machine. Got {far!r} instead: download it first.")
    plan = inspect(InputConfig(paths=tuple(paths), format=named, text_column=(), options=options))
    if not plan.columns:
        raise InputError(f"Labelled input must be on this machine. Got {plan.paths[0]!r} instead: download it first.")
    kind, chosen = _choose(plan, columns, kinds)
    dropped: Counter[str] = Counter()
    pieces = [_clean(batch, kind, score_range, dropped) for batch in batches(plan, chosen, dropped)]
    table = pa.concat_tables([_empty(kind, chosen), *pieces]).combine_chunks()
    if table.num_rows < 2:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"The input must hold at least two usable rows of {kind}. Got {table.num_rows} instead" + (f" ({why})." if why else ".")
        )
    return Loaded(table, kind, dict(dropped), chosen, plan.fingerprint)


def held_out(table: pa.Table, share: float, seed: int) -> tuple[pa.Table, pa.Table]:
    """Return the rows that are trained on, and about a ``share`` of rows that are not, chosen by a hash of their texts.

    Rows of the same texts stay together, and so do pairs of the same anchor. The choice depends on nothing but the row and the seed: rows
    that are added later move no other.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"finetune.held_out must be at least 0 and below 1. Got {share} instead.")
    names = ["anchor"] if "anchor" in table.column_names else [name for name in table.column_names if name not in ("label", "score")]
    limit = int(share * 2**64)
    chosen: list[bool] = []
    for batch in table.select(names).to_batches(max_chunksize=_ROWS):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            content = json.dumps([seed, *row]).encode()
            chosen.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") < limit)
    mask = pa.array(chosen, pa.bool_())
    return table.filter(pc.invert(mask)), table.filter(mask)


def _choose(plan: InputPlan, given: Mapping[str, str], kinds: Sequence[Kind] | None) -> tuple[Kind, dict[str, str]]:
    """Return the kind, and our name -> the input's of each of its columns."""
    there = {column.name: column.kind for column in plan.columns}
    for ours, theirs in given.items():
        check_named(theirs, there, f"columns.{ours}")
    lowered = {name.lower().replace(" ", "_").replace("-", "_"): name for name in there}
    found = {
        ours: next(lowered[alias] for alias in aliases if alias in lowered)
        for ours, aliases in ALIASES.items()
        if ours not in given and any(alias in lowered for alias in aliases)
    }
    both = {**found, **given}
    wanted = tuple(kinds) if kinds is not None else _ORDER
    mapped = kind_of(given)
    possible = [kind for kind in wanted if set(both) >= set(COLUMNS[kind])]
    if mapped in wanted:
        kind = mapped
    elif not possible:
        needed = " or ".join(f"({', '.join(COLUMNS[kind])})" for kind in wanted)
        raise InputError(
            f"The input must have the columns {needed}. It has: {', '.join(there)}. Name them: columns: {{{COLUMNS[wanted[0]][0]}: ...}}."
        )
    elif kinds is None and not given and {"nli", "scored"} <= set(possible):
        raise InputError(f"The input has both scores ({both['score']!r}) and labels ({both['label']!r}). Name those to use with columns.")
    else:
        # what was named is to be used
        kind = max(possible, key=lambda one: (len(set(COLUMNS[one]) & set(given)), -possible.index(one)))
    assert kind is not None
    names = [*COLUMNS[kind], *(["negative"] if kind == "pairs" and "negative" in both else [])]
    if len({both[name] for name in names}) < len(names):
        raise InputError(f"columns must name a column each. Got { ({name: both[name] for name in names}) } instead.")
    return kind, {name: both[name] for name in names}


def _empty(kind: Kind, columns: Mapping[str, str]) -> pa.Table:
    return pa.schema([(name, pa.float64() if name == "score" else pa.string()) for name in columns]).empty_table()


def _clean(table: pa.Table, kind: Kind, score_range: Sequence[float] | None, dropped: Counter[str]) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in table.column_names:
        stripped = pc.utf8_trim_whitespace(table[name])
        columns[name] = pc.if_else(pc.equal(stripped, ""), pa.scalar(None, pa.string()), stripped)
    table = pa.table(columns)
    for name in COLUMNS[kind]:  # a pair without a negative is one all the same
        table = _without(table, pc.is_valid(table[name]), f"empty_{name if name in ('score', 'label') else 'text'}", dropped)
    if kind == "nli":
        names = {
            **{name: name for name in NLI},
            **{str(i): name for i, name in enumerate(NLI)},
            **{f"{i}.0": name for i, name in enumerate(NLI)},
        }
        label = pa.array([names.get(value.lower()) for value in table["label"].to_pylist()], pa.string())
        if table.num_rows and label.null_count == table.num_rows:
            seen = ", ".join(map(repr, pc.unique(table["label"]).to_pylist()[:5]))
            raise InputError(f"A label of sentence pairs must be {', '.join(NLI)}, or their places 0, 1, 2. Got {seen} instead.")
        table = table.set_column(table.column_names.index("label"), "label", label)
        table = _without(table, pc.is_valid(label), "unknown_label", dropped)
    if kind == "scored":
        score = pa.array([_number(value) for value in table["score"].to_pylist()], pa.float64())
        table = table.set_column(table.column_names.index("score"), "score", score)
        table = _without(table, pc.is_valid(score), "bad_score", dropped)
        low, high = score_range or (0.0, 1.0)
        least, most = (pc.min_max(table["score"]).as_py()[key] for key in ("min", "max"))
        if table.num_rows and not low <= least <= most <= high:
            got = least if least < low else most
            advice = "Give the input's own lowest and highest score: score_range: [0, 5]." if score_range is None else ""
            raise InputError(f"A score must be from {low:g} to {high:g}. Got {got:g} instead. {advice}".rstrip())
        scaled = pc.divide(pc.subtract(table["score"], float(low)), float(high - low))
        table = table.set_column(table.column_names.index("score"), "score", scaled)
    return table


def _without(table: pa.Table, keep: Any, reason: str, dropped: Counter[str]) -> pa.Table:
    kept = table.filter(keep)
    if kept.num_rows < table.num_rows:
        dropped[reason] += table.num_rows - kept.num_rows
    return kept


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


assert set(_ORDER) == set(get_args(Kind))
