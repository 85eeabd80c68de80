"""How much memory a language model takes, worked out before it is loaded, and how many workers fit.

Sizes are counted on a model without weights (torch's meta device): exact for every architecture that transformers knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from topicscale.config import LlmConfig
from topicscale.errors import ModelError, ResourceError
from topicscale.llm.backend import Batch
from topicscale.llm.models import CONTEXT, ResolvedLlm, backend, computed_in, folder

GIB = 2**30
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight: 4 bits, one 8-bit scale for 64 of them, and one 32-bit scale for 256 scales (double quantisation)."""
GPU_FIXED = 0.8 * GIB
"""Bytes of a CUDA context, its libraries' workspace, and what an allocator leaves unused."""
GPU_SHARE = 0.95
"""Part of a GPU that is counted on: drivers and displays hold some."""
CPU_FIXED = 1.0 * GIB
"""Bytes of a Python process with torch and transformers."""
GPU_BATCH, CPU_BATCH = 64, 8
"""Prompts at once, where memory allows. Of Llama 2 13B's shape in 4 bits, an H100 answers 16 at once at 5.4 a second and 64 at 10.2
(``benchmarks/results/gpu.md``)."""
LONG = 1024
"""Tokens of a long prompt and its answer: five documents of a hundred words, the examples and the keywords have about 500. Room for
so many is reserved for each prompt; where prompts are longer, fewer are answered at once."""


@dataclass(frozen=True)
class Size:
    """What a model takes, in bytes."""

    parameters: int
    weights: float
    """Of all weights, as they are held."""
    token: float
    """Of the key-value cache, for each token of each prompt under way."""
    vocabulary: int
    context: int
    """Tokens that it is used with at most."""

    def need(self, batch: Batch, *, fixed: float) -> float:
        """Return the bytes of a worker that answers so much at once, or one prompt as long as can be."""
        # twice: several prompts are read one by one and then put together, and a GPU's allocator leaves gaps where the parts were
        together = 2 * min(batch.tokens, batch.prompts * self.context) * self.token if batch.prompts > 1 else 0.0
        return fixed + self.weights + max(self.context * self.token, together) + self._logits(batch.prompts)

    def batch(self, prompts: int, room: float, *, fixed: float) -> Batch:
        """Return how much of at most ``prompts`` prompts a worker with ``room`` bytes answers at once."""
        tokens = int((room - fixed - self.weights - self._logits(prompts)) // (2 * self.token))
        several = Batch(prompts, min(tokens, prompts * min(self.context, LONG)))
        return several if prompts > 1 and tokens > 0 and self.need(several, fixed=fixed) <= room else Batch(1, self.context)

    def _logits(self, prompts: int) -> float:
        return 2 * 4.0 * self.vocabulary * prompts


@dataclass(frozen=True)
class LlmLayout:
    """How workers share the machines."""

    actors: int
    cpus: int
    gpus: float
    """For each worker: a fraction, or several where the model is larger than one."""
    batch: Batch
    need: float
    """Bytes of one worker, at most."""

    def __str__(self) -> str:
        where = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        plural, prompts = "s" * (self.actors != 1), self.batch.prompts
        at_once = f"up to {prompts} prompts ({self.batch.tokens:,} tokens)" if prompts > 1 else "1 prompt"
        return f"{self.actors} worker{plural} of {where}, at most {self.need / GIB:.1f} GiB each, {at_once} at once"


def size(model: ResolvedLlm, config: LlmConfig) -> Size:
    """Return what a model on this machine takes.

    Raises
    ------
    ModelError
        Its settings cannot be read.
    """
    if backend(config) == "llama_cpp":  # the weights are used as the file has them
        bytes_held = float(model.path.stat().st_size)
        return Size(int(bytes_held / 0.6), bytes_held, bytes_held / 60_000, 50_000, CONTEXT)
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(folder(model), trust_remote_code=False)
        return size_of(settings, config.quantization, number=4 if computed_in(config) == "float32" else 2)
    except (OSError, ValueError, KeyError) as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise ModelError(f"The settings of model {model.name!r} cannot be used ({type(error).__name__}): {said}") from error


def size_of(settings: Any, quantization: str, *, number: int = 2) -> Size:
    """Return what a model of these settings (a transformers configuration) takes, under nf4 or none, at ``number`` bytes a number."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    output = model.get_output_embeddings()
    linear = {
        parameter
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not output  # bitsandbytes leaves the last layer as it is
        for name, parameter in module.named_parameters(recurse=False)
        if name == "weight"
    }
    total = sum(p.numel() for p in model.parameters())
    packed = sum(p.numel() for p in linear) if quantization == "nf4" else 0
    text = settings.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    context = min(CONTEXT, getattr(text, "max_position_embeddings", None) or CONTEXT)
    held, token = packed * NF4_BYTES + (total - packed) * number, 2.0 * number * text.num_hidden_layers * heads * width
    return Size(total, held, token, text.vocab_size, context)


def plan(config: LlmConfig, of: Size, *, cpus: int, gpus: float, gpu_memory: float, memory: float) -> LlmLayout:
    """Return the division of ``cpus``, ``gpus`` of ``gpu_memory`` bytes each, and ``memory`` (bytes) among workers.

    Raises
    ------
    ResourceError
        The model fits nowhere, or more was asked for than there is.
    """
    if gpus and config.gpus_per_actor != 0:
        return _on_gpus(config, of, cpus=cpus, gpus=gpus, usable=gpu_memory * GPU_SHARE)
    usable = memory * 0.8
    batch = of.batch(config.batch_size or CPU_BATCH, usable / 4, fixed=CPU_FIXED)
    need = of.need(batch, fixed=CPU_FIXED)
    fit = int(usable // need)
    if fit < 1:
        raise ResourceError(
            f"A worker of {config.model!r} needs {need / GIB:.1f} GiB of memory, and {memory * 0.8 / GIB:.1f} GiB can be counted on. "
            "Name a smaller model, or a server: llm.url."
        )
    # one for four processors: reading the weights is what takes the time, and more workers read them more often
    actors = config.actors or max(1, min(fit, cpus // 4))
    if actors > fit or actors > cpus:
        raise ResourceError(
            f"llm.actors must be at most {min(fit, cpus)}: {cpus} CPUs and {memory / GIB:.1f} GiB hold no more workers of "
            f"{need / GIB:.1f} GiB. Got {actors} instead."
        )
    return LlmLayout(actors, max(1, cpus // actors), 0.0, batch, need)


def _on_gpus(config: LlmConfig, of: Size, *, cpus: int, gpus: float, usable: float) -> LlmLayout:
    smallest = of.need(Batch(1), fixed=GPU_FIXED)
    share = config.gpus_per_actor
    if share is None:
        # a model larger than a GPU spreads over several; each of them pays for its context
        spread = max(1, math.ceil((smallest - GPU_FIXED) / (usable - GPU_FIXED))) if smallest > usable else 1
        share = float(spread)
        if spread == 1 and config.actors and config.actors > gpus:
            share = 1.0 / math.ceil(config.actors / gpus)  # so many on each: a worker is never on parts of two
    room = usable * share - GPU_FIXED * max(0.0, share - 1)
    if share > gpus or smallest > room:
        raise ResourceError(
            f"A worker of {config.model!r} needs {smallest / GIB:.1f} GiB, and {share:g} of {gpus:g} GPUs has {room / GIB:.1f} GiB. "
            "Raise llm.gpus_per_actor, name a smaller model, or a server: llm.url."
        )
    batch = of.batch(config.batch_size or GPU_BATCH, room, fixed=GPU_FIXED)
    need = of.need(batch, fixed=GPU_FIXED)
    most = math.floor(gpus) * math.floor(1 / share + 1e-9) if share < 1 else math.floor(gpus / share)
    actors = config.actors or max(1, most)
    if actors > most:
        raise ResourceError(f"{gpus:g} GPUs hold {most} workers of {share:g} GPUs. Got llm.actors={actors} instead. Lower it.")
    return LlmLayout(actors, max(1, min(4, cpus // actors)), share, batch, need)
