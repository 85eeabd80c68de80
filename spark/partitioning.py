"""Documents into units of work: by hash of the text, or by the values of a column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import Column
from pyspark.sql import functions as F

from topicscale.config import PartitionConfig
from topicscale.errors import InputError
from topicscale.tables import slug

MAX_VALUES = 10_000
"""Values that ``partition.column`` may have."""


@dataclass(frozen=True)
class Partitioner:
    """How a document finds its partition."""

    number: int
    """Hash partitions; 0 when a column decides."""
    slug: str = ""
    pieces: Mapping[str, int] = field(default_factory=dict)
    """Short hash of each value that is too large for one partition -> the number of its pieces."""

    def id(self, text_hash: Column, value: Column) -> Column:
        """Return the partition's id as an expression of a document's text hash and (by column) its value."""
        if self.number:
            width = len(str(self.number - 1))
            piece = F.pmod(F.xxhash64(text_hash), F.lit(self.number)).cast("string")
            return F.concat(F.lit("hash-"), F.lpad(piece, max(4, width), "0"), F.lit(f"-of-{self.number:04d}"))
        short = F.coalesce(F.substring(F.sha2(value, 256), 1, 12), F.lit("null"))
        label = F.concat(F.lit(f"{self.slug}-"), short)
        if not self.pieces:
            return label
        of = F.element_at(F.from_json(F.lit(json.dumps(dict(self.pieces))), "map<string,int>"), short)
        piece = F.pmod(F.xxhash64(text_hash), F.coalesce(of, F.lit(1)))
        return F.when(of.isNull(), label).otherwise(F.concat(label, F.format_string("-%03d-of-%03d", piece, of)))

    def short(self, partition_id: str) -> str:
        """Return the short hash of the value that a partition came from."""
        return partition_id.removeprefix(f"{self.slug}-").split("-")[0]


def short_hash(value: str | None) -> str:
    """Return what stands for a value in a partition's id: 12 hexadecimal digits, or ``null``."""
    return "null" if value is None else hashlib.sha256(value.encode()).hexdigest()[:12]


def by_hash(config: PartitionConfig, *, documents: int, characters: int) -> Partitioner:
    """Return hash partitions: as many as asked for, or of at most about ``target_documents`` and ``target_characters`` each."""
    return Partitioner(config.number or config.pieces(documents, characters))


def by_column(config: PartitionConfig, *, counts: Mapping[str | None, int], characters: Mapping[str | None, int]) -> Partitioner:
    """Return one partition a value, in pieces where a value has more than twice ``target_documents`` or ``target_characters``.

    The name of the column, which the user wrote, makes the slug; values, which the data holds, are only hashed.
    """
    assert config.column is not None
    large = {
        short_hash(value): config.pieces(rows, characters[value])
        for value, rows in counts.items()
        if rows > 2 * config.target_documents or characters[value] > 2 * config.target_characters
    }
    return Partitioner(0, slug(config.column) or "column", large)


def check_values(values: int, column: str) -> None:
    """Raise InputError when a column has too many values to be partitioned by."""
    if values > MAX_VALUES:
        raise InputError(
            f"partition.column must have at most {MAX_VALUES} values. Got {column!r} with more instead; "
            "leave it out to partition by hash of the text."
        )
