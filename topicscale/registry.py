"""The models a store has trained: table ``models``, one row for each training, and the weights beside the tables.

Weights are in ``weights/<revision>/<name>/``, a plain sentence-transformers folder that other tools load as well. Only a
published model is found by its name; one that was rejected is kept, and can be loaded by its folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from topicscale.config import Config
from topicscale.errors import RequestError
from topicscale.models import PACKAGED
from topicscale.store import WEIGHTS, Store
from topicscale.tables import TABLES

PUBLISHED, FORCED, REJECTED = "published", "forced", "rejected"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Trained:
    """One row of ``models``."""

    name: str
    revision: str
    """Digest of its weights and settings."""
    status: str
    """published, rejected (worse than its base), or forced (published although it was worse)."""
    base: str
    base_revision: str
    steps: list[Any]
    """What it was trained by, as ``finetune.steps`` has it."""
    measures: Mapping[str, Any]
    """{"base": {...}, "model": {...}}: what both were judged by."""
    verdict: str
    """Why it has its status, in words."""
    configuration: Mapping[str, Any]
    data: Mapping[str, Any]
    """Where the examples came from: inputs, the version of ``documents``, numbers of rows."""
    steps_done: int
    seconds: float
    at: datetime
    path: Path
    """The folder of its weights."""


def check_name(name: str) -> None:
    """Raise RequestError where a name cannot be a model's."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"A model's name must be 1 to 64 letters, digits, dots, dashes and underscores. Got {name!r} instead.")
    if name in PACKAGED:
        raise RequestError(f"A model's name must not be that of a packaged model. Got {name!r}. Name it otherwise.")


def trained(store: Store) -> list[Trained]:
    """Return every model that a store has trained, oldest first."""
    if not store.has("models"):
        return []
    rows = store.read("models").sort_by("at").to_pylist()
    parsed = ("steps", "measures", "configuration", "data")
    return [
        Trained(**{**row, **{key: json.loads(row[key]) for key in parsed}}, path=folder(store, row["revision"], row["name"]))
        for row in rows
    ]


def find(store: Store, name: str) -> Trained | None:
    """Return the newest published model of a name, None where there is none."""
    found = [model for model in trained(store) if model.name == name and model.status in (PUBLISHED, FORCED)]
    return found[-1] if found else None


def named(store: Store, name: str) -> Trained | None:
    """Return the newest published model of a name, None where the store has trained none of it.

    Raises
    ------
    RequestError
        All of them were rejected.
    """
    found = find(store, name)
    rejected = [model for model in trained(store) if model.name == name]
    if found is None and rejected:
        raise RequestError(
            f"The model {name!r} was rejected: {rejected[-1].verdict} Use it all the same by its folder "
            f"({rejected[-1].path}), or publish it with: topicscale finetune ... --output {name} --force"
        )
    return found


def located(config: Config, store: Store) -> Config:
    """Return the configuration with a trained model's name replaced by the folder of its weights.

    A folder names one revision: a store that was embedded with it goes on with it, whatever is published under the name later.
    """
    name = config.embedding.model
    if not _NAME.fullmatch(name):
        return config
    if (found := weights(store, name)) is None:
        return config
    return dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, model=str(found)))


def weights(store: Store, name: str) -> Path | None:
    """Return the folder of the newest published model of a name, None where the store has trained none of it.

    Raises
    ------
    RequestError
        All of them were rejected, or the store is in an object store.
    """
    if (found := named(store, name)) is None:
        return None
    if store.files.path is None:
        raise RequestError(
            f"The model {name!r} is among the store's own ({found.path}), and weights cannot be loaded from an object store. "
            "Copy that folder to this machine, and name it as the model."
        )
    return found.path


def add(store: Store, model: Trained, weights: Path) -> None:
    """Copy a folder of weights into the store and note the model. Idempotent: what a name's newest row says already is not said again.

    The row is committed last, so that it never names weights that are not there.
    """
    if not model.path.is_dir():
        place(weights, model.path)
    store.create_table("models")
    newest = next((held for held in reversed(trained(store)) if held.name == model.name), None)
    if newest is not None and (newest.revision, newest.status, newest.measures) == (model.revision, model.status, model.measures):
        return
    row = {field: getattr(model, field) for field in TABLES["models"].schema.names}
    row |= {key: json.dumps(row[key]) for key in ("steps", "measures", "configuration", "data")}
    store.append("models", pa.Table.from_pylist([row], schema=TABLES["models"].schema))


def place(weights: Path, target: Path) -> None:
    """Copy a folder to a place where nothing is, or an empty folder; it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(weights, temporary)
    temporary.replace(target)


def folder(store: Store, revision: str, name: str) -> Path:
    """Return where the weights of a revision are: within the store, where that is in an object store (no model is loaded from there)."""
    if store.files.path is None:
        return Path(WEIGHTS) / revision / name
    return store.path / WEIGHTS / revision / name
