"""The model that training starts from: what it is, found out without loading it, and how it is made ready and taken apart again."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topicscale.config import numbers
from topicscale.errors import ConfigError, MissingDependency, ModelError
from topicscale.finetune.architecture import can_cross_attend, first_of, has_mask, mapping, pooling_of
from topicscale.llm import models as llm
from topicscale.models import modules, positions, read_json, resolve

LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "layers_to_transform": None,
    "use_rslora": False,
    "use_dora": False,
}
"""What ``lora`` may hold, and what it is where left out: all linear layers (Dettmers et al., QLoRA, NeurIPS 2023)."""
_DROPOUT = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "dropout",
    "dropout_rate",
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
)
"""What transformers' configurations call dropout."""


@dataclass(frozen=True)
class Base:
    """A model that can be trained, as its files describe it."""

    name: str
    path: Path
    """A folder of safetensors."""
    revision: str
    model_type: str
    """``transformers``' name of the architecture."""
    layers: int
    dimensions: int
    """Length of a token's vector."""
    positions: int | None
    """Longest text that it can read, in tokens."""
    pooling: str | None
    """mean, max, cls or another mode of sentence-transformers; None for a plain language model, which has none yet."""
    mask_token: bool
    """Whether its tokenizer has a mask token and its architecture a masked language model."""
    cross_attention: bool
    """Whether its architecture can be a decoder that attends to an encoder's output."""
    causal: bool
    """Whether a token sees only the tokens before it."""
    prompt: str = ""
    """What it puts before every text by default."""


def inspect(name: str) -> Base:
    """Return what a model is. Its weights are not loaded; a GGUF file is unpacked once (see :func:`topicscale.llm.models.folder`).

    Parameters
    ----------
    name : str
        A packaged embedding or language model, a folder, a GGUF file, or a hub id.

    Raises
    ------
    ModelError
        It cannot be found, is pickled, holds code of its own, or is no transformer.
    MissingDependency
        It is a GGUF file, and what unpacks it is not installed.
    """
    if name in llm.PACKAGED or name.endswith(".gguf"):
        packed = llm.resolve(name)
        if not llm.is_unpacked(packed):
            for package in ("accelerate", "gguf"):
                if importlib.util.find_spec(package) is None:
                    raise MissingDependency(package, "llm", f"The language model {name!r}")
        path, revision = llm.folder(packed), packed.revision
    else:
        found = resolve(name)
        path, revision = found.path, found.revision
    parts = modules(path)
    first = path / str(parts[0].get("path", "")) if parts else path
    if parts and not str(parts[0]["type"]).endswith("Transformer"):
        kind = str(parts[0]["type"]).rpartition(".")[2]
        raise ModelError(f"finetune.base must be a transformer. Got {name!r}, which begins with a {kind}, instead.")
    config = read_json(first / "config.json")
    kind = str(config.get("model_type") or "")
    layers = first_of(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    dimensions = first_of(config, "hidden_size", "n_embd", "dim", "d_model")
    if not kind or layers is None or dimensions is None:
        raise ModelError(f"The config.json of model {name!r} names no model_type, layers or hidden size: it is no text transformer.")
    causal_name = mapping("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES").get(kind)
    masked_name = mapping("MODEL_FOR_MASKED_LM_MAPPING_NAMES").get(kind)
    return Base(
        name=name,
        path=path,
        revision=revision,
        model_type=kind,
        layers=layers,
        dimensions=dimensions,
        positions=positions(config),
        pooling=pooling_of(path, parts),
        mask_token=masked_name is not None and has_mask(first),
        cross_attention=causal_name is not None and can_cross_attend(kind),
        causal=causal_name is not None and masked_name is None and not config.get("use_bidirectional_attention"),
        prompt=_prompt(path),
    )


def check(
    base: Base,
    *,
    pooling: str | None = None,
    layers: int | None = None,
    freeze: int = 0,
    max_tokens: int | None = None,
    lora: Mapping[str, Any] | None = None,
) -> None:
    """Raise ModelError, ConfigError or MissingDependency where :func:`build` could not do what it is asked for."""
    kept = base.layers if layers is None else layers
    if not 1 <= kept <= base.layers:
        raise ModelError(f"finetune.layers must be from 1 to the {base.layers} layers of {base.name!r}. Got {layers} instead.")
    if not 0 <= freeze < kept:
        raise ModelError(f"finetune.freeze must be from 0 to {kept - 1}: of {kept} layers one must be trained. Got {freeze} instead.")
    if max_tokens is not None and not 2 <= max_tokens <= (base.positions or max_tokens):
        raise ModelError(
            f"finetune.max_tokens must be from 2 to the {base.positions} positions of {base.name!r}. Got {max_tokens} instead."
        )
    if pooling is not None and pooling not in ("mean", "max", "cls"):
        raise ConfigError(f"finetune.pooling must be mean, max or cls. Got {pooling!r} instead.")
    if pooling == "cls" and base.causal:
        raise ModelError(
            f"finetune.pooling=cls needs a model whose first token sees the others. In {base.name!r} ({base.model_type}) a token sees only "
            "those before it. Use mean."
        )
    if lora:
        if unknown := [key for key in lora if key not in LORA]:
            raise ConfigError(f"finetune.lora has no key {unknown[0]!r}. It has: {', '.join(LORA)}.")
        if freeze:
            raise ConfigError(
                f"finetune.freeze must be 0 with finetune.lora, which trains none of the base's weights. Got {freeze} instead."
            )
        if importlib.util.find_spec("peft") is None:
            raise MissingDependency("peft", "finetune", "finetune.lora")


def build(
    base: Base,
    *,
    pooling: str | None = None,
    similarity: str = "cosine",
    layers: int | None = None,
    freeze: int = 0,
    dropout: float | None = None,
    max_tokens: int | None = None,
    lora: Mapping[str, Any] | None = None,
) -> Any:
    """Return the base ready for training: a SentenceTransformer in float32 on the CPU.

    A plain language model gets a pooling module (mean where none is named), and its end-of-text token for padding where it has no other.

    Parameters
    ----------
    similarity : {"cosine", "dot"}
        With dot, modules that normalise vectors are left out, and the model says that it is to be compared by dot product.
    layers : int, optional
        Keep only so many of the first layers.
    freeze : int
        Layers, from the first, that are not trained. With 1 or more, the embeddings (of tokens, and of positions where they are learned)
        are not trained either.
    dropout : float, optional
        Replaces every dropout probability of the base's configuration.
    lora : mapping, optional
        See :data:`LORA`. The weights of the base are then frozen.

    Raises
    ------
    ModelError, ConfigError, MissingDependency
        See :func:`check`; or the model cannot be loaded.
    """
    check(base, pooling=pooling, layers=layers, freeze=freeze, max_tokens=max_tokens, lora=lora)
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoConfig

    llm.quiet()
    loading: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True}
    parts = modules(base.path)
    first_path = base.path / str(parts[0].get("path", "")) if parts else base.path
    settings: dict[str, Any] = {}
    model: Any
    first: Any
    try:
        if dropout is not None:
            config = AutoConfig.from_pretrained(first_path, trust_remote_code=False, local_files_only=True)
            settings = {key: dropout for key in _DROPOUT if hasattr(config, key)}
            if not settings:
                raise ModelError(f"finetune.dropout cannot be set: the configuration of {base.name!r} ({base.model_type}) has no dropout.")
        if parts:
            model = SentenceTransformer(
                str(base.path),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs=loading,
                config_kwargs=settings,
            )
        else:
            first = Transformer(
                str(base.path),
                model_kwargs={**loading, "trust_remote_code": False, "local_files_only": True},
                processor_kwargs={"trust_remote_code": False, "local_files_only": True},
                config_kwargs={**settings, "trust_remote_code": False, "local_files_only": True},
            )
            model = SentenceTransformer(modules=[first, Pooling(base.dimensions, pooling or "mean")], device="cpu")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"The model {base.name!r} cannot be loaded ({type(error).__name__}): {error}") from error
    first = model[0]
    encoder, tokenizer = first.auto_model, first.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if encoder.config.pad_token_id is None:
        encoder.config.pad_token_id = tokenizer.pad_token_id
    if pooling is not None and pooling != base.pooling:
        where = next((i for i, part in enumerate(model) if isinstance(part, Pooling)), None)
        if where is None:
            raise ModelError(f"finetune.pooling cannot be set: {base.name!r} has no module that pools.")
        model[where] = Pooling(base.dimensions, pooling)
    if similarity == "dot":
        kept = [part for part in model if not isinstance(part, Normalize)]
        if len(kept) < len(model):
            prompts, default = model.prompts, model.default_prompt_name
            model = SentenceTransformer(modules=kept, device="cpu", prompts=prompts, default_prompt_name=default)
    model.similarity_fn_name = similarity
    if max_tokens is not None:
        model.max_seq_length = max_tokens
    elif base.positions is not None:
        model.max_seq_length = min(model.max_seq_length or base.positions, base.positions)
    if layers is not None and layers < base.layers:
        _truncate(encoder, base, layers)
    if freeze:
        for part in (
            encoder.get_input_embeddings(),
            getattr(encoder, "embeddings", None),
            *_stack(encoder, layers or base.layers)[:freeze],
        ):
            if part is not None:
                part.requires_grad_(False)
    if lora:
        from peft import LoraConfig

        encoder.add_adapter(LoraConfig(**{**LORA, **numbers(lora)}))
    return model


def finish(model: Any) -> Any:
    """Return a trained model as a plain one, in place: on the CPU, in float32, low-rank additions merged into the weights."""
    encoder = model[0].auto_model
    if getattr(encoder, "_hf_peft_config_loaded", False):
        from peft.tuners.tuners_utils import BaseTunerLayer

        adapted = [(name, part) for name, part in encoder.named_modules() if isinstance(part, BaseTunerLayer)]
        for name, part in adapted:
            part.merge(safe_merge=True)
            parent, _, leaf = name.rpartition(".")
            setattr(encoder.get_submodule(parent), leaf, part.get_base_layer())
        encoder._hf_peft_config_loaded = False
        del encoder.peft_config
    return model.cpu().float().eval().requires_grad_(True)


def _prompt(path: Path) -> str:
    file = path / "config_sentence_transformers.json"
    settings = read_json(file) if file.is_file() else {}
    return (settings.get("prompts") or {}).get(settings.get("default_prompt_name") or "") or ""


def _stack(encoder: Any, layers: int) -> Any:
    """Return the list of a transformer's layers."""
    from torch.nn import ModuleList

    found = next((part for part in encoder.modules() if isinstance(part, ModuleList) and len(part) == layers), None)
    if found is None:
        raise ModelError(f"The layers of {type(encoder).__name__} cannot be found: leave finetune.layers and finetune.freeze as they are.")
    return found


def _truncate(encoder: Any, base: Base, layers: int) -> None:
    stack = _stack(encoder, base.layers)
    del stack[layers:]
    encoder.config.num_hidden_layers = layers
    if getattr(encoder.config, "layer_types", None):
        encoder.config.layer_types = encoder.config.layer_types[:layers]
