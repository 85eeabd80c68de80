"""Which examples make which batch: a function of the seed, the pass and the sizes alone, so that a training can stop and go on.

The order is the same for any number of workers: a batch is drawn whole, and each worker takes its slice of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from topicscale.errors import InputError

_ROWS = 10_000
"""Rows of a record batch that are copied at once."""
_TRIES = 10
"""Orders that are tried before examples count as too much alike for a batch."""
_LOOKED = 50
"""So many batches' examples are looked at for texts that occur twice."""


def steps_per_pass(rows: Sequence[int], sizes: Sequence[int], accumulate: int = 1) -> int:
    """Return the steps of one pass over several tables of examples, in batches of the size that each has (see :func:`sizes_of`).

    Each part gives its whole batches; what does not fill one is left for another pass, whose order is another one.
    """
    return math.ceil(sum(_batches(count, size) for count, size in zip(rows, sizes, strict=True)) / accumulate)


def sizes_of(parts: Sequence[Any], unique: Sequence[bool], batch_size: int, *, seed: int, workers: int) -> list[int]:
    """Return how many examples a batch of each part has, over all workers.

    That is ``batch_size``, or all of fewer rows; where no text may be in a batch twice, as many as go together.

    Raises
    ------
    InputError
        A part has fewer examples than there are workers, or they are too much alike.
    """
    rows = [len(part) for part in parts]
    if small := [count for count in rows if count < workers]:
        raise InputError(f"There must be at least one example a worker. Got {small[0]} examples for {workers} workers instead.")
    most = [min(batch_size, count // workers * workers) for count in rows]
    return [_fitting(part, size, seed, workers) if one else size for part, one, size in zip(parts, unique, most, strict=True)]


def _batches(rows: int, batch_size: int) -> int:
    return max(1, rows // batch_size)


class Batches:
    """The batches of each pass, as a ``torch`` batch sampler over the parts' concatenated rows.

    A batch holds examples of one part, and parts take turns at random in proportion to their batches, as sentence-transformers'
    ProportionalBatchSampler has it. Unlike it, this one gives exactly as many batches as it says, whatever is resumed where.

    Parameters
    ----------
    parts : sequence of datasets.Dataset
    unique : sequence of bool
        Whether a part's batches may not hold a text twice.
    sizes : sequence of int
        Examples in a batch of each part, over all workers (see :func:`sizes_of`).
    seed : int
    rank, workers : int
        Which slice of each batch is taken.
    """

    def __init__(self, parts: Sequence[Any], unique: Sequence[bool], sizes: Sequence[int], *, seed: int, rank: int, workers: int) -> None:
        self._rows, self._seed, self._rank, self._workers = [len(part) for part in parts], seed, rank, workers
        self._sizes = sizes
        self._counts = [_batches(count, size) for count, size in zip(self._rows, self._sizes, strict=True)]
        self._unique = [
            self._without_duplicates(part, size) if one else None for part, one, size in zip(parts, unique, self._sizes, strict=True)
        ]
        self._pass = 0

    def __len__(self) -> int:
        return sum(self._counts)

    def set_epoch(self, number: int) -> None:
        """Choose the pass whose batches are given next."""
        self._pass = number

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self._seed, self._pass])
        turns = generator.permutation(np.repeat(np.arange(len(self._rows)), self._counts))
        sources = [self._of(part) for part in range(len(self._rows))]
        starts = np.concatenate([[0], np.cumsum(self._rows)])
        for part in turns:
            batch = next(sources[part])
            share = len(batch) // self._workers
            yield [int(starts[part]) + i for i in batch[self._rank * share : (self._rank + 1) * share]]

    def _of(self, part: int) -> Iterator[list[int]]:
        """Yield the batches of a part without end: those of this pass, then of reshuffled ones, where duplicates left too few."""
        barren = 0
        for turn in range(10**9):
            sampler = self._unique[part]
            if sampler is None:
                order = np.random.default_rng([self._seed, self._pass, part, turn]).permutation(self._rows[part])
                size = self._sizes[part]
                yield from (order[i : i + size].tolist() for i in range(0, len(order) - size + 1, size))
                continue
            sampler.set_epoch(int(np.random.default_rng([self._seed, self._pass, part, turn]).integers(2**31)))
            barren += 1
            for batch in sampler:
                barren = 0
                yield batch
            if barren == _TRIES:
                raise InputError(_alike(self._sizes[part], self._rows[part]))

    def _without_duplicates(self, part: Any, size: int) -> Any:
        import torch
        from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
        from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

        return NoDuplicatesBatchSampler(
            part, size, drop_last=True, valid_label_columns=list(DEFAULT_LABEL_COLUMNS), generator=torch.Generator(), seed=self._seed
        )


def _fitting(part: Any, size: int, seed: int, workers: int) -> int:
    """Return how many examples, at most ``size``, go into a batch without a text twice, whatever order they are drawn in."""
    from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS

    columns = [name for name in part.column_names if name not in DEFAULT_LABEL_COLUMNS]
    most = _LOOKED * size
    for turn in range(_TRIES):
        held: set[Any] = set()
        taken = 0
        looked = part[np.random.default_rng([seed, turn]).permutation(len(part))[:most].tolist()]
        for row in zip(*(looked[name] for name in columns), strict=True):
            if taken == size:
                break
            texts = set(map(str, row))
            if not texts & held:
                held |= texts
                taken += 1
        size = taken // workers * workers
    if size < max(2, workers):
        raise InputError(_alike(max(2, workers), len(part)))
    return size


def _alike(size: int, rows: int) -> str:
    return (
        f"A batch of {size} examples without a text twice cannot be made of {rows} examples: too many are alike. Use a smaller "
        "finetune.batch_size."
    )


def dataset(table: str, version: int) -> Any:
    """Return a version of a Delta table as a memory-mapped ``datasets.Dataset``, copied batch by batch to a file without a name.

    The system frees such a file with the process, however that ends: no text is left on the machine.
    """
    from datasets import Dataset
    from deltalake import DeltaTable

    source = DeltaTable(table, version=version).to_pyarrow_dataset()
    plain = pa.schema([pa.field(entry.name, _plain(entry.type)) for entry in source.schema])
    with tempfile.TemporaryFile() as file:
        with pa.ipc.new_stream(file, plain) as writer:
            # read-ahead is what makes a scanner's memory grow
            for batch in source.scanner(batch_size=_ROWS, batch_readahead=2, fragment_readahead=1).to_batches():
                writer.write_table(pa.Table.from_batches([batch]).cast(plain))
        file.flush()
        return Dataset.from_file(f"/proc/self/fd/{file.fileno()}")  # mapped, it outlives the descriptor


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind
