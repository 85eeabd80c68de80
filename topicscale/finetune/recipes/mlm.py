"""Masked language modelling: adaptive pre-training on the documents themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from topicscale.errors import ModelError
from topicscale.finetune.in_batch import check_number
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools
from topicscale.models import modules


class Mlm(Recipe):
    """Masked language modelling (Devlin et al., BERT, NAACL 2019) on the domain's own texts, before supervised training.

    Of a text's tokens 15 % are chosen and must be guessed: 80 % of those are replaced by the mask token, 10 % by a random token, and
    10 % stay. Every pass masks others. It trains the encoder alone: a supervised recipe should follow it, since nothing here makes
    embeddings of similar texts similar.

    Needs texts alone, and a base with a mask token and a masked language model (BERT, RoBERTa, MPNet, DistilBERT, ModernBERT ...;
    not Llama, not GPT-2). A base that was saved as an embedding model has lost its language model's head: the head's layers then start
    untrained, its output embeddings are the encoder's. When it helps: Gururangan et al. (Don't stop pretraining, ACL 2020) find gains
    on eight classification tasks in four domains, with many and with few labels, from both the domain's and the task's own texts.
    Wang et al. (TSDAE, Findings of EMNLP 2021) find TSDAE better for sentence embeddings.

    Defaults: learning rate 1e-4, warm-up 6 %, weight decay .01, as Gururangan et al. adapt to a task (batch 256, 100 passes there); batch
    64 and 3 passes as in sentence-transformers' example (``train_mlm.py``), which masks whole words.
    """

    name = "mlm"
    kinds = ("texts",)
    defaults = Defaults(epochs=3, batch_size=64, learning_rate=1e-4, warmup=0.06, weight_decay=0.01, pooling="mean")
    options = {"share": 0.15}  # noqa: RUF012 (declared a ClassVar in Recipe)
    own_weights = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ModelError where the base cannot be a masked language model, ConfigError where ``share`` is no share of tokens."""
        check_number(self.name, options, "share", above=0.0, below=1.0)
        if not base.mask_token:
            raise ModelError(
                "The recipe mlm needs a base with a mask token and a masked language model, such as bert, roberta, mpnet, distilbert or "
                f"modernbert. Got {base.name!r} ({base.model_type}) instead. Use simcse or crop for it."
            )

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (text,), as given: the loss does the masking."""
        return data.select(["text"])

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return a loss that masks with torch's random numbers, which checkpoints hold, and guesses with the base's head.

        Raises
        ------
        ModelError
            The base is an encoder and a decoder, or its masked language model's output layer is not found.
        """
        return masked_language_loss(model, options["share"], base=base)


def masked_language_loss(model: Any, share: float, *, base: str) -> Any:
    """Return the loss, a ``torch.nn.Module``: (features of one text column, labels ignored) -> mean cross-entropy of the chosen tokens.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    share : float
        Of the tokens that are no special tokens, how many are chosen.
    base : str
        The folder that the head's weights are read from, where it has them.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    class _Output:
        """An encoder's output of which the head needs the first field alone; all others (attentions, cache) are None."""

        def __init__(self, hidden: torch.Tensor) -> None:
            self.fields = (hidden,)

        def __getitem__(self, key: Any) -> Any:
            return self.fields[key]

        def __getattr__(self, name: str) -> Any:
            return self.fields[0] if name == "last_hidden_state" else None

    class _Given(torch.nn.Module):
        """Stands in the encoder's place inside the language model, so that its own forward applies the head alone."""

        hidden: torch.Tensor

        def forward(self, *_: Any, **__: Any) -> Any:
            return _Output(self.hidden)

    class MaskedLanguageLoss(torch.nn.Module):
        special: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model  # under this name the trainer puts the model that all workers train
            self.share = share
            tokenizer = model.tokenizer
            self.mask, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
            self.register_buffer("special", torch.tensor(sorted(set(tokenizer.all_special_ids))), persistent=False)
            encoder = model.transformers_model
            if encoder.config.is_encoder_decoder:
                raise ModelError(f"The recipe mlm needs a base that is an encoder alone. Got {encoder.config.model_type!r} instead.")
            parts = modules(Path(base))
            folder = Path(base) / str(parts[0].get("path", "")) if parts else Path(base)
            config = copy.deepcopy(encoder.config)  # the model's own: layers may have been cut
            language = AutoModelForMaskedLM.from_pretrained(
                folder, config=config, trust_remote_code=False, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
            output, embeddings = language.get_output_embeddings(), encoder.get_input_embeddings()
            if output is None or embeddings is None or not hasattr(language, language.base_model_prefix):
                raise ModelError(f"The recipe mlm cannot find the output layer of {type(language).__name__}. Use simcse or crop.")
            if output.weight is language.get_input_embeddings().weight:
                output.weight = embeddings.weight
            given = _Given()
            # DeBERTa's head reads the input embeddings through the encoder; not registered, or they would be saved twice
            object.__setattr__(given, "embeddings", getattr(encoder, "embeddings", None))
            setattr(language, language.base_model_prefix, given)
            self.head, self.given = language, given

        def choose(self, ids: torch.Tensor, attended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Return token ids with those to guess replaced, and which they are: int64 (n, t), bool (n, t)."""
            ordinary = ~torch.isin(ids, self.special) & attended.bool()
            drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~ordinary, 2.0)
            chosen = drawn < self.share
            if not chosen.any() and ordinary.any():  # a few short texts: a batch without a guess would teach nothing
                chosen = drawn == drawn.min()
            how = torch.rand(ids.shape, device=ids.device)
            masked = ids.masked_fill(chosen & (how < 0.8), self.mask)
            other = torch.randint(self.vocabulary, ids.shape, device=ids.device)
            return torch.where(chosen & (how >= 0.9), other, masked), chosen

        def guess(self, hidden: torch.Tensor) -> torch.Tensor:
            """Return the head's logits for token vectors: (m, d) -> (m, vocabulary)."""
            self.given.hidden = hidden[None]
            try:
                logits: torch.Tensor = self.head(input_ids=None).logits
            finally:
                del self.given.hidden  # else the pass's graph would live on in the loss
            return logits[0]

        def forward(self, sentence_features: Any, labels: Any = None) -> torch.Tensor:
            features = dict(next(iter(sentence_features)))
            ids = features["input_ids"]
            features["input_ids"], chosen = self.choose(ids, features["attention_mask"])
            hidden: torch.Tensor = self.model(features)["token_embeddings"]
            taught = bool(chosen.any())
            if not taught:  # the head is used all the same: its gradients are averaged over workers, each of which must have some
                chosen = torch.zeros_like(chosen).index_fill_(1, torch.zeros(1, dtype=torch.int64, device=ids.device), True)
            loss = torch.nn.functional.cross_entropy(self.guess(hidden[chosen]).float(), ids[chosen])
            return loss if taught else loss * 0.0

        def get_config_dict(self) -> dict[str, Any]:
            return {"share": self.share}

    return MaskedLanguageLoss().to(model.device)


RECIPES: dict[str, Recipe] = {"mlm": Mlm()}
