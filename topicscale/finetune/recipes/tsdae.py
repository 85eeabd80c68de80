"""TSDAE: rebuild a text from the embedding of what is left of it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topicscale.config import FinetuneConfig
from topicscale.errors import ConfigError, ModelError
from topicscale.finetune import words
from topicscale.finetune.in_batch import check_number
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools


class Tsdae(Recipe):
    """Transformer-based sequential denoising auto-encoder (Wang, Reimers, Gurevych, Findings of EMNLP 2021, arXiv:2104.06979).

    60 % of a text's words are deleted, the rest is embedded, and a decoder that sees nothing of it but the embedding writes the
    whole text. The decoder has the encoder's own weights (tied) plus cross-attention, which starts untrained, and the language model's
    head: a plain language model's own; a base that was saved as an embedding model has lost it, and its layers start untrained.

    Needs texts alone, and an architecture with cross-attention whose decoder has the encoder's layers (BERT, RoBERTa, XLM-RoBERTa,
    CamemBERT, ELECTRA, GPT-2 and others; not DistilBERT, MPNet or ModernBERT, which are no decoders, nor Llama, which ignores the
    setting and would never see the embedding); one process, since the decoder's weights are outside what DDP averages. When it helps:
    the abstract gives up to 93.1 % of in-domain supervised performance, and says that it does better than masked language modelling
    as domain adaptation and as pre-training.

    Defaults are the paper's, which are those of its authors' example in sentence-transformers (``train_tsdae_from_file.py``): batch
    8, constant learning rate 3e-5, no weight decay, CLS pooling, one pass. Words are cut at white space here, by NLTK there.
    """

    name = "tsdae"
    kinds = ("texts",)
    defaults = Defaults(epochs=1, batch_size=8, learning_rate=3e-5, warmup=0.0, weight_decay=0.0, scheduler="constant", pooling="cls")
    options = {"deletion": 0.6}  # noqa: RUF012 (declared a ClassVar in Recipe)
    parallel = False
    own_weights = True
    fresh = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ModelError where the base has no cross-attention, ConfigError where ``deletion`` is no share of words."""
        check_number(self.name, options, "deletion", above=0.0, below=1.0)
        if not base.cross_attention:
            instead = "simcse, crop or mlm" if base.mask_token else "simcse or crop"
            raise ModelError(
                "The recipe tsdae needs a base whose architecture can decode with cross-attention, such as bert, roberta, xlm-roberta, "
                f"camembert, electra or gpt2. Got {base.model_type!r} instead. Use {instead} for it."
            )

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:
        """Raise ConfigError with LoRA: its weights have other names than the decoder's, and cannot be tied."""
        if settings.lora:
            raise ConfigError("finetune.lora must be left out for the recipe tsdae: its decoder shares the encoder's weights.")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (damaged, original), a row for each text in its order. What is deleted depends on the seed and the text alone."""
        texts = data["text"].to_pylist()
        damaged = [words.delete(words.split(text), options["deletion"], words.draw(seed, text)) for text in texts]
        return pa.table({"damaged": pa.array(damaged, pa.string()), "original": pa.array(texts, pa.string())})

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return ``DenoisingAutoEncoderLoss`` with a decoder of the encoder's own weights, frozen where those are."""
        from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

        transformer = model.transformers_model
        own, source = dict(transformer.named_parameters()), transformer.config._name_or_path
        # the loss reads its decoder from a folder by name: the base's own would miss cut layers, other dropout and added tokens
        with tempfile.TemporaryDirectory() as folder:
            transformer.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
            transformer.config._name_or_path = folder
            try:
                loss = DenoisingAutoEncoderLoss(model)
            finally:
                transformer.config._name_or_path = source
        _give_head(loss.decoder, base)
        # tied, the encoder has the decoder's weights: both get the encoder's own, which other losses may share
        inner = loss.decoder.base_model
        for name in own.keys() & dict(inner.named_parameters()).keys():
            where, _, leaf = name.rpartition(".")
            for part in (transformer, inner):
                setattr(part.get_submodule(where), leaf, own[name])
        loss.decoder.tie_weights()
        return loss.to(model.device)


def _give_head(decoder: Any, base: str) -> None:
    """Copy what a base's files hold of a language model's head; the rest of the decoder stays as it is."""
    import torch
    from transformers import AutoModelForCausalLM

    from topicscale.finetune.crossencoder import transformer

    found: Any = AutoModelForCausalLM.from_pretrained(
        transformer(base), config=decoder.config, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    language, told = found
    inside, there = f"{decoder.base_model_prefix}.", dict(language.named_parameters())
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if not name.startswith(inside) and name not in told["missing_keys"]:
                weight.copy_(there[name])


RECIPES: dict[str, Recipe] = {"tsdae": Tsdae()}
