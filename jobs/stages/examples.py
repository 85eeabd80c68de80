"""Training data of a fine-tuning: what is read, what is made of it, and each step's training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from jobs.progress import Ui
from jobs.stages.tutors import Tutors
from ray_actors.finetune import PROGRESS
from topicscale.config import Config, fingerprint, presets
from topicscale.embedding import best_dtype
from topicscale.errors import ConfigError, InputError, RequestError
from topicscale.finetune import base as bases
from topicscale.finetune import data as reading
from topicscale.finetune import steps as plans
from topicscale.finetune.recipe import Kind
from topicscale.finetune.steps import Part, Step
from topicscale.finetune.training import Part as TrainingPart
from topicscale.finetune.training import Training, begun_with, total_steps
from topicscale.store import Store


@dataclass
class Data:
    """What the steps train on, and what was kept back to judge with."""

    parts: list[list[tuple[pa.Table, Kind]]]
    """By step and part."""
    held: list[tuple[pa.Table, Kind]]
    """Labelled rows that nothing is trained on, the last step's first."""
    dropped: dict[str, int]
    """Rows that cannot be used, by reason."""
    source: dict[str, Any]
    """Inputs and versions, for the record."""
    labelled: list[str]
    """Inputs whose labels are learned from, a cross-encoder's among them."""
    digest: str
    """Of all tables."""

    def rows(self, step: int, part: int) -> int:
        """Return the rows of data of one part."""
        return int(self.parts[step][part][0].num_rows)

    @property
    def held_rows(self) -> int:
        """Rows kept back; those of one file that two steps read count once."""
        return sum({digest_of(table): int(table.num_rows) for table, _ in self.held}.values())


@dataclass(frozen=True)
class Trained:
    """A finished step."""

    model: Path
    losses: list[tuple[int, float]]
    rows: list[int]
    """Examples by part."""


def collect(
    steps: Sequence[Step], config: Config, *, store: Store | None, input: Sequence[str], columns: Mapping[str, str], judged: bool
) -> Data:
    """Read what every part of every step trains on.

    Parameters
    ----------
    judged : bool
        Judges are named: nothing needs to be held out.

    Raises
    ------
    RequestError
        A part has no data of a kind that it can train on.
    """
    tuned = config.finetune
    reader = {**config.input.options, **({} if config.input.format == "auto" else {"format": config.input.format})}
    by_labels = {part.input or tuple(input) for step in steps for part in step.parts if "texts" not in part.recipe.kinds}
    loaded: dict[str, reading.Loaded] = {}
    counted: set[str] = set()
    learned: set[str] = set()
    dropped: dict[str, int] = {}
    kept: dict[str, tuple[pa.Table, pa.Table]] = {}
    texts: pa.Table | None = None
    found: list[list[tuple[pa.Table, Kind]]] = []
    held: dict[str, tuple[pa.Table, Kind]] = {}
    source: dict[str, Any] = {"input": sorted({*input, *(path for step in steps for part in step.parts for path in part.input)})}

    def labelled(part: Part) -> tuple[str, reading.Loaded] | None:
        paths = part.input or tuple(input)
        if not paths:
            if part.columns:
                raise RequestError(f"columns of the recipe {part.recipe.name} must be those of an input. Name one in the step, or --input.")
            return None
        # a recipe that needs texts alone takes those of any data
        kinds = part.recipe.kinds if "texts" not in part.recipe.kinds else tuple(dict.fromkeys((*part.recipe.kinds, *plans.COLUMNS)))
        named = part.columns or ({} if part.input else columns)
        how = part.reader or reader
        key = fingerprint([list(paths), dict(named), dict(how), part.score_range, kinds])
        if key not in loaded:
            loaded[key] = one = reading.read(paths, named, reader=how, score_range=part.score_range, kinds=kinds)
            if (file := fingerprint([list(paths), dict(how)])) not in counted:  # read for another step, the same rows are left out
                counted.add(file)
                for reason, count in one.dropped.items():
                    dropped[reason] = dropped.get(reason, 0) + count
            kept[key] = (one.table, one.table.slice(0, 0))
            # also from the texts alone, where another step learns from their labels
            if not judged and tuned.held_out and (one.kind != "texts" or paths in by_labels):
                kept[key] = reading.held_out(one.table, tuned.held_out, tuned.seed)
        return key, loaded[key]

    for step in steps:
        row: list[tuple[pa.Table, Kind]] = []
        for part in step.parts:
            name = part.recipe.name
            given = labelled(part)
            kind = plans.kind_for(part, given[1].kind) if given is not None else None
            own = bool(part.input or part.columns) or store is None or "texts" not in part.recipe.kinds
            if (trained := part.options.get("cross_encoder_data")) is not None:
                learned |= {trained["input"]} if isinstance(trained["input"], str) else set(trained["input"])
            # an input of texts alone is meant; one whose labels another step learns from is that step's
            meant = given is not None and given[1].kind == "texts" and tuple(input) not in by_labels
            if given is not None and kind is not None and (kind != "texts" or own or meant):
                key, one = given
                if kind != "texts":
                    learned |= set(part.input or input)
                train_on = kept[key][0]
                row.append((train_on if kind == one.kind else texts_of(train_on, one.kind), kind))
                if kept[key][1].num_rows and one.kind != "texts":
                    held[key] = (kept[key][1], one.kind)
                continue
            if "texts" in part.recipe.kinds and store is not None:
                if texts is None:
                    texts, version = documents(store, tuned.documents, tuned.seed)
                    source |= {"store": store.uri, "documents_version": version}
                row.append((texts, "texts"))
                continue
            wanted = "--store, whose documents it can train on, or --input" if "texts" in part.recipe.kinds else "--input"
            raise RequestError(f"The recipe {name} trains on {' or '.join(part.recipe.kinds)}. Give it {wanted}.")
        found.append(row)
    judging = {_texts(row) for table, _ in held.values() for row in table.to_pylist()}
    apart = [[(table if kind == "texts" else _without(table, judging), kind) for table, kind in row] for row in found]
    if lost := sum(one.num_rows - two.num_rows for a, b in zip(found, apart, strict=True) for (one, _), (two, _) in zip(a, b, strict=True)):
        dropped["texts_that_judge"] = lost
    found = apart
    for step, row in zip(steps, found, strict=True):
        for part, (table, _) in zip(step.parts, row, strict=True):
            if table.num_rows < 2:
                raise InputError(f"The recipe {part.recipe.name} needs at least 2 rows to train on. Got {table.num_rows} instead.")
    digest = fingerprint([[digest_of(table) for table, _ in row] for row in found])
    return Data(found, list(reversed(held.values())), dropped, source, sorted(learned), digest)


def _texts(row: Mapping[str, Any]) -> frozenset[str]:
    """Return the texts of a labelled row, whatever kind of data it was read as, and whichever came first."""
    return frozenset(row[name] for name in ("anchor", "positive", "sentence1", "sentence2", "text") if name in row)


def _without(table: pa.Table, judging: Set[frozenset[str]]) -> pa.Table:
    """Return the rows whose texts judge nothing: read for another step as another kind, or the other way round, they were held out."""
    if not judging:
        return table
    return table.filter(pa.array([_texts(row) not in judging for row in table.to_pylist()], pa.bool_()))


def documents(store: Store, most: int | None, seed: int) -> tuple[pa.Table, int]:
    """Return distinct texts of a store's newest generation, at most ``most``, chosen by a hash of the text, and the version read."""
    store.check_documents()
    reader = Store(store.uri)
    version = reader.pin().versions["documents"]
    chosen: dict[bytes, str] = {}
    limit = 1 << 64
    for batch in reader.read_batches("documents", ["text"]):
        for text in batch.column("text").to_pylist():
            key = hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest()
            if int.from_bytes(key, "big") < limit:
                chosen[key] = text
        if most is not None and len(chosen) > 2 * most:  # the smallest hashes are kept, so that the choice is that of one pass over all
            chosen = dict(sorted(chosen.items())[:most])
            limit = int.from_bytes(max(chosen), "big")
    ordered = [text.strip() for _, text in sorted(chosen.items())[:most]]
    return pa.table({"text": pa.array(ordered, pa.string())}), int(version)


def texts_of(table: pa.Table, kind: Kind) -> pa.Table:
    """Return the distinct texts of labelled data, in the order they come."""
    seen: dict[str, None] = {}
    for name in plans.columns_of(kind):
        seen.update(dict.fromkeys(table[name].to_pylist()))
    return pa.table({"text": pa.array(list(seen), pa.string())})


def deepspeed(name: str | None) -> dict[str, Any] | None:
    """Return DeepSpeed's settings from a preset's name or a JSON file.

    Raises
    ------
    ConfigError
        There is no such preset or file, or its ZeRO stage cannot be saved as one model.
    """
    if name is None:
        return None
    folder = next(iter(presets().values())).parent
    known = {path.stem: path for path in sorted(folder.glob("deepspeed-*.json"))}
    path = known.get(name, Path(name))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"finetune.deepspeed must be one of {', '.join(known)}, or a JSON file. Got {name!r} instead: {error}") from error
    stage = found.get("zero_optimization", {}).get("stage", 0) if isinstance(found, dict) else None
    if stage not in (0, 1, 2):
        raise ConfigError(
            f"finetune.deepspeed must be of ZeRO stage 0, 1 or 2: a model in pieces (3) cannot be saved. Got {stage!r} instead."
        )
    return dict(found)


def train_step(
    step: Step,
    number: int,
    config: Config,
    data: Data,
    *,
    base: str,
    work: Path,
    tutors: Tutors,
    deepspeed: Mapping[str, Any] | None,
    ui: Ui,
) -> Trained:
    """Make one step's examples and train on them, unless that is done; return the model."""
    work.mkdir(parents=True, exist_ok=True)
    label = f"step {number + 1} ({step.name})"
    parts, rows = _examples(step, number, config, data, base=base, work=work, tutors=tutors, ui=ui)
    tuned = config.finetune
    if not (work / "model").is_dir():
        gpus, started = tutors.gpus(), bases.inspect(base)
        begun = begun_with(work)  # what goes on does so with as many, where there are
        workers = begun if begun is not None and tuned.workers is None and begun <= max(1, int(gpus)) else None
        workers = workers or workers_of(step, tuned.workers, int(gpus))
        if step.parallel and tuned.workers is None and workers < int(gpus):
            ui.log(
                "warning",
                f"{label}: {int(gpus) - workers} of {int(gpus)} GPUs are left over, since each worker has the same share of a batch, and "
                f"what was begun goes on with as many. Make finetune.batch_size a multiple of {int(gpus)}. Got {step.batch_size} instead.",
            )
        training = Training(
            base=base,
            parts=tuple(parts),
            epochs=step.epochs / step.passes,
            batch_size=step.batch_size,
            learning_rate=step.learning_rate,
            warmup=step.warmup,
            weight_decay=step.weight_decay,
            scheduler=step.scheduler,
            max_steps=step.max_steps,
            accumulate=tuned.accumulate,
            precision=_precision(tuned.precision, gpu=gpus > 0),
            deepspeed=deepspeed,
            seed=tuned.seed + number,
            pooling=plans.pooling_of(step, started),
            similarity=tuned.similarity,
            layers=tuned.layers if number == 0 else None,
            freeze=tuned.freeze,
            dropout=tuned.dropout,
            max_tokens=tuned.max_tokens,
            lora=tuned.lora,
            prompt=config.embedding.prompt or started.prompt,
        )
        total = total_steps(training, rows)
        training = dataclasses.replace(training, checkpoint_steps=plans.checkpoint_steps(tuned, total))
        began = time.monotonic()
        with ui.stage(label, total, unit="steps") as bar:
            layout = tutors.train(training, work, workers=workers, progress=lambda at, of, loss: bar.partial(at))
        said = json.loads((work / PROGRESS).read_text())
        ui.log(
            "stage",
            f"{label}: {total:,} steps on {layout}, {time.monotonic() - began:.1f} s",
            stage="finetune",
            steps=said["steps"],
            seconds=round(said["seconds"], 3),  # from the end of the first step to that of the last
        )
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
    losses = [(int(at), float(loss)) for at, loss in json.loads((work / "losses.json").read_text())]
    return Trained(work / "model", losses, rows)


def workers_of(step: Step, asked: int | None, gpus: int) -> int:
    """Return how many processes train a step: those asked for, else as many, of one a GPU, as have the same share of a batch each."""
    if not step.parallel:
        return 1
    return asked or max(n for n in range(1, max(1, gpus) + 1) if step.batch_size % n == 0)


def _precision(asked: str, *, gpu: bool) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if gpu else best_dtype("cpu")


def _examples(
    step: Step, number: int, config: Config, data: Data, *, base: str, work: Path, tutors: Tutors, ui: Ui
) -> tuple[list[TrainingPart], list[int]]:
    parts, rows = [], []
    for i, (part, (table, kind)) in enumerate(zip(step.parts, data.parts[number], strict=True)):
        target = str(work / f"examples-{i}")
        if not DeltaTable.is_deltatable(target):
            began = time.monotonic()
            seeds = [config.finetune.seed + 1_000_003 * k for k in range(step.passes if part.recipe.fresh else 1)]
            made = [part.recipe.examples(table, kind, part.options, base=base, seed=seed, tools=tutors) for seed in seeds]
            if not part.recipe.fresh:
                made *= step.passes  # beside a recipe whose passes are laid out one after the other
            whole = pa.concat_tables(made)
            if whole.num_rows < 2:
                raise InputError(
                    f"The recipe {part.recipe.name} made {whole.num_rows} examples of {table.num_rows:,} rows: too few to train on."
                )
            write_deltalake(target, whole)  # one commit: there whole or not at all
            ui.log(
                "stage",
                f"step {number + 1}: {whole.num_rows:,} examples of {table.num_rows:,} rows ({part.recipe.name}), "
                f"{time.monotonic() - began:.1f} s",
                stage="examples",
            )
        parts.append(TrainingPart(part.recipe.name, dict(part.options), target, 0))
        rows.append(int(DeltaTable(target, version=0).to_pyarrow_dataset().count_rows()))
    return parts, rows


def digest_of(table: pa.Table) -> str:
    """Return a digest of a table's columns and values, in their order."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        for value in table[name].to_pylist():
            digest.update(repr(value).encode() + b"\0")
    return digest.hexdigest()
