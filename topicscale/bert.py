"""The fast path: BERT encoders (MiniLM, BGE, E5, GTE and their kind) without transformers.

Most sentence-embedding models are BERT, pooled by mean or first token. For those alone this file repeats the forward
pass (Devlin et al. 2019, BERT; Reimers and Gurevych 2019, Sentence-BERT), for two reasons. Importing sentence-transformers
and transformers costs every worker more time than embedding thousands of texts. And oneDNN, given weights laid out once
for the matrix units, adds the bias, GELU and residual while a product's result is still in registers.

``load`` returns None for any other model; those go through sentence-transformers' own modules.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FAMILY = "sentence_transformers."
_NEWER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
"""What sentence-transformers 6 writes of a plain transformer."""


class Bert:
    """A BERT encoder with its pooling; see :func:`load`."""

    def __init__(self, weights: dict[str, Any], config: dict[str, Any], *, dtype: Any, device: str, first_token: bool) -> None:
        import torch

        self._torch, self._first_token = torch, first_token
        self._heads, self._eps = int(config["num_attention_heads"]), float(config["layer_norm_eps"])
        self.dimensions, self.positions = int(config["hidden_size"]), int(config["max_position_embeddings"])
        packed = device == "cpu" and _can_fuse(dtype)

        def get(name: str) -> Any:
            return weights[name].to(device=device, dtype=dtype).contiguous()

        def linear(*names: str) -> Linear:
            matrix = torch.cat([get(f"{name}.weight") for name in names])
            bias = torch.cat([get(f"{name}.bias") for name in names])
            return Linear(matrix, bias, packed=packed)

        def norm(name: str) -> tuple[Any, Any]:
            return get(f"{name}.weight"), get(f"{name}.bias")

        self._words = get("embeddings.word_embeddings.weight")
        # every text is of the first type: added to the positions once
        self._places = get("embeddings.position_embeddings.weight") + get("embeddings.token_type_embeddings.weight")[0]
        self._norm = norm("embeddings.LayerNorm")
        self._layers = []
        for number in range(int(config["num_hidden_layers"])):
            at, self_ = f"encoder.layer.{number}", f"encoder.layer.{number}.attention.self"
            self._layers.append(
                (
                    linear(f"{self_}.query", f"{self_}.key", f"{self_}.value"),
                    linear(f"{at}.attention.output.dense"),
                    norm(f"{at}.attention.output.LayerNorm"),
                    linear(f"{at}.intermediate.dense"),
                    linear(f"{at}.output.dense"),
                    norm(f"{at}.output.LayerNorm"),
                )
            )

    def __call__(self, ids: Any, mask: Any) -> Any:
        """Return sentence embeddings, float32 (n, d), of token ids and their mask, both int64 (n, length)."""
        torch = self._torch
        functional = torch.nn.functional
        texts, length = ids.shape
        width, heads = self.dimensions, self._heads
        # a batch of one length needs no mask, and attention without one is faster
        visible = None if bool(mask.all()) else mask.bool()[:, None, None, :]

        def normed(values: Any, norm: tuple[Any, Any]) -> Any:
            return functional.layer_norm(values, (width,), norm[0], norm[1], self._eps)

        x = normed(self._words[ids] + self._places[:length], self._norm).view(texts * length, width)
        for qkv, out, norm_1, up, down, norm_2 in self._layers:
            q, k, v = qkv(x).view(texts, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
            x = normed(out.plus(seen.transpose(1, 2).reshape(texts * length, width), x), norm_1)
            x = normed(down.plus(up.gelu(x), x), norm_2)
        x = x.view(texts, length, width)
        if self._first_token:
            return x[:, 0].float()
        weight = mask.unsqueeze(-1).float()
        return (x.float() * weight).sum(1) / weight.sum(1)


class Linear:
    """A product with a constant matrix, and what follows it."""

    def __init__(self, matrix: Any, bias: Any, *, packed: bool) -> None:
        import torch

        self._functional, self._bias = torch.nn.functional, bias
        self._fused = torch.ops.mkldnn._linear_pointwise if packed else None
        self._matrix = torch.ops.mkldnn._reorder_linear_weight(matrix) if packed else matrix

    def __call__(self, x: Any) -> Any:
        if self._fused is not None:
            return self._fused(x, self._matrix, self._bias, "none", [], "")
        return self._functional.linear(x, self._matrix, self._bias)

    def gelu(self, x: Any) -> Any:
        """Return GELU (exact, by erf) of the product."""
        if self._fused is not None:
            return self._fused(x, self._matrix, self._bias, "gelu", [], "none")
        return self._functional.gelu(self(x))

    def plus(self, x: Any, other: Any) -> Any:
        """Return the product plus ``other``."""
        if self._fused is not None:
            return self._fused.binary(x, other, self._matrix, self._bias, "add")
        return self(x) + other


def load(path: Path, *, dtype: Any, device: str) -> tuple[Bert, Any, int] | None:
    """Return the model in a folder, its tokenizer (of the package tokenizers) and its length limit; None if it is not of this kind.

    Parameters
    ----------
    path : Path
        A folder that :func:`topicscale.models.resolve` has accepted.
    dtype : torch.dtype
    device : {"cpu", "cuda"}
    """
    settings = _settings(path)
    if settings is None:
        return None
    config, pooling, limit = settings
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    weights = {name.removeprefix("bert."): value for name, value in load_file(path / "model.safetensors").items()}
    try:
        model = Bert(weights, config, dtype=dtype, device=device, first_token=pooling == "cls")
    except KeyError:  # weights under other names: leave them to transformers
        return None
    return model, Tokenizer.from_file(str(path / "tokenizer.json")), min(limit, model.positions)


def _settings(path: Path) -> tuple[dict[str, Any], str, int] | None:
    def read(*names: str) -> dict[str, Any]:
        file = path.joinpath(*names)
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return content if isinstance(content, dict) else {}

    if not all((path / name).is_file() for name in ("modules.json", "model.safetensors", "tokenizer.json", "config.json")):
        return None
    config, sentence, hub = read("config.json"), read("sentence_bert_config.json"), read("config_sentence_transformers.json")
    if sentence == _NEWER:  # sentence-transformers 6 keeps the length limit with the tokenizer
        sentence = {"max_seq_length": read("tokenizer_config.json").get("model_max_length")}
    parts = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(part["type"]).rpartition(".")[2] for part in parts]
    plain: list[Callable[[], bool]] = [
        lambda: kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]),
        lambda: all(str(part["type"]).startswith(_FAMILY) for part in parts) and parts[0].get("path", "") == "",
        lambda: config.get("model_type") == "bert" and config.get("hidden_act") == "gelu" and not config.get("is_decoder", False),
        lambda: config.get("position_embedding_type", "absolute") == "absolute",
        lambda: isinstance(sentence.get("max_seq_length"), int) and set(sentence) <= {"max_seq_length", "do_lower_case"},
        lambda: not sentence.get("do_lower_case", False) and hub.get("default_prompt_name") is None,
    ]
    if not all(condition() for condition in plain):
        return None
    pooling = read(str(parts[1]["path"]), "config.json")
    modes = [name.removeprefix("pooling_mode_") for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    mode = {"mean_tokens": "mean", "cls_token": "cls"}.get(modes[0]) if len(modes) == 1 else pooling.get("pooling_mode")
    if mode not in ("mean", "cls") or pooling.get("include_prompt") is False:
        return None
    return config, str(mode), int(sentence["max_seq_length"])


def _can_fuse(dtype: Any) -> bool:
    # operators that torch's own compiler emits, not part of its documented interface: tried once, done without if they fail
    import torch

    if dtype not in (torch.bfloat16, torch.float32):
        return False
    try:
        x, bias = torch.eye(32, dtype=dtype), torch.zeros(32, dtype=dtype)
        linear = Linear(x, bias, packed=True)
        with torch.inference_mode():
            return bool(torch.equal(linear(x), x)) and bool(torch.equal(linear.plus(x, x), 2 * x)) and linear.gelu(x).shape == x.shape
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
