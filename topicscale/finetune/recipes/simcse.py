"""SimCSE: a text is its own positive, seen through another dropout mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topicscale.config import FinetuneConfig
from topicscale.errors import ModelError
from topicscale.finetune import in_batch
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools
from topicscale.models import modules, read_json


class SimCse(Recipe):
    """Unsupervised SimCSE (Gao, Yao, Chen, EMNLP 2021, arXiv:2104.08821): each text is embedded twice, each time with other dropout.

    The two embeddings are each other's positive and those of the batch's other texts the negatives, at temperature .05.

    Needs texts alone, and a base with dropout: without it both embeddings are equal, and the paper finds that the representation
    then collapses. Train briefly: the paper makes one pass over a million sentences and keeps the best of its checkpoints on STSB.
    When it helps: the paper starts from language models that were never trained for similarity. Its extra layer, which is trained
    and then thrown away (``--mlp_only_train``), is left out, as in sentence-transformers' example.

    Defaults are the authors' for BERT-base (README of princeton-nlp/SimCSE): batch 64, learning rate 3e-5, CLS pooling, one pass,
    and their training code's linear schedule without warm-up.
    """

    name = "simcse"
    kinds = ("texts",)
    defaults = Defaults(epochs=1, batch_size=64, learning_rate=3e-5, warmup=0.0, weight_decay=0.0, pooling="cls")
    options = {"scale": None}  # noqa: RUF012 (declared a ClassVar in Recipe)
    no_duplicates = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where ``scale`` is not positive."""
        in_batch.check_scale(self.name, options)

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:
        """Raise ModelError where neither the base nor ``finetune.dropout`` has any dropout."""
        parts = modules(base.path)
        folder = base.path / str(parts[0].get("path", "")) if parts else base.path
        rates = dropout(read_json(folder / "config.json"))
        if not rates:
            raise ModelError(f"The recipe simcse needs a base with dropout. {base.name!r} ({base.model_type}) has none. Use crop.")
        if not (any(rates.values()) if settings.dropout is None else settings.dropout):
            raise ModelError(f"The recipe simcse needs dropout. Got {', '.join(sorted(rates))} of 0 instead. Set finetune.dropout=0.1.")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (anchor, positive), both the text, a row for each different text: equal texts would be each other's negatives."""
        texts = pa.array(list(dict.fromkeys(data["text"].to_pylist())), pa.string())
        return pa.table({"anchor": texts, "positive": texts})

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return multiple negatives ranking loss, which embeds each column in a pass of its own and so with dropout of its own.

        Raises
        ------
        ModelError
            All dropout rates of the model are 0.
        """
        rates = dropout(model.transformers_model.config.to_dict())
        if not any(rates.values()):
            raise ModelError(f"The recipe simcse needs dropout. Got {', '.join(sorted(rates))} of 0 instead. Set finetune.dropout=0.1.")
        return in_batch.loss(model, options["scale"], similarity=similarity, workers=workers)


def dropout(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the dropout rates of a transformers configuration (``config.json``), those of its class where the file is silent.

    Rates that act while a classifier's head, or a layer as a whole, is trained are left out.
    """
    from transformers import CONFIG_MAPPING

    known = CONFIG_MAPPING[config["model_type"]]().to_dict() if config.get("model_type") in CONFIG_MAPPING else {}
    return {
        key: float(value)
        for key, value in {**known, **config}.items()
        if (("dropout" in key and not key.endswith("layerdrop")) or key.endswith("_pdrop"))
        and not key.startswith(("classifier", "summary", "seq_classif"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


RECIPES: dict[str, Recipe] = {"simcse": SimCse()}
