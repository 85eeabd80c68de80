"""Several models by several tasks: who is best, and whether one is better than another."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from topicscale.errors import RequestError
from topicscale.judge.task import LOWER, MEASURES

Scores = Mapping[str, Mapping[str, float]]
"""A model's measures by task: ``{"sts": {"spearman": .8, ...}, ...}``."""


@dataclass(frozen=True)
class Row:
    """A model's place among others."""

    model: str
    rank: float
    """Mean over the tasks of its rank by the task's chief measure, 1 being best; equal models share the mean of their places."""
    ranks: dict[str, float]
    scores: Scores


@dataclass(frozen=True)
class Verdict:
    """Whether a model is better than what it was made from."""

    ok: bool
    text: str
    """The figures, in one line."""


def ranked(found: Mapping[str, Scores]) -> list[Row]:
    """Return the models from best to worst by mean rank; equal ones in the order given.

    Parameters
    ----------
    found : mapping of mappings
        Each model's measures by task, the same tasks for each.
    """
    from scipy.stats import rankdata

    models = list(found)
    tasks = list(found[models[0]]) if models else []
    ranks: dict[str, dict[str, float]] = {model: {} for model in models}
    for task in tasks:
        measure = chief(task)
        # rounding: a difference in the last bits is none
        values = [round(_goodness(found[model][task].get(measure, math.nan), measure), 9) for model in models]
        for model, place in zip(models, rankdata([-v for v in values], method="average"), strict=True):
            ranks[model][task] = float(place)
    rows = [Row(model, float(np.mean(list(ranks[model].values()))) if tasks else 1.0, ranks[model], found[model]) for model in models]
    return sorted(rows, key=lambda row: row.rank)


def table(rows: Sequence[Row]) -> str:
    """Return the ranking as text: a line a model, a column a measure, the best value of each marked with *."""
    shown = [(task, measure) for task in (rows[0].scores if rows else ()) for measure in MEASURES[kind(task)] if _has(rows, task, measure)]
    header = ["model", "rank", *(f"{task}.{measure}" for task, measure in shown)]
    cells = [header, *([row.model, f"{row.rank:.2f}".rstrip("0").rstrip(".")] for row in rows)]
    for task, measure in shown:
        values = [row.scores[task][measure] for row in rows]
        best = max(_goodness(value, measure) for value in values)
        for line, value in zip(cells[1:], values, strict=True):
            mark = "*" if len(rows) > 1 and round(_goodness(value, measure) - best, 9) == 0 else " "
            line.append(f"{value:.4f}{mark}")
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def better(before: Scores, after: Scores, measure: str, margin: float = 0.0) -> Verdict:
    """Return whether a model is better than its base by more than ``margin``.

    Parameters
    ----------
    before, after : mapping
        Measures of base and model by task.
    measure : str
        ``task.measure`` (sts.spearman), or a task alone for its chief measure.
    margin : float
        In the measure's own unit. 0 asks for any gain beyond 1e-9; a negative one lets a small loss pass.

    Raises
    ------
    RequestError
        The models were not judged by this measure.
    """
    task, name = which(before, measure)
    which(after, measure)
    one, other = before[task][name], after[task][name]
    gain = round(_goodness(other, name) - _goodness(one, name), 9)
    ok = math.isfinite(gain) and gain > margin
    least = f", margin {margin:g}" if margin else ""
    judged = "better than" if gain > 0 else "equal to" if gain == 0 else "worse than"
    short = "" if ok or gain <= 0 else ", but not by enough"
    return Verdict(ok, f"{task}.{name} {other:.4f} is {judged} the base's {one:.4f} ({other - one:+.4f}{least}){short}")


def which(scores: Scores, measure: str) -> tuple[str, str]:
    """Return the task and the name of a measure that models were judged by.

    Raises
    ------
    RequestError
        They were not judged by it.
    """
    known = {f"{task}.{name}": (task, name) for task in scores for name in MEASURES[kind(task)] if name in scores[task]}
    for task in scores:
        known.setdefault(task, (task, chief(task)))
    if measure not in known:
        near = difflib.get_close_matches(measure, known, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(name for name in known if '.' in name)}."
        raise RequestError(f"The measure must be one that the tasks have. Got {measure!r} instead. {hint}")
    return known[measure]


def kind(task: str) -> str:
    """Return the kind of the task of this name (see :func:`topicscale.judge.task.names`)."""
    return task.partition(":")[0]


def chief(task: str) -> str:
    """Return the chief measure of the task of this name, without the task's name."""
    return MEASURES[kind(task)][0]


def _goodness(value: float, measure: str) -> float:
    if math.isnan(value):
        return -math.inf
    return -value if measure in LOWER else value


def _has(rows: Sequence[Row], task: str, measure: str) -> bool:
    return all(measure in row.scores[task] for row in rows)
