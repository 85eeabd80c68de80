"""Contrastive learning with nearest neighbours: what the base finds alike is drawn together, and told from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from topicscale.errors import InputError
from topicscale.finetune import in_batch, words
from topicscale.finetune.mining import top
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools


class NearestNeighbours(Recipe):
    """Contrastive learning with nearest neighbours (Zhang, Zhang, Zhan, Wu, Lam, ACL 2022, arXiv:2205.12914, section 3.3, "CLNN").

    Each text is paired with one of its ``neighbours`` nearest texts, drawn anew in each pass. All texts of a batch are compared: those
    of which one is among the other's nearest are to be alike, the rest not. So neighbourhoods get denser and what lies between them
    empties, which is what clustering asks for; what a text is a duplicate or an answer of is learnt no better.

    Needs texts alone, of any architecture, and a base that already finds alike what belongs together: its mistakes are learnt too.
    When it helps: short texts of many kinds, as questions to a help desk are, in a corpus with many more than ``neighbours`` texts of
    each kind. ``--recipe clnn,clnn`` looks for neighbours a second time, with what the first time taught.

    Loss, two views and temperature (.07) are the authors' (fanolabs/NID_ACLARR2022). They replace a quarter of the tokens at random,
    look for neighbours every fifth of 34 passes at a learning rate of 1e-5, and take 50 of them in batches of 128: made for models
    that know no similarity yet. Here texts are left as they are, and three passes at a rate ten times as high do.
    """

    name = "clnn"
    kinds = ("texts",)
    defaults = Defaults(epochs=3, batch_size=64, learning_rate=1e-4, warmup=0.1, weight_decay=0.01)
    options = {"neighbours": 50, "scale": None}  # noqa: RUF012 (declared a ClassVar)
    fresh = True
    no_duplicates = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is out of range."""
        in_batch.check_number(self.name, options, "neighbours", least=1, whole=True)
        in_batch.check_scale(self.name, options)

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (anchor, positive, label), a row for each different text.

        ``label``, a list of int64, holds the numbers of the anchor, of the positive, of all of the anchor's neighbours and of the
        positive's.

        Raises
        ------
        InputError
            There are no more different texts than neighbours are asked for.
        """
        texts = list(dict.fromkeys(data["text"].to_pylist()))
        k = options["neighbours"]
        if len(texts) <= k:
            raise InputError(
                f"The recipe clnn needs more different texts than its option neighbours, {k}. Got {len(texts)} instead: set fewer "
                "neighbours, a third of the texts of a kind or so."
            )
        vectors = tools.embed(base, texts)
        near, _ = top(vectors, vectors, k, excluded=[[row] for row in range(len(texts))])
        drawn = near[np.arange(len(texts)), [words.draw(seed, text).randrange(k) for text in texts]]
        label = np.column_stack([np.arange(len(texts)), drawn, near, near[drawn]])
        return pa.table(
            {
                "anchor": pa.array(texts, pa.string()),
                "positive": pa.array([texts[row] for row in drawn], pa.string()),
                "label": pa.array(list(label), pa.list_(pa.int64())),
            }
        )

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the loss (see :class:`topicscale.finetune.neighbours.NeighboursLoss`)."""
        from topicscale.finetune.neighbours import SCALE, NeighboursLoss

        scale = SCALE if options["scale"] is None and similarity == "cosine" else in_batch.scale_of(options["scale"], similarity)
        return NeighboursLoss(model, scale=scale, compare=in_batch.function(similarity), gather=workers > 1)


RECIPES: dict[str, Recipe] = {"clnn": NearestNeighbours()}
