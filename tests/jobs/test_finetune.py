"""Fine-tuning on real engines: training, judging, publishing, and what is left after kills."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from jobs.cli import main
from jobs.finetune import _print, describe, finetune, request
from jobs.forget import forget
from jobs.judge import encoder, judge
from jobs.progress import Ui
from jobs.run import run
from jobs.stages.examples import workers_of
from tests import corpus
from tests.jobs.test_faults import gone
from topicscale import TopicModel, config, registry
from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import ConfigError, InputError, ModelError, RequestError, StoreLocked
from topicscale.finetune import base as bases
from topicscale.finetune.steps import parse
from topicscale.models import resolve
from topicscale.store import TRAINING, Store, exclusive

QUIET = Ui("quiet")
SMALL = {"batch_size": 16, "max_tokens": 32, "precision": "float32"}  # losses are compared closer than bfloat16 rounds


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory) -> str:
    """The first two layers of MiniLM: a step takes a fraction of a second, and there is something to learn."""
    folder = tmp_path_factory.mktemp("base") / "two-layers"
    bases.build(bases.inspect("all-MiniLM-L6-v2"), layers=2).save_pretrained(str(folder), create_model_card=False)
    SMALL["base"] = str(folder)
    return str(folder)


def settings(steps: list, **finetune) -> config.Config:
    return config.load(values={"finetune": {**SMALL, "steps": steps, **finetune}})


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """Pairs of texts of one theme: 1 where both begin with the same thing, 0 where they do not, whatever else they share."""
    generator = random.Random(3)
    by_thing: dict[tuple[str, str], list[str]] = {}
    for _, text, theme in corpus.rows():
        by_thing.setdefault((theme, text.split()[1]), []).append(text)
    path = tmp_path_factory.mktemp("scored") / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "score"])
        for number in range(400):
            theme, thing = generator.choice(sorted(by_thing))
            other = thing if number % 2 else generator.choice([name for of, name in sorted(by_thing) if of == theme and name != thing])
            writer.writerow([generator.choice(by_thing[theme, thing]), generator.choice(by_thing[theme, other]), float(other == thing)])
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows())


@pytest.fixture(scope="module")
def fitted(source, tmp_path_factory, spark, ray_layout) -> Path:
    store = tmp_path_factory.mktemp("stores") / "fitted"
    run(job(source), str(store), ui=QUIET)
    return store


@pytest.fixture
def store(fitted, tmp_path) -> Path:
    shutil.copytree(fitted, tmp_path / "store")
    return tmp_path / "store"


def job(source: Path, *overrides: str) -> config.Config:
    basic = {"input": {"paths": [str(source)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
    return config.load(values=basic, overrides=list(overrides))


def curve(model: Path) -> list:
    return json.loads((model.parent / "losses.json").read_text())


def vectors(store: Path) -> np.ndarray:
    rows = Store(store).read("embeddings").sort_by("doc_id")
    return np.stack(rows["vector"].to_numpy(zero_copy_only=False))


def test_a_model_that_is_better_is_published_and_run_takes_it_by_name(store, source, scored) -> None:
    found = finetune(settings(["cosine"], epochs=3, learning_rate=2e-4), "themes", store=store, input=[str(scored)], ui=QUIET)
    assert found["status"] == "published"
    assert found["measure"] == "sts:held-out.spearman"
    before, after = (found["measures"][key]["sts:held-out"]["spearman"] for key in ("base", "model"))
    assert after > before
    assert found["losses"][0][-1][1] < found["losses"][0][0][1]
    assert not list((store / TRAINING).glob("*/"))  # what was half done is gone

    (held,) = registry.trained(Store(store))
    assert (held.name, held.status, held.base) == ("themes", "published", SMALL["base"])
    assert (held.path / "model.safetensors").is_file()
    assert not [file for file in held.path.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]

    old = vectors(store)
    ended = run(job(source, "embedding.model=themes"), str(store), ui=QUIET)
    assert not ended.nothing_to_do
    new = vectors(store)
    assert (np.einsum("ij,ij->i", old, new) < 0.99).mean() > 0.9  # all were embedded again
    spaces = set(Store(store).read("embeddings")["space"].to_pylist())
    assert len(spaces) == 1
    assert run(job(source, "embedding.model=themes"), str(store), ui=QUIET).nothing_to_do


@pytest.mark.slow
def test_a_store_that_was_moved_finds_its_model(store, source, scored, tmp_path) -> None:
    finetune(settings(["cosine"], max_steps=2), "mine", store=store, input=[str(scored)], force=True, ui=QUIET)
    run(job(source, "embedding.model=mine"), str(store), ui=QUIET)
    moved = tmp_path / "elsewhere"
    store.rename(moved)
    model = TopicModel.load(str(moved))
    texts = [text for _, text, _ in corpus.rows()[:5]]
    topics, _ = model.transform(texts)
    assert len(topics) == 5


def test_a_model_that_is_worse_is_kept_and_rejected(store, source, scored, capsys) -> None:
    # a learning rate that breaks any model
    asked = ["finetune", "--recipe", "cosine", "--input", str(scored), "--store", str(store), "--output", "broken", "--quiet"]
    for item in (f"base={SMALL['base']}", "batch_size=16", "max_tokens=32", "max_steps=20", "learning_rate=0.5", "warmup=0"):
        asked += ["--set", f"finetune.{item}"]
    asked += ["--measure", "topics.npmi"]
    assert main(asked) == 1
    assert "rejected" in capsys.readouterr().out
    (held,) = registry.trained(Store(store))
    assert held.status == "rejected"
    assert held.path.is_dir()
    with pytest.raises(RequestError, match="was rejected"):
        run(job(source, "embedding.model=broken"), str(store), ui=QUIET)
    with pytest.raises(RequestError, match="was rejected"):
        judge(["broken"], [], store=str(store))
    with pytest.raises(RequestError, match="was rejected"):
        finetune(settings(["cosine"], base="broken"), "next", store=store, input=[str(scored)], ui=QUIET)

    before = (store / TRAINING).stat().st_mtime_ns
    assert main([*asked, "--force"]) == 0
    assert (store / TRAINING).stat().st_mtime_ns == before  # it is there: nothing is trained again
    assert [model.status for model in registry.trained(Store(store))] == ["rejected", "forced"]
    assert registry.find(Store(store), "broken") is not None
    assert main(["models", "--store", str(store)]) == 0
    assert "forced" in capsys.readouterr().out


def test_documents_of_a_store_are_trained_on_without_any_label(store, capsys) -> None:
    found = finetune(settings(["crop"], max_steps=4, epochs=2), "cropped", store=store, ui=QUIET, force=True)
    assert found["steps"] == ["crop"]
    assert found["data"]["rows"] == [[400]]  # 200 documents, each cropped anew in both passes
    assert found["measure"] == "topics.npmi"
    held = registry.trained(Store(store))[-1]
    assert held.data["documents_version"] == Store(store).pin().versions["documents"]


def test_steps_run_one_after_another_and_recipes_together(scored, source, tmp_path, ray_layout) -> None:
    pairs = tmp_path / "same.csv"
    with pairs.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "body"])
        by_theme: dict[str, list[str]] = {}
        for _, text, theme in corpus.rows():
            by_theme.setdefault(theme, []).append(text)
        for texts in by_theme.values():
            writer.writerows(zip(texts[::2], texts[1::2], strict=True))
    together = [
        {"recipe": "mnr", "input": str(pairs), "columns": {"anchor": "title", "positive": "body"}},
        {"recipe": "cosine", "input": str(scored)},
    ]
    steps = [{"recipe": "simcse", "max_steps": 2}, together]
    found = finetune(settings(steps, max_steps=5, held_out=0.3), str(tmp_path / "model"), input=[str(scored)], ui=QUIET)
    assert found["steps"] == ["simcse", "mnr + cosine"]
    assert found["training_steps"] == 7
    assert set(found["measures"]["model"]) == {"retrieval:held-out", "sts:held-out"}
    assert Embedder(EmbeddingConfig(model=found["path"]), threads=2).encode(["one text"]).vectors.shape == (1, 384)


# DeepSpeed's own bf16 would round weights and loss: off by .05 here
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_workers_of_deepspeed_lose_as_a_plain_one_does(precision, scored, tmp_path, ray_layout) -> None:
    curves = []
    judging = tmp_path / "judging.csv"
    judging.write_text(scored.read_text())
    for workers, deepspeed in ((1, None), (2, "deepspeed-zero2")):
        how = {"workers": workers, "deepspeed": deepspeed, "judges": [f"sts={judging}:sentence1,sentence2,score"]}
        steps = settings(["cosine"], max_steps=6, dropout=0.0, precision=precision, **how)
        store_less = tmp_path / f"model-{workers}"
        found = finetune(steps, str(store_less), input=[str(scored)], ui=QUIET)
        curves.append([loss for _, loss in found["losses"][0]])
    assert len(curves[0]) == 6
    assert np.allclose(*curves, atol=1e-3)


def asked(scored: Path, store: Path) -> list[str]:
    options = ["steps=[cosine]", f"base={SMALL['base']}", "batch_size=8", "max_tokens=32", "max_steps=60", "checkpoint_steps=5", "seed=9"]
    options += ["dropout=0.0", "precision=float32"]  # so that two workers, which draw other numbers, lose as one does
    sets = [part for item in options for part in ("--set", f"finetune.{item}")]
    return ["finetune", "--input", str(scored), "--store", str(store), "--output", "model", "--force", "--json", *sets]


def training(scored: Path, store: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *asked(scored, store)],
        stdin=subprocess.DEVNULL,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
    )


def wait_for_checkpoint(process: subprocess.Popen[bytes], store: Path, log: Path) -> None:
    deadline = time.monotonic() + 240
    while not list(store.glob(f"{TRAINING}/*/step-0/checkpoints/checkpoint-*/complete")):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(fitted, scored, tmp_path_factory) -> list:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    shutil.copytree(fitted, store)
    assert main(asked(scored, store)) == 0
    return curve(registry.trained(Store(store))[-1].path)


def test_two_workers_lose_as_one_does(store, scored, undisturbed) -> None:
    assert main([*asked(scored, store), "--set", "finetune.workers=2"]) == 0
    (found,) = curve(registry.trained(Store(store))[-1].path)
    assert len(found) == 60
    assert np.allclose([loss for _, loss in found], [loss for _, loss in undisturbed[0]], atol=1e-3)


@pytest.mark.parametrize("victim", ["driver", pytest.param("worker", marks=pytest.mark.slow)])
def test_killed_in_training_it_ends_as_if_it_had_not_been(victim, store, scored, undisturbed, tmp_path) -> None:
    log = tmp_path / "log"
    process = training(scored, store, log)
    try:
        wait_for_checkpoint(process, store, log)
        children = psutil.Process(process.pid).children(recursive=True)
        if victim == "driver":
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            until = time.monotonic() + 60
            while not gone([child.pid for child in children]):  # Ray's processes end with their driver
                assert time.monotonic() < until, "processes outlived their driver"
                time.sleep(0.2)
            process = training(scored, store, log)
        else:
            workers = [child for child in children if "ray::Tutor" in " ".join(child.cmdline() or [child.name()])]
            assert workers
            workers[0].kill()
        assert process.wait(300) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    found = curve(registry.trained(Store(store))[-1].path)
    assert [step for step, _ in found[0]] == list(range(1, 61))
    assert np.allclose([loss for _, loss in found[0]], [loss for _, loss in undisturbed[0]], atol=1e-5)


@pytest.mark.slow
def test_a_training_that_diverges_is_rejected_and_no_perfect_score(store, tmp_path) -> None:
    pairs = tmp_path / "pairs.csv"
    with pairs.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["anchor", "positive"])
        texts = [text for _, text, _ in corpus.rows()]
        writer.writerows(zip(texts[:100], texts[100:], strict=True))
    asked = settings(["mnr"], max_steps=6, learning_rate=1e30, warmup=0.0, held_out=0.3)
    found = finetune(asked, "diverged", store=store, input=[str(pairs)], ui=QUIET)
    assert found["status"] == "rejected"
    assert "diverged" in found["verdict"]
    json.dumps(found, allow_nan=False)
    assert "-> no number" in describe(found)


def test_forgetting_removes_trainings_that_hold_texts(store, tmp_path) -> None:
    half_done = store / TRAINING / "model.0123456789ab"
    half_done.mkdir(parents=True)
    (half_done / "examples.txt").write_text("a document")
    ids = tmp_path / "ids.txt"
    ids.write_text(Store(store).read("documents", ["doc_id"])["doc_id"][0].as_py())
    forget(ids, store, ui=QUIET)
    assert not half_done.exists()


def test_documents_are_not_forgotten_while_a_training_holds_them(store, tmp_path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(Store(store).read("documents", ["doc_id"])["doc_id"][0].as_py())
    (store / TRAINING).mkdir()
    with exclusive(store / TRAINING / "busy.lock", "other", "x"), pytest.raises(StoreLocked, match=r"training of 'busy'.*run other"):
        forget(ids, store, ui=QUIET)
    assert Store(store).pin().summary["documents"] == 200


def test_one_name_is_trained_by_one_job_at_a_time(store, scored) -> None:
    (store / TRAINING).mkdir()
    with exclusive(store / TRAINING / "busy.lock", "other", "x"), pytest.raises(StoreLocked, match="in use by run other"):
        finetune(settings(["cosine"]), "busy", store=store, input=[str(scored)], ui=QUIET)


GPL = {"recipe": "gpl"}


@pytest.mark.parametrize(
    ("steps", "changes", "error", "message"),
    [
        (["cosin"], {}, ConfigError, "Did you mean 'cosine'"),
        ([], {}, ConfigError, "at least one recipe"),
        ([{"recipe": "cosine", "scal": 3}], {}, ConfigError, "has no key 'scal'"),
        (["tsdae"], {"workers": 2}, ConfigError, "workers must be 1"),
        (["tsdae"], {"base": "smollm2-135m-instruct"}, ModelError, "cross-attention"),
        (["mlm"], {"base": "smollm2-135m-instruct"}, ModelError, "mask"),
        (["softmax"], {}, RequestError, r"must have the columns \(sentence1, sentence2, label\)"),
        (["cosine"], {"layers": 9}, RequestError, "6 layers"),
        (["cosine"], {"base": "no-such-model-here"}, ModelError, "no-such-model-here"),
        (["cosine"], {"deepspeed": "zero9"}, ConfigError, "deepspeed-zero1"),
        (["tsdae"], {"deepspeed": "deepspeed-zero2"}, ConfigError, "left out"),
        (["cached-mnr"], {"deepspeed": "deepspeed-zero2"}, ConfigError, "deepspeed-zero1"),
        ([{"recipe": "cosine", "warmup": 100}], {}, ConfigError, "share of the steps"),
        ([{"recipe": "cosine", "batch_size": 16.7}], {}, ConfigError, "whole number"),
        (["cosine"], {"judges": ["sts=missing.csv"]}, RequestError, "missing.csv"),
        (["cosine"], {"judges": ["sts={scored}:sentence1,sentence2,score"]}, RequestError, "not name what is trained on"),
        (["cosine"], {"judges": ["sts=file://{scored}:sentence1,sentence2,score"]}, RequestError, "not name what is trained on"),
        ([GPL], {"judges": ["sts={scored}:sentence1,sentence2,score"]}, RequestError, "not name what is trained on"),
        ([{"recipe": "cosine", "learning_rate": "3e-5"}], {"held_out": 0.0}, RequestError, "nothing to judge"),
        (["cosine"], {"held_out": 0.03}, RequestError, r"make no judge.*Raise finetune\.held_out \(0\.03\)"),
        (["cosine"], {"measure": "topics.npmi"}, RequestError, "measure"),
        (["cosine"], {"judges": ["topics={scored}:sentence1"], "measure": "topics.nmi"}, RequestError, "topics.npmi"),
        (["cosine"], {"held_out": 0.0}, RequestError, "nothing to judge"),
        (["cosine"], {"workers": 3}, ConfigError, "multiple of the 3 workers"),
        (["cosine"], {"precision": "float16"}, RequestError, "needs a GPU"),
        (["cosine"], {"similarity": "dot"}, ConfigError, "cosent"),
        (["simcse"], {"dropout": 0.0}, ModelError, "needs dropout"),
        (["gpl"], {}, ConfigError, "cross_encoder"),
        ([{"recipe": "gpl", "cross_encoder_data": {"input": "none.csv"}}], {}, InputError, "none.csv"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(steps, changes, error, message, scored, tmp_path) -> None:
    if "judges" in changes:
        changes = {**changes, "judges": [judge.format(scored=scored) for judge in changes["judges"]]}
    if GPL in steps:
        steps = [{**GPL, "cross_encoder_data": {"input": str(scored)}}]
    asked = config.load(values={"finetune": {"steps": steps, **changes}})
    with pytest.raises(error, match=message):
        finetune(asked, str(tmp_path / "model"), input=[str(scored)], ui=QUIET)
    assert not list(tmp_path.iterdir())


def test_columns_of_a_step_are_those_of_the_one_input(tmp_path) -> None:
    source = tmp_path / "faq.csv"
    rows = [f"question {i},answer {i},title {i},abstract {i}" for i in range(300)]
    source.write_text("\n".join(["question,answer,title,abstract", *rows]) + "\n")
    steps = [{"recipe": "mnr", "columns": {"anchor": "title", "positive": "abstract"}}, "mnr"]
    named, found = request(settings(steps), str(tmp_path / "model"), store=None, input=[str(source)]).data.parts
    assert [table["anchor"][0].as_py().split()[0] for ((table, _),) in (named, found)] == ["title", "question"]
    with pytest.raises(RequestError, match="columns of the recipe mnr must be those of an input"):
        request(settings(steps), str(tmp_path / "model"), store=None)


def test_columns_of_a_step_choose_the_input_before_the_store(fitted, tmp_path) -> None:
    source = tmp_path / "labelled.csv"
    source.write_text("title,label\n" + "".join(f"a text about {i},{'ab'[i % 2]}\n" for i in range(300)))
    columns = {"text": "title"}
    steps = [{"recipe": "simcse", "columns": columns}, {"recipe": "setfit", "columns": {**columns, "label": "label"}}]
    data = request(settings(steps), "m", store=fitted, input=[str(source)]).data
    assert data.parts[0][0][0]["text"][0].as_py().startswith("a text about")
    assert data.rows(0, 0) == data.rows(1, 0)


def test_powers_of_ten_are_numbers_however_deep() -> None:
    step = {
        "recipe": "gpl",
        "queries": "1e1",
        "cross_encoder_options": {"learning_rate": "2e-5"},
        "input": "1e5",
        "score_range": [0, "1e2"],
    }
    ((part,),) = (one.parts for one in parse(settings([step]).finetune))
    assert (part.options["queries"], part.options["cross_encoder_options"]) == (10, {"learning_rate": 2e-5})
    assert (part.input, part.score_range) == (("1e5",), (0.0, 100.0))


def test_as_many_workers_as_gpus_that_divide_a_batch() -> None:
    ((mnr,), (tsdae,)) = (parse(settings([name], batch_size=48).finetune) for name in ("mnr", "tsdae"))
    assert [workers_of(mnr, None, gpus) for gpus in (0, 1, 5, 8)] == [1, 1, 4, 8]
    assert (workers_of(mnr, 3, 8), workers_of(tsdae, None, 8)) == (3, 1)


def test_what_a_killed_training_left_beside_its_model_is_named(scored, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / ".model.finetune.0123456789ab").mkdir()
    with pytest.raises(RequestError, match=r"is there already\. Remove .*\.model\.finetune\.0123456789ab"):
        finetune(settings(["cosine"]), str(tmp_path / "model"), input=[str(scored)], ui=QUIET)


def test_a_stores_prompt_is_judged_with_and_part_of_what_a_training_is(store, scored) -> None:
    held, how = Store(store), {"prompt": "rain and storm: ", "max_tokens": 16}  # which leaves ten words of a text
    before = request(settings(["cosine"]), "behind", store=store, input=[str(scored)])
    snapshot = held.pin()
    settled = {**snapshot.configuration, "embedding": {**snapshot.configuration["embedding"], **how}}
    held.publish(configuration=settled, summary=snapshot.summary, unit_fingerprint=config.fingerprint("again"))
    asked = request(settings(["cosine"]), "behind", store=store, input=[str(scored)])
    assert _print(asked) != _print(before)
    found = finetune(settings(["cosine"], max_steps=2), "behind", store=store, input=[str(scored)], ui=QUIET)
    base = resolve(SMALL["base"])
    bare, behind = (
        asked.judges.ready[0].run(encoder(base, how))["spearman"] for how in (EmbeddingConfig(max_tokens=16), asked.config.embedding)
    )
    assert abs(bare - behind) > 0.1
    assert found["measures"]["base"]["sts:held-out"]["spearman"] == pytest.approx(behind, abs=0.04)


def test_what_judges_is_trained_on_by_no_step(tmp_path) -> None:
    """The same rows, read for two steps as pairs and as scored sentences, the other way round too."""
    source = tmp_path / "rows.csv"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "body", "score"])
        for i in range(600):
            writer.writerow([f"title {i}", f"body {i}", i % 5 / 4])
            writer.writerow([f"body {i}", f"title {i}", i % 5 / 4])
    steps = [
        {"recipe": "mnr", "input": str(source), "columns": {"anchor": "title", "positive": "body"}},
        {"recipe": "cosine", "input": str(source), "columns": {"sentence1": "title", "sentence2": "body", "score": "score"}},
    ]
    data = request(config.load(values={"finetune": {"steps": steps}}), str(tmp_path / "model"), store=None).data

    def texts(table) -> set[frozenset[str]]:
        return {frozenset(value for key, value in row.items() if key not in ("score", "label")) for row in table.to_pylist()}

    judging = set().union(*(texts(table) for table, _ in data.held))
    assert len(judging) > 60
    for ((table, _),) in data.parts:
        assert table.num_rows > 500
        assert not judging & texts(table)


def test_rows_that_two_steps_read_are_counted_once(tmp_path) -> None:
    source = tmp_path / "rows.csv"
    rows = [f"a sentence {i},another {i},{i % 5 / 4}" for i in range(400)] + ["without a score,x,"] * 7
    source.write_text("\n".join(["sentence1,sentence2,score", *rows]) + "\n")
    alone, both = (
        request(settings(steps), str(tmp_path / "model"), store=None, input=[str(source)]).data
        for steps in (["cosine"], ["simcse", "cosine"])
    )
    assert alone.dropped == {"empty_score": 7}
    assert (both.dropped.get("empty_score"), both.held_rows) == (7, alone.held_rows)


def test_texts_are_the_stores_where_the_input_is_for_another_step(store, tmp_path) -> None:
    """Whether its columns are named or found."""
    source = tmp_path / "labelled.csv"
    source.write_text("text,label\n" + "".join(f"a text about {i},{'ab'[i % 2]}\n" for i in range(50)))
    for columns in ({}, {"text": "text", "label": "label"}):
        data = request(settings(["simcse", "setfit"]), "m", store=store, input=[str(source)], columns=columns).data
        assert data.rows(0, 0) > 100
        assert data.rows(1, 0) <= 50


def test_a_name_must_be_a_name(store, scored) -> None:
    with pytest.raises(RequestError, match="letters, digits"):
        finetune(settings(["cosine"]), "a b", store=store, input=[str(scored)], ui=QUIET)
    with pytest.raises(RequestError, match="packaged"):
        finetune(settings(["cosine"]), "all-MiniLM-L6-v2", store=store, input=[str(scored)], ui=QUIET)


def test_a_dry_run_says_what_would_be_done(scored, tmp_path, capsys) -> None:
    with (scored.parent / "worse.csv").open("w") as file:
        file.write(scored.read_text() + ',no first sentence,1.0\n"one",,0.5\n')
    asked = ["finetune", "--recipe", "cosine", "--input", str(scored.parent / "worse.csv"), "--output", str(tmp_path / "m"), "--dry-run"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # what says the same as a held-out row, the other way round, is told too
    assert found["steps"][0]["rows"] == [400 - found["held_out"] - found["dropped"]["texts_that_judge"]]
    assert found["dropped"]["empty_text"] == 2
    assert found["measure"] == "sts:held-out.spearman"
    assert main(asked) == 0
    assert "Nothing was started" in capsys.readouterr().out


def test_bad_columns_are_told(scored, tmp_path, capsys) -> None:
    asked = ["finetune", "--recipe", "cosine", "--input", str(scored), "--output", str(tmp_path / "m")]
    assert main([*asked, "--columns", "sentence1"]) == 2
    assert "name=column" in capsys.readouterr().err
    assert main([*asked, "--columns", "sentence1=a,sentence2=b,score=c"]) == 2
    assert "'a'" in capsys.readouterr().err
    with pytest.raises(InputError, match="no-such-file"):
        finetune(settings(["cosine"]), str(tmp_path / "m"), input=["no-such-file.csv"], ui=QUIET)
