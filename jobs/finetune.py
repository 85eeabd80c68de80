"""``topicscale finetune``: train an embedding model, judge it against its base, and publish it if it is better."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jobs.engines import Engines, alone
from jobs.job import new_run_id
from jobs.progress import Ui
from jobs.stages import examples, judging
from jobs.stages.tutors import Tutors
from ray_actors import runtime
from topicscale import registry
from topicscale.config import Config, EmbeddingConfig, fingerprint
from topicscale.errors import MissingDependency, RequestError, StoreError
from topicscale.finetune import base as bases
from topicscale.finetune import steps as plans
from topicscale.finetune.steps import Step
from topicscale.finetune.training import check_deepspeed
from topicscale.judge.rank import kind
from topicscale.judge.task import MEASURES
from topicscale.models import in_place, resolve
from topicscale.store import PENDING, TRAINING, Store, exclusive, local_path

CODE = 2
"""Raised when the same request would train another model."""
NEEDED = ("accelerate", "datasets")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, checked."""

    name: str
    config: Config
    steps: list[Step]
    base: Any
    """:class:`topicscale.finetune.base.Base`"""
    data: examples.Data
    judges: judging.Judges
    deepspeed: Mapping[str, Any] | None
    store: Store | None
    folder: Path
    """Where the model goes that is trained without a store."""


def finetune(
    config: Config,
    output: str,
    *,
    store: str | Path | None = None,
    input: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    force: bool = False,
    ui: Ui | None = None,
) -> dict[str, Any]:
    """Train, judge and publish a model, and return what became of it. What was done before a kill is not done again.

    Parameters
    ----------
    config : Config
        ``finetune`` says what is trained and how; ``ray`` where.
    output : str
        The model's name in the store; without a store, the folder to write.
    store : str, optional
        The store whose documents are trained on and judged with, and which the model is published to.
    input : sequence of str
        Files of labelled data, for the steps that name none of their own.
    columns : mapping, optional
        The recipes' names of columns to the files' (``anchor``: ``title``).
    force : bool, default=False
        Publish the model although it is worse than its base. That is noted.

    Raises
    ------
    RequestError
        A recipe, model, input or setting is wrong; nothing was started.
    JobFailed
        Training failed. What is finished is kept: the same call goes on.
    """
    ui = ui or Ui()
    began = time.monotonic()
    asked = request(config, output, store=store, input=input, columns=columns)
    if force and (found := _forced(asked)) is not None:
        return found | {"seconds": round(time.monotonic() - began, 3)}
    with _working_folder(asked, ui) as work, alone(str(work)):
        engines = Engines(asked.config, say=partial(ui.log, "warning"))
        tutors = Tutors(asked.config, engines, work, ui, asked.base.path)
        try:
            done = _train(asked, work, tutors, ui)
            measures = _judged(asked, work, done, tutors, ui)
        except KeyboardInterrupt:
            ui.log("warning", "Interrupted. What is finished is kept: run the same command again to go on.")
            raise
        finally:
            tutors.close()
            engines.close()
        verdict = judging.verdict(asked.judges, measures, margin=config.finetune.margin)
        status = registry.PUBLISHED if verdict.ok else registry.FORCED if force else registry.REJECTED
        found = _publish(asked, work, done, measures, verdict.text, status, time.monotonic() - began)
        shutil.rmtree(work, ignore_errors=True)
    return found | {"seconds": round(time.monotonic() - began, 3)}


def request(
    config: Config, output: str, *, store: str | Path | None, input: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> Request:
    """Check everything that can be known before an engine is started, and return what is to be done.

    Raises
    ------
    RequestError, StoreError
    """
    import importlib.util

    for package in NEEDED + (("peft",) if config.finetune.lora else ()) + (("deepspeed",) if config.finetune.deepspeed else ()):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "deepspeed" if package == "deepspeed" else "finetune", "topicscale finetune")
    steps = plans.parse(config.finetune)
    held = Store(store) if store is not None else None
    if held is not None and held.files.path is None:
        raise RequestError(
            f"A training must have its store on this machine. Got {held.uri!r} instead: train on a copy, and run with the model's folder."
        )
    folder = local_path(output) if held is None else Path(output)
    name = folder.name
    registry.check_name(name)
    if held is None and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        left = [str(path) for path in folder.parent.glob(f".{name}.finetune.*/")]  # killed after its model was placed, or before
        more = f" Remove {left[0]!r}, too, where a training that was stopped has left texts." if left else ""
        raise RequestError(f"--output must be a new folder, or a name beside --store. {output!r} is there already.{more}")
    tuned = config.finetune
    if held is not None and (mine := registry.named(held, tuned.base)) is not None:
        config = dataclasses.replace(config, finetune=dataclasses.replace(tuned, base=str(mine.path)))
    base = bases.inspect(config.finetune.base)
    config = dataclasses.replace(config, embedding=in_place(str(base.path), _embedding(config, held)))
    for number, step in enumerate(steps):
        bases.check(
            base,
            pooling=plans.pooling_of(step, base) if number == 0 else step.pooling,
            layers=tuned.layers if number == 0 else None,
            freeze=tuned.freeze,
            max_tokens=tuned.max_tokens,
            lora=tuned.lora,
        )
    plans.check(steps, config, base)
    deepspeed = examples.deepspeed(tuned.deepspeed)
    for step in steps:
        for part in step.parts:
            check_deepspeed(part.recipe, deepspeed)
    layout = runtime.local_plan(dataclasses.replace(config.ray, actors=tuned.workers) if tuned.workers else config.ray)
    if tuned.precision == "float16" and layout is not None and not layout.gpus:
        raise RequestError("finetune.precision=float16 needs a GPU. Use bfloat16 or float32 on processors.")
    data = examples.collect(steps, config, store=held, input=input, columns=columns or {}, judged=bool(tuned.judges))
    judges = judging.collect(config, data, store=held)
    return Request(name, config, steps, base, data, judges, deepspeed, held, folder)


def _embedding(config: Config, store: Store | None) -> EmbeddingConfig:
    """Return how texts are embedded: as asked for, else as the store's documents are."""
    snapshots = store.snapshots() if store is not None else []
    asked, theirs = config.embedding, Config.from_dict(snapshots[-1].configuration if snapshots else {}).embedding
    return dataclasses.replace(asked, prompt=asked.prompt or theirs.prompt, max_tokens=asked.max_tokens or theirs.max_tokens)


def plan(asked: Request) -> dict[str, Any]:
    """Return what would be done, for ``--dry-run``."""
    tuned = asked.config.finetune
    return {
        "output": asked.name,
        "store": None if asked.store is None else asked.store.uri,
        "base": {"name": asked.base.name, "revision": asked.base.revision, "layers": asked.base.layers},
        "steps": [
            {
                "recipe": step.name,
                "rows": [asked.data.rows(number, i) for i in range(len(step.parts))],
                "epochs": step.epochs,
                "batch_size": step.batch_size,
                "learning_rate": step.learning_rate,
                "max_steps": step.max_steps,
            }
            for number, step in enumerate(asked.steps)
        ],
        "dropped": asked.data.dropped,
        "held_out": asked.data.held_rows,
        "workers": tuned.workers,
        "judges": asked.judges.names,
        "measure": asked.judges.measure,
    }


def _forced(asked: Request) -> dict[str, Any] | None:
    """Publish the model that this very request trained and that was rejected; None where there is none."""
    held = [model for model in registry.trained(asked.store) if model.name == asked.name] if asked.store is not None else []
    if not held or held[-1].status != registry.REJECTED or held[-1].data.get("request") != _print(asked) or not held[-1].path.is_dir():
        return None
    assert asked.store is not None
    row = dataclasses.replace(held[-1], status=registry.FORCED, at=datetime.now(UTC))
    registry.add(asked.store, row, row.path)
    found = _told(asked, row, json.loads((row.path.parent / "losses.json").read_text()))
    _describe_itself(row.path, found)
    return found | {"store": asked.store.uri, "path": str(row.path)}


def _train(asked: Request, work: Path, tutors: Tutors, ui: Ui) -> dict[str, Any]:
    """Run the steps that are not done, and return the folder of the model and how it was trained."""
    start, losses, rows = _at_hand(asked, work), [], []
    for number, step in enumerate(asked.steps):
        here = work / f"step-{number}"
        trained = examples.train_step(
            step, number, asked.config, asked.data, base=start, work=here, tutors=tutors, deepspeed=asked.deepspeed, ui=ui
        )
        losses.append(trained.losses)
        rows.append(trained.rows)
        start = str(trained.model)
    return {"model": start, "losses": losses, "rows": rows}


def _at_hand(asked: Request, work: Path) -> str:
    """Return where workers find the base: machines of a cluster do not have this one's cache of models, and do see ``work``."""
    if asked.config.ray.where is None:
        return str(asked.base.path)
    copy = work / "base"
    if not copy.is_dir():
        part = work / "base.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(asked.base.path, part)
        part.rename(copy)
    return str(copy)


def _judged(asked: Request, work: Path, done: Mapping[str, Any], tutors: Tutors, ui: Ui) -> dict[str, Any]:
    file = work / f"judged-{asked.judges.digest[:12]}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    began = time.monotonic()
    found = judging.measure(asked.judges, {"base": _at_hand(asked, work), "model": done["model"]}, tutors)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(file)
    ui.log("stage", f"judge: base and model by {', '.join(asked.judges.names)}, {time.monotonic() - began:.1f} s", stage="judge")
    return found


def _publish(
    asked: Request, work: Path, done: Mapping[str, Any], measures: Mapping[str, Any], why: str, status: str, seconds: float
) -> dict[str, Any]:
    model = Path(done["model"])
    row = registry.Trained(
        name=asked.name,
        revision=resolve(str(model)).revision,
        status=status,
        base=asked.base.name,
        base_revision=asked.base.revision,
        steps=asked.config.to_dict()["finetune"]["steps"],
        measures=measures,
        verdict=why,
        configuration=asked.config.to_dict()["finetune"],
        data={
            **asked.data.source,
            "request": _print(asked),
            "measure": asked.judges.measure,
            "rows": done["rows"],
            "dropped": asked.data.dropped,
            "held_out": asked.data.held_rows,
        },
        steps_done=sum(len(curve) for curve in done["losses"]),
        seconds=seconds,
        at=datetime.now(UTC),
        path=model,
    )
    found = _told(asked, row, done["losses"])
    _describe_itself(model, found)
    if asked.store is None:
        registry.place(model, asked.folder)
        return found | {"store": None, "path": str(asked.folder)}
    row = dataclasses.replace(row, path=registry.folder(asked.store, row.revision, row.name))
    row.path.parent.mkdir(parents=True, exist_ok=True)
    (row.path.parent / "losses.json").write_text(json.dumps(done["losses"]))
    registry.add(asked.store, row, model)
    _describe_itself(row.path, found)  # its weights may have been there, from before it was judged by another measure
    return found | {"store": asked.store.uri, "path": str(row.path)}


def _told(asked: Request, row: registry.Trained, losses: list[list[tuple[int, float]]]) -> dict[str, Any]:
    """Return what a caller is told of a model."""
    return {
        "model": row.name,
        "revision": row.revision,
        "status": row.status,
        "verdict": row.verdict,
        "measures": dict(row.measures),
        "measure": row.data["measure"],  # of a model that is forced, the one that it was rejected by
        "steps": [step.name for step in asked.steps],
        "training_steps": row.steps_done,
        # a training that diverged has losses that are no number, which JSON does not know
        "losses": [[(at, loss if math.isfinite(loss) else None) for at, loss in curve] for curve in losses],
        "data": dict(row.data),
        "given_vectors": asked.store is not None and any(snapshot.given_vectors for snapshot in asked.store.snapshots()[-1:]),
    }


def _describe_itself(model: Path, found: Mapping[str, Any]) -> None:
    """Leave beside the weights what they are: a file that changes no model's revision, and that people can read."""
    told = {key: found[key] for key in ("model", "status", "verdict", "measure", "measures", "steps", "training_steps", "data")}
    (model / "topicscale.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(told)), sort_keys=False), encoding="utf-8")


@contextmanager
def _working_folder(asked: Request, ui: Ui) -> Iterator[Path]:
    """Yield the folder of what is half done, held against a second training of the same name; an earlier request's is removed."""
    root = asked.store.path / TRAINING if asked.store is not None else asked.folder.parent
    root.mkdir(parents=True, exist_ok=True)
    prefix = f"{asked.name}." if asked.store is not None else f".{asked.name}.finetune."
    with exclusive(root / f"{prefix}lock", new_run_id(), f"The training of {asked.name!r}"):
        if asked.store is not None:
            _check_documents(asked.store, asked.data.source.get("documents_version"))
        work = root / f"{prefix}{_print(asked)[:12]}"
        for other in root.iterdir():
            if other != work and re.fullmatch(re.escape(prefix) + "[0-9a-f]{12}", other.name):
                ui.log("warning", f"An unfinished training of {asked.name!r} with other settings or data is removed.")
                shutil.rmtree(other, ignore_errors=True)
        work.mkdir(exist_ok=True)
        yield work
        if asked.store is None:
            (root / f"{prefix}lock").unlink()  # no folder of ours to leave it in


def _check_documents(store: Store, version: int | None) -> None:
    """Raise StoreError where documents are being removed, or were since a version was read. The training's lock is held."""
    if (store.path / PENDING).exists():
        raise StoreError(f"Documents are being removed from {store.uri!r}. Train when `topicscale forget` has ended.")
    if version is not None and Store(store.uri).pin().versions["documents"] != version:
        raise StoreError(f"The documents of {store.uri!r} have changed while they were read. Run the same command again.")


def _print(asked: Request) -> str:
    tuned = dataclasses.replace(asked.config.finetune, workers=None, checkpoint_steps=None, judges=(), measure=None, margin=0.0)
    beside: list[Any] = [part.recipe.depends(part.options) for step in asked.steps for part in step.parts]
    beside.append(asked.deepspeed)  # its settings may be in a file
    embedding = asked.config.embedding
    if embedding.prompt or embedding.max_tokens:
        beside.append([embedding.prompt, embedding.max_tokens])
    return fingerprint("finetune", CODE, asked.base.revision, tuned, asked.data.digest, beside)


def describe_plan(found: Mapping[str, Any]) -> str:
    """Return the plan of a training, for people."""
    lines = [
        f"output      {found['output']}{' in ' + found['store'] if found['store'] else ''}",
        f"base        {found['base']['name']} ({found['base']['layers']} layers, revision {found['base']['revision'][:12]})",
    ]
    for number, step in enumerate(found["steps"]):
        rows = " + ".join(f"{n:,}" for n in step["rows"])
        until = f"{step['max_steps']:,} steps at most" if step["max_steps"] else f"{step['epochs']:g} epoch{'s' * (step['epochs'] != 1)}"
        lines.append(
            f"step {number + 1:<6} {step['recipe']}: {rows} rows of data, {until}, {step['batch_size']} examples a step, "
            f"learning rate {step['learning_rate']:g}"
        )
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in found["dropped"].items())
    lines += [f"left out    {dropped or 'no row'}", f"held out    {found['held_out']:,} rows"]
    lines.append(f"judged by   {', '.join(found['judges'])}; what decides: {found['measure']}")
    return "\n".join([*lines, "Nothing was started (--dry-run)."])


def describe(found: Mapping[str, Any]) -> str:
    """Return what became of a training, for people."""
    lines = [f"{found['model']}: {' then '.join(found['steps'])}, {found['training_steps']:,} steps, {found['seconds']:.0f} s"]
    for name, curve in zip(found["steps"], found["losses"], strict=True):
        lines.append(f"loss ({name}): {_shown(curve[0][1])} -> {_shown(curve[-1][1])}")
    before, after = found["measures"]["base"], found["measures"]["model"]
    for task, values in after.items():
        for key in MEASURES[kind(task)]:
            if key in values:
                lines.append(f"{task + '.' + key:<28} {_shown(before[task].get(key)):>9} -> {_shown(values[key]):>9}")
    lines.append(f"{found['status']}: {found['verdict']}")
    lines.append(f"-> {found['path']}")
    if found["store"] is not None and found["status"] != registry.REJECTED:
        # vectors that came with the documents are not the model's
        given = " --set input.embedding_column=null" if found["given_vectors"] else ""
        lines.append(f"Next: topicscale update --refit --store {found['store']} --set embedding.model={found['model']}{given}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "no number" if value is None or not math.isfinite(value) else f"{value:.4f}"
