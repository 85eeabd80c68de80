"""The training loop: in one process, or in each process of a ``torch.distributed`` group that the caller has initialised.

What survives a kill
--------------------
``work/checkpoints/checkpoint-N`` holds the state after step N: the weights that are trained, of the model and of the loss (a classifier,
a decoder), the optimizer, the schedule, the state of each process's random numbers, and the losses so far. Its file ``complete`` is
written last. :func:`train`, called again with the same arguments, goes on from the newest complete one and gives the losses of a training
that was never stopped; with another number of workers too, but for dropout. That is refused where the batches cannot be divided among
them, and for DeepSpeed's checkpoints. When ``work/model`` is there the training is over.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topicscale.errors import ConfigError, MissingDependency, ResourceError
from topicscale.finetune.batches import dataset, sizes_of, steps_per_pass
from topicscale.finetune.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """Examples and what is learnt from them."""

    recipe: str
    options: Mapping[str, Any]
    table: str
    """Folder of a Delta table, as :meth:`topicscale.finetune.recipe.Recipe.examples` made it."""
    version: int


@dataclass(frozen=True)
class Training:
    """All that decides what a training gives."""

    base: str
    """As :func:`topicscale.finetune.base.inspect` takes it."""
    parts: tuple[Part, ...]
    epochs: float = 1
    batch_size: int = 32
    """Examples a batch, over all workers."""
    learning_rate: float = 2e-5
    warmup: float = 0.1
    """Share of the steps."""
    weight_decay: float = 0.0
    scheduler: str = "linear"
    max_steps: int | None = None
    accumulate: int = 1
    """Batches of which the gradients are averaged for one step."""
    precision: str = "float32"
    """float32, bfloat16 or float16: of the products; the weights are float32."""
    deepspeed: Mapping[str, Any] | None = None
    """DeepSpeed's own configuration; batch sizes, precision and clipping are filled in where it leaves them out."""
    checkpoint_steps: int = 200
    seed: int = 42
    pooling: str | None = None
    similarity: str = "cosine"
    layers: int | None = None
    freeze: int = 0
    dropout: float | None = None
    max_tokens: int | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    """Put before every text."""


def total_steps(training: Training, rows_per_part: Sequence[int], sizes: Sequence[int] | None = None) -> int:
    """Return the steps that a training takes: ``max_steps`` where it is set, else what ``epochs`` passes over the examples take.

    ``sizes`` are those of the parts' batches. Without them, which it takes the examples to know, it is the least number of steps.
    """
    if training.max_steps is not None:
        return training.max_steps
    sizes = sizes or [training.batch_size] * len(rows_per_part)
    return math.ceil(training.epochs * steps_per_pass(rows_per_part, sizes, training.accumulate))


def check(training: Training, *, workers: int, device: str) -> None:
    """Raise ConfigError, ResourceError or MissingDependency where a training cannot be run so; nothing is loaded."""
    from importlib.util import find_spec

    from topicscale.finetune.recipes import recipe

    for package in ("accelerate", "datasets"):
        if find_spec(package) is None:
            raise MissingDependency(package, "finetune", "Training")
    if training.batch_size % workers:
        raise ConfigError(f"finetune.batch_size must be a multiple of the {workers} workers. Got {training.batch_size} instead.")
    if training.precision not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"finetune.precision must be float32, bfloat16 or float16. Got {training.precision!r} instead.")
    if training.precision == "float16" and device == "cpu":
        raise ResourceError("finetune.precision=float16 needs a GPU. Use bfloat16 or float32 on processors.")
    for part in training.parts:
        one = recipe(part.recipe)
        if workers > 1 and not one.parallel:
            raise ConfigError(f"The recipe {one.name} cannot be trained by several workers together. Set finetune.workers to 1.")
        check_deepspeed(one, training.deepspeed)
    if training.deepspeed is not None and find_spec("deepspeed") is None:
        raise MissingDependency("deepspeed", "deepspeed", "finetune.deepspeed")


def check_deepspeed(recipe: Recipe, settings: Mapping[str, Any] | None) -> None:
    """Raise ConfigError where a recipe cannot be trained with DeepSpeed's settings."""
    if settings is None:
        return
    if recipe.own_weights:
        raise ConfigError(
            f"finetune.deepspeed must be left out for the recipe {recipe.name}: its loss has weights of its own, and DeepSpeed sees the "
            "model's alone."
        )
    if recipe.cached and settings.get("zero_optimization", {}).get("stage", 0) == 2:
        raise ConfigError(
            f"finetune.deepspeed must be of ZeRO stage 0 or 1 for the recipe {recipe.name}, which goes back through the model several "
            "times a step: ZeRO-2 reduces a gradient once. Use deepspeed-zero1."
        )


def train(
    training: Training, work: Path, *, device: str, threads: int, report: Callable[[int, int, float | None], None] = lambda *_: None
) -> None:
    """Train, and leave ``work/model`` (a plain sentence-transformers folder, float32) and ``work/losses.json``.

    Idempotent: where ``work/model`` is there nothing is done, and where there are checkpoints the newest is gone on from.

    Parameters
    ----------
    work : Path
        A folder of this training alone, seen by all workers.
    device : {"cpu", "cuda"}
    threads : int
        Processors to use, of this process.
    report : callable
        Called in every process with the step, the steps in all, and the loss of that step over all workers; None where training begins.
        What it raises ends the training.

    Raises
    ------
    ConfigError, ResourceError, ModelError, MissingDependency
        See :func:`check`, and :func:`topicscale.finetune.base.build`; or the training was begun by workers of another number, and cannot
        go on with this one.
    InputError
        There are too few examples for the workers, or too many that are alike.
    StoreError
        The newest checkpoint is of another training.
    """
    if (work / "model").is_dir():
        return
    rank, workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    check(training, workers=workers, device=device)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate sets a number of its own
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # accelerate's own call
    import torch
    from datasets.utils.logging import disable_progress_bar
    from transformers import set_seed

    from topicscale.finetune import base as bases
    from topicscale.finetune.recipes import recipe
    from topicscale.finetune.trainer import Trainer, complete
    from topicscale.llm.models import quiet

    quiet()
    disable_progress_bar()
    torch.set_num_threads(threads)
    checkpoints = work / "checkpoints"
    recipes = [recipe(part.recipe) for part in training.parts]
    names = [f"{i}-{one.name}" for i, one in enumerate(recipes)]
    parts = {name: dataset(part.table, part.version) for name, part in zip(names, training.parts, strict=True)}
    unique = [one.unique(one.with_defaults(part.options)) for one, part in zip(recipes, training.parts, strict=True)]
    there = complete(checkpoints)
    sizes = (
        _begun(there[-1], training, workers)
        if there
        else sizes_of(list(parts.values()), unique, training.batch_size, seed=training.seed, workers=workers)
    )
    steps = total_steps(training, [len(part) for part in parts.values()], sizes)
    base = bases.inspect(training.base)
    set_seed(training.seed)  # the same first weights in every process
    model = bases.build(
        base,
        pooling=training.pooling,
        similarity=training.similarity,
        layers=training.layers,
        freeze=training.freeze,
        dropout=training.dropout,
        max_tokens=training.max_tokens,
        lora=training.lora,
    )
    args = _arguments(training, checkpoints, steps, workers=workers, device=device)
    model.to(args.device)
    losses = {}
    for name, one, part in zip(names, recipes, training.parts, strict=True):
        losses[name] = one.loss(
            model, one.with_defaults(part.options), base=str(base.path), similarity=training.similarity, workers=workers
        )
    trainer = Trainer(model, args, parts=parts, losses=losses, unique=unique, sizes=sizes, report=report)
    set_seed(training.seed + rank)  # other dropout in every process
    # at the last step's checkpoint the trainer would take one step more before it looks how far it is
    there = [folder for folder in there if int(folder.name.rpartition("-")[2]) < steps]
    trainer.train(resume_from_checkpoint=str(there[-1]) if there else None)
    if rank == 0:
        _write(trainer, model, work)
    trainer._wait()


def begun_with(work: Path) -> int | None:
    """Return how many processes a training in this folder was begun with, None where it has no checkpoint."""
    from topicscale.finetune.trainer import COMPLETE, complete

    there = complete(work / "checkpoints")
    return int(json.loads((there[-1] / COMPLETE).read_text(encoding="utf-8"))["workers"]) if there else None


def _begun(checkpoint: Path, training: Training, workers: int) -> list[int]:
    """Return the sizes of the batches that a training was begun with.

    Raises
    ------
    ConfigError
        This number of workers cannot go on with it.
    """
    from topicscale.finetune.trainer import COMPLETE

    begun = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    sizes: list[int] = begun["sizes"]
    if workers != begun["workers"] and (training.deepspeed is not None or any(size % workers for size in sizes)):
        why = f"its batches of {sizes} examples" if training.deepspeed is None else "DeepSpeed's checkpoints"
        raise ConfigError(
            f"finetune.workers must be {begun['workers']}, as when this training was begun: {why} are for that many. Got {workers} "
            f"instead. To begin anew, delete {str(checkpoint.parent)!r}."
        )
    return sizes


def _arguments(training: Training, folder: Path, steps: int, *, workers: int, device: str) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    deepspeed: dict[str, Any] | None = None
    if training.deepspeed is not None:
        filled = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        deepspeed = {**dict.fromkeys(filled, "auto"), **json.loads(json.dumps(training.deepspeed, default=dict))}
        if training.precision == "float16":
            deepspeed.setdefault("fp16", {"enabled": "auto"})
        elif training.precision == "bfloat16" and not isinstance(deepspeed.get("bf16", {}).get("enabled"), bool):
            # its own bf16 would cast the weights and the loss too; so the products alone are, as without it
            deepspeed = {key: value for key, value in deepspeed.items() if key != "bf16"}
            deepspeed["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size // workers,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        warmup_steps=math.ceil(training.warmup * steps),
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.scheduler,
        bf16=training.precision == "bfloat16" and "torch_autocast" not in (deepspeed or {}),
        fp16=training.precision == "float16",
        deepspeed=deepspeed,
        seed=training.seed,
        use_cpu=device == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is shown as such
        log_level="error",
        save_strategy="steps",
        save_steps=training.checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        dataloader_pin_memory=device != "cpu",
        push_to_hub=False,
        prompts=training.prompt or None,
    )
    if workers == 1 and device != "cpu":
        args._n_gpu = 1  # one process uses one GPU: never DataParallel
    return args


def _write(trainer: Any, model: Any, work: Path) -> None:
    """Write the losses, then the model: beside its place, and renamed when it is whole."""
    from topicscale.finetune.base import finish

    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    unfinished = work / "losses.json.unfinished"
    unfinished.write_text(json.dumps(losses), encoding="utf-8")
    unfinished.replace(work / "losses.json")
    target = work / "model.unfinished"
    shutil.rmtree(target, ignore_errors=True)
    finish(model).save_pretrained(str(target), create_model_card=False, safe_serialization=True)
    target.replace(work / "model")
