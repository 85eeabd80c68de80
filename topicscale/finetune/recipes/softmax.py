"""Pairs with an inference label: a classifier over the two vectors, whose weights are thrown away afterwards.

Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, section 3 (classification objective: softmax over W (u, v, \\|u - v\\|)) and 3.1
(1 epoch, batch 16, Adam at 2e-5, warm-up over 10 % of the steps, mean pooling). The ablation of its section 6 finds \\|u - v\\| to be what
matters in the concatenation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from topicscale.finetune.recipe import NLI, Defaults, Kind, Recipe, Tools


class Softmax(Recipe):
    """Three-way softmax over natural language inference.

    Data: ``sentence1, sentence2, label`` (kind nli). Any architecture. Vectors are compared as they are, so ``similarity`` changes nothing.
    """

    name: ClassVar[str] = "softmax"
    kinds: ClassVar[tuple[Kind, ...]] = ("nli",)
    defaults: ClassVar[Defaults] = Defaults(epochs=1, batch_size=16, learning_rate=2e-5, warmup=0.1)
    own_weights: ClassVar[bool] = True

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return the pairs as they are; the label is its place in :data:`~topicscale.finetune.recipe.NLI` (int64)."""
        import pyarrow.compute as pc

        label = pc.index_in(data["label"].cast(pa.string()), value_set=pa.array(NLI)).cast(pa.int64())
        return data.select(["sentence1", "sentence2"]).append_column("label", label)

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return SoftmaxLoss, its classifier of 3 x 3d weights drawn by the process's seed."""
        from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

        return SoftmaxLoss(model, model.get_embedding_dimension(), num_labels=len(NLI))


RECIPES: dict[str, Recipe] = {"softmax": Softmax()}
