"""sentence-transformers' trainer, with checkpoints that hold everything and order that is our own.

This module alone imports torch and sentence-transformers when it is imported; :mod:`topicscale.finetune.training` does so late.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformerTrainer
from torch import distributed
from torch.utils.data import ConcatDataset, DataLoader
from transformers import PrinterCallback, TrainerCallback

from topicscale.errors import StoreError
from topicscale.finetune.batches import Batches

COMPLETE = "complete"
"""A checkpoint's file that is written last."""
KEPT = 2
"""Checkpoints that are kept."""
_WEIGHTS = "weights.safetensors"


class Trainer(SentenceTransformerTrainer):
    """One or several losses over one or several parts.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    args : SentenceTransformerTrainingArguments
    parts : mapping of str to datasets.Dataset
    losses : mapping of str to torch.nn.Module
        By the same names.
    unique : sequence of bool
        See :class:`~topicscale.finetune.batches.Batches`.
    sizes : sequence of int
        Examples in a batch of each part, over all workers.
    report : callable
        Called in every process with the step, the steps in all, and the step's loss over all workers (None where training begins).
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        parts: Mapping[str, Any],
        losses: Mapping[str, Any],
        unique: Sequence[bool],
        sizes: Sequence[int],
        report: Callable[[int, int, float | None], None],
    ) -> None:
        from datasets import DatasetDict

        self._unique, self._sizes = unique, sizes
        single = len(parts) == 1
        super().__init__(
            model=model,
            args=args,
            train_dataset=next(iter(parts.values())) if single else DatasetDict(parts),
            loss=next(iter(losses.values())) if single else dict(losses),
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Report(report))
        ours = {id(tensor) for tensor in model.parameters()}
        modules: list[Any] = list(self.loss.values()) if isinstance(self.loss, dict) else [self.loss]
        self._losses = modules
        self._own = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in ours]

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: it would ask the hub about the base."""

    def get_train_dataloader(self) -> Any:
        """Return the batches of this worker. Not prepared by accelerate, which would deal them out once more."""
        given: Any = self.train_dataset
        parts = list(given.values()) if isinstance(given, dict) else [given]
        sampler = Batches(parts, self._unique, self._sizes, seed=self.args.seed, rank=self.args.process_index, workers=self.args.world_size)
        data: Any = ConcatDataset(parts) if len(parts) > 1 else parts[0]
        self._train_dataloader = DataLoader(
            data, batch_sampler=_Reachable(sampler), collate_fn=self.data_collator, pin_memory=self.args.device.type == "cuda"
        )
        return self._train_dataloader

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch; the gradients of the loss's own weights are averaged here, since DDP knows the model's only."""
        for loss in self._losses:
            loss.train()  # transformers does so with the model alone: a decoder or a copy would be without dropout
        result = super().training_step(*args, **kwargs)
        if self._own and self.args.world_size > 1 and self.accelerator.sync_gradients:
            for parameter in self._own:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.args.world_size
        return result

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._wait()
        if self.args.should_save and not self.is_deepspeed_enabled:
            save_file({name: tensor.detach().contiguous() for name, tensor in self._weights()}, folder / _WEIGHTS)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / "trainer_state.json"))
        self._wait()
        if self.args.should_save:
            mark(folder, {"step": self.state.global_step, "workers": self.args.world_size, "sizes": list(self._sizes)})
            for old in complete(folder.parent)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        with safe_open(Path(checkpoint_path) / _WEIGHTS, "pt", device=str(self.args.device)) as file, torch.no_grad():
            wanted, there = dict(self._weights()), set(file.keys())
            if set(wanted) != there:
                odd = sorted(set(wanted) ^ there)
                raise StoreError(
                    f"The checkpoint {checkpoint_path!r} is of another training ({odd[0]} and {len(odd) - 1} more weights differ). "
                    "Delete its folder to begin anew."
                )
            for name, tensor in wanted.items():
                tensor.copy_(file.get_tensor(name))

    def _weights(self) -> Iterator[tuple[str, Any]]:
        """Yield what training changes, of the model and of the losses, each tensor once; what is frozen the base has."""
        seen: set[int] = set()
        modules: list[tuple[str, Any]] = [("model", self.model), *((f"loss{i}", loss) for i, loss in enumerate(self._losses))]
        for prefix, module in modules:
            for name, tensor in module.state_dict(keep_vars=True).items():
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter):
                    yield f"{prefix}.{name}", tensor

    def _wait(self) -> None:
        if self.args.world_size > 1:
            distributed.barrier()


class _Reachable:
    """A batch sampler whose ``set_epoch`` transformers finds, also behind the one with which it skips batches."""

    def __init__(self, batches: Batches) -> None:
        self.batch_sampler = batches
        self.set_epoch = batches.set_epoch
        self.drop_last, self.batch_size = True, None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batch_sampler)


class _Report(TrainerCallback):
    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self._report = report

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report(state.global_step, state.max_steps, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._report(state.global_step, state.max_steps, float(logs["loss"]))


def mark(folder: Path, content: Mapping[str, Any]) -> None:
    """Say that a folder is complete, in one step that is done or not done."""
    unfinished = folder / f".{COMPLETE}"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / COMPLETE)


def complete(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
