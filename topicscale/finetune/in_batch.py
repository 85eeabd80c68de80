"""The loss of recipes whose negatives are the other examples of the batch, and the checks of their options."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from topicscale.errors import ConfigError

COSINE_SCALE = 20.0
"""1 / temperature of .05, as SimCSE and Contriever have it."""


def loss(model: Any, scale: float | None, *, similarity: str, workers: int) -> Any:
    """Return multiple negatives ranking loss over all workers' batches (Henderson et al., arXiv:1705.00652, 2017).

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    scale : float or None
        What similarities are multiplied by; None takes :func:`scale_of`.
    similarity : {"cosine", "dot"}
    workers : int
        Where it is more than 1, each worker's anchors are compared with the positives of all.
    """
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    compare = function(similarity)
    return MultipleNegativesRankingLoss(model, scale=scale_of(scale, similarity), similarity_fct=compare, gather_across_devices=workers > 1)


def function(similarity: str) -> Any:
    """Return sentence-transformers' function of a similarity: (a, d) and (b, d) -> (a, b)."""
    from sentence_transformers import util

    return util.dot_score if similarity == "dot" else util.cos_sim


def scale_of(scale: float | None, similarity: str) -> float:
    """Return the scale that is asked for, or 20 for cosine and 1 for dot product (sentence-transformers' advice)."""
    return float(scale) if scale is not None else 1.0 if similarity == "dot" else COSINE_SCALE


def check_scale(recipe: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError where the option ``scale`` is neither None nor a positive number."""
    check_number(recipe, options, "scale", above=0.0, optional=True)


def check_unread(recipe: Any, options: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise ConfigError where one of the options that are not read ``where`` a mode is what it is differs from its default."""
    if odd := next((key for key in keys if options[key] != recipe.options[key]), None):
        raise ConfigError(
            f"The option {odd} of the recipe {recipe.name} must be left out {where}, which does not read it. Got {options[odd]!r} instead."
        )


def check_number(
    recipe: str,
    options: Mapping[str, Any],
    key: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> None:
    """Raise ConfigError where an option is not a number within bounds (a whole one, or None where that is allowed)."""
    value = options[key]
    if value is None and optional:
        return
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    bounds = {"at least": least, "more than": above, "at most": most, "less than": below}
    holds = {"at least": operator.ge, "more than": operator.gt, "at most": operator.le, "less than": operator.lt}
    given = {said: bound for said, bound in bounds.items() if bound is not None}
    if not number or not all(holds[said](value, bound) for said, bound in given.items()):
        wanted = " and ".join(f"{said} {bound:g}" for said, bound in given.items())
        kind = "a whole number" if whole else "a number"
        empty = ", or left out" if optional else ""
        raise ConfigError(f"The option {key} of the recipe {recipe} must be {kind}, {wanted}{empty}. Got {value!r} instead.")
