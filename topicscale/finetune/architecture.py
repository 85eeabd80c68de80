"""What an architecture can do, read from a model's files and from transformers' source: importing transformers' tables imports torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from topicscale.models import read_json


def first_of(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first of a configuration's keys that holds a whole number."""
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def pooling_of(path: Path, parts: list[dict[str, Any]]) -> str | None:
    """Return how a sentence-transformers model pools (several ways joined by +), None where it has no module for it."""
    for part in parts:
        file = path / str(part.get("path", "")) / "config.json"
        if str(part["type"]).endswith("Pooling") and file.is_file():
            config = read_json(file)
            if mode := config.get("pooling_mode"):
                return mode if isinstance(mode, str) else "+".join(mode)
            old = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
            on = [key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
            return "+".join(old.get(mode, mode) for mode in on) or "mean"
    return None


def has_mask(folder: Path) -> bool:
    """Return whether a tokenizer has a mask token."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file() and read_json(folder / name).get("mask_token"):
            return True
    tokenizer = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
    return any(isinstance(token, dict) and token.get("content") in ("[MASK]", "<mask>") for token in tokenizer.get("added_tokens") or [])


@lru_cache(maxsize=4)
def mapping(name: str) -> dict[str, str]:
    """Return one of transformers' tables (architecture -> class)."""
    tree = ast.parse((_transformers() / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            assert isinstance(node.value, ast.Call)
            return dict(ast.literal_eval(node.value.args[0]))
    return {}


@lru_cache(maxsize=16)
def can_cross_attend(kind: str) -> bool:
    """Return whether an architecture's code reads ``add_cross_attention``."""
    # a model that cannot takes the setting all the same, and ignores it (Llama does)
    folder = {"data2vec-text": "data2vec"}.get(kind, kind.replace("-", "_"))
    file = _transformers() / "models" / folder / f"modeling_{kind.replace('-', '_')}.py"
    return file.is_file() and "config.add_cross_attention" in file.read_text(encoding="utf-8")


def _transformers() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
