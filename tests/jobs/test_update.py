"""New documents into a store, and documents out of it, on real engines."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from sklearn.feature_extraction.text import CountVectorizer

from jobs.dry_run import dry_run
from jobs.forget import PER_DOCUMENT, forget
from jobs.forget import describe as described
from jobs.progress import Ui
from jobs.run import run
from jobs.stages import add
from jobs.stages.refine import Topics
from jobs.topics import describe as describe_topics
from jobs.topics import topics
from jobs.update import refit, update
from ray_actors.parts import to_matrix
from tests import corpus
from tests.jobs.compare import contents
from topicscale import TopicModel, config
from topicscale.cluster import exact, unit
from topicscale.errors import JobFailed, ModelError, RequestError, ResourceError, StoreError
from topicscale.federate import vector_sums
from topicscale.refine import Sums, assign
from topicscale.store import PENDING, Store
from topicscale.terms import name

QUIET = Ui("quiet")
ROWS = corpus.rows()
OLD = [row for row in ROWS if row[2] != "football"][:130]
MORE = [row for row in ROWS if row[2] != "football"][130:]
SPORT = [row for row in ROWS if row[2] == "football"]


def settings(path: Path, *overrides: str) -> config.Config:
    basic = {"input": {"paths": [str(path)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
    return config.load(values=basic, overrides=list(overrides))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "old": corpus.write_csv(folder / "old.csv", OLD),
        # again, one of them changed, a new one, and an empty one
        "more": corpus.write_csv(
            folder / "more.csv", [*MORE[:-1], *OLD[:7], (OLD[7][0], "something else altogether", "x"), MORE[-1], ("e1", " ", "x")]
        ),
        "sport": corpus.write_csv(folder / "sport.csv", SPORT),
    }


@pytest.fixture(scope="module")
def base(inputs, tmp_path_factory, spark, ray_layout) -> Path:
    store = tmp_path_factory.mktemp("stores") / "base"
    run(settings(inputs["old"]), str(store), ui=QUIET)
    return store


@pytest.fixture(scope="module")
def updated(base, inputs, tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "updated"
    shutil.copytree(base, store)
    return store, [update([str(inputs[name])], store, ui=QUIET) for name in ("more", "sport")]


def adds_up(store: Path) -> None:
    """Check every sum against the documents themselves."""
    reader = Store(store)
    reader.pin()
    documents = {row["doc_id"]: row["text"] for row in reader.read("documents").to_pylist()}
    rows = reader.read("assignments").to_pylist()
    assigned, probable = ({row["doc_id"]: row[key] for row in rows} for key in ("topic_id", "probability"))
    embeddings = reader.read("embeddings")
    ids = embeddings["doc_id"].to_pylist()
    assert sorted(documents) == sorted(assigned) == sorted(ids)
    topics = np.array([assigned[doc_id] for doc_id in ids])
    vectors = exact(to_matrix(embeddings["vector"]))
    rows = [row for row in reader.read("topics").sort_by("topic_id").to_pylist() if row["size"]]
    sites = reader.read("site_topics")
    for row, size, total in zip(rows, sites["size"].to_pylist(), vector_sums(sites), strict=True):
        inside = topics == row["topic_id"]
        assert row["size"] == size == inside.sum()
        np.testing.assert_array_equal(vectors[inside].sum(axis=0), total)
        if row["topic_id"] == -1:
            np.testing.assert_allclose(row["reference_vector"], total / np.linalg.norm(total), atol=1e-6)
    # scikit-learn counts the same words in these texts
    vectorizer = CountVectorizer(stop_words="english")
    counted = vectorizer.fit_transform([documents[doc_id] for doc_id in ids])
    words = vectorizer.get_feature_names_out()
    limits = {row["topic_id"]: -2.0 if row["core"] is None else row["core"] for row in rows}  # outliers have no core
    near = np.array([probable[doc_id] >= limits[assigned[doc_id]] for doc_id in ids])
    expected = {}
    for topic in {row["topic_id"] for row in rows}:
        of = counted[topics == topic]
        totals, holders = np.asarray(of.sum(axis=0)).ravel(), of.getnnz(axis=0)
        core = np.asarray(counted[(topics == topic) & near].sum(axis=0)).ravel()
        expected |= {(topic, words[i]): (int(totals[i]), int(holders[i]), int(core[i])) for i in np.flatnonzero(totals)}
    terms = reader.read("topic_terms").to_pylist()
    assert {(row["topic_id"], row["term"]): (row["count"], row["documents"], row["core_count"]) for row in terms} == expected
    # and what merging reads, and what is shown, was made of these counts
    for leaf, row in zip(sites.to_pylist(), rows, strict=True):
        inside = {term: count for (topic, term), (count, _, _) in expected.items() if topic == row["topic_id"]}
        assert dict(leaf["term_counts"]) == inside
        assert set(row["keywords"]) <= {term for term in inside if expected[row["topic_id"], term][2]}
    trends: dict[int, int] = {}
    for row in reader.read("topic_trends").to_pylist():
        trends[row["topic_id"]] = trends.get(row["topic_id"], 0) + row["documents"]
    if trends:
        assert {topic: count for topic, count in trends.items() if count} == {row["topic_id"]: row["size"] for row in rows}


def test_counts_say_what_became_of_every_row(updated) -> None:
    _, (more, sport) = updated
    assert (more["documents"], more["already_present"], more["quarantined"]) == (len(MORE), 7, {"duplicate_id": 1, "empty": 1})
    assert more["input_rows"] == len(MORE) + 7 + 2
    assert (sport["documents"], sport["already_present"]) == (len(SPORT), 0)


def test_what_is_new_becomes_a_topic_and_what_was_there_stays(base, updated) -> None:
    store, (_, sport) = updated
    before, after = (Store(path) for path in (base, store))
    before.pin(), after.pin()
    old = {row["doc_id"]: (row["topic_id"], row["probability"]) for row in before.read("assignments").to_pylist()}
    new = {row["doc_id"]: (row["topic_id"], row["probability"]) for row in after.read("assignments").to_pylist()}
    assert {doc_id: new[doc_id] for doc_id in old} == old
    topics = {row["topic_id"]: row for row in after.read("topics").to_pylist()}
    for row in before.read("topics").to_pylist():
        same = topics[row["topic_id"]]
        assert (same["topic_key"], same["label"]) == (row["topic_key"], row["label"])
        if row["topic_id"] >= 0:  # the outliers' is their mean
            assert same["reference_vector"] == row["reference_vector"]
    assert sport["new_topics"]
    inside = [new[doc_id][0] in sport["new_topics"] for doc_id, _, _ in SPORT]
    assert np.mean(inside) > 0.8
    words = " ".join(corpus.THEMES["football"]).split()
    assert set(topics[sport["new_topics"][0]]["keywords"]) & set(words)
    assert topics[sport["new_topics"][0]]["representative_docs"]


def test_everything_adds_up_after_updates(updated) -> None:
    adds_up(updated[0])


def test_names_made_of_earlier_keywords_are_nobodys_names(updated, tmp_path) -> None:
    store, _ = updated
    rows = Store(store).read("topics").to_pylist()
    assert any(row["label"] != name(row["topic_id"], row["keywords"]) for row in rows)
    TopicModel.load(store).to_bertopic(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "topics.json").read_text())["custom_labels"] is None
    shown = topics(str(store), top=3)
    assert [row["size"] for row in shown] == sorted((row["size"] for row in rows if row["topic_id"] >= 0), reverse=True)[:3]
    assert ": " not in describe_topics(shown)


def test_trends_tell_each_batch_and_fade_by_half_life(base, updated) -> None:
    store, (_, sport) = updated
    model = TopicModel.load(store)
    trends = model.get_topic_trends()
    assert trends.groupby("Batch")["Count"].sum().tolist() == [len(OLD), len(MORE), len(SPORT)]
    assert set(trends[trends["Topic"] == sport["new_topics"][0]]["Batch"]) == {2}
    fitted = Store(base).pin()
    (first,) = trends[trends["Batch"] == 0]["Timestamp"].unique()
    assert first.isoformat() == fitted.summary["fitted_at"]
    faded = model.get_topic_trends(half_life="1s")
    assert faded["Weight"].tolist() == pytest.approx(
        [c * 0.5 ** (trends["Timestamp"].max() - t).total_seconds() for c, t in zip(trends["Count"], trends["Timestamp"], strict=True)]
    )


def test_stored_assignments_are_what_the_model_says(updated) -> None:
    reader = Store(updated[0])
    reader.pin()
    embeddings = reader.read("embeddings")
    found, _ = TopicModel.load(updated[0]).transform([""] * embeddings.num_rows, to_matrix(embeddings["vector"]))
    stored = {row["doc_id"]: row["topic_id"] for row in reader.read("assignments").to_pylist()}
    later = [i for i, pid in enumerate(embeddings["partition_id"].to_pylist()) if pid.endswith("-b00002")]
    assert [found[i] for i in later] == [stored[embeddings["doc_id"][i].as_py()] for i in later]


@pytest.mark.parametrize("name", ["more", "sport"])  # the first has bad rows, too
def test_the_same_batch_again_changes_nothing(name, updated, inputs) -> None:
    store, (more, sport) = updated
    before = contents(str(store))
    again = update([str(inputs[name])], store, ui=QUIET)
    first = {"more": more, "sport": sport}[name]
    assert (again["documents"], again["already_present"]) == (0, first["documents"] + first["already_present"])
    assert contents(str(store)) == before


def test_a_run_does_not_drop_batches(updated, inputs) -> None:
    for job in (partial(run, ui=QUIET), dry_run):
        with pytest.raises(StoreError, match="update --refit"):
            job(settings(inputs["old"]), str(updated[0]))


def test_a_refit_takes_all_documents(updated, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(updated[0], store)
    result = refit(store, ui=QUIET)
    assert result.documents == len(OLD) + len(MORE) + len(SPORT)
    adds_up(store)
    trends = TopicModel.load(store).get_topic_trends()
    assert trends.groupby("Batch")["Count"].sum().tolist() == [len(OLD), len(MORE), len(SPORT)]
    assert trends["Timestamp"].tolist() == sorted(trends["Timestamp"])
    assert refit(store, ui=QUIET).nothing_to_do


def test_bad_requests_are_refused(updated, inputs, tmp_path) -> None:
    store, _ = updated
    with pytest.raises(RequestError, match="input"):
        update([str(inputs["old"])], store, overrides=["topics.min_size=3"], ui=QUIET)
    with pytest.raises(ResourceError, match="64 workers"):  # where it runs may be said
        update([str(inputs["old"])], store, overrides=["ray.actors=64", "ray.cpus_per_actor=4"], ui=QUIET)
    with pytest.raises(RequestError, match=r"embedding_column must be given in a batch where the store has it.*made by all-MiniLM"):
        update([str(inputs["old"])], store, overrides=["input.embedding_column=v"], ui=QUIET)
    for ignored in ("partition.number=8", "partition={number: 8}", "input.keep=theme", "input={id_column: null}"):
        with pytest.raises(RequestError, match="documents stay as they were read and divided"):
            refit(store, overrides=[ignored], ui=QUIET)
    with pytest.raises(RequestError, match=r"nothing\.csv"):
        update([str(tmp_path / "nothing.csv")], store, ui=QUIET)
    with pytest.raises(StoreError):
        update([str(inputs["old"])], tmp_path / "none", ui=QUIET)
    bad = corpus.write_csv(tmp_path / "bad.csv", [(f"x{i}", " ", "x") for i in range(9)] + [("good", "a good text about bread", "x")])
    before = contents(str(store))
    with pytest.raises(JobFailed, match="nothing was added"):
        update([str(bad)], store, ui=QUIET)
    assert contents(str(store)) == before


def test_a_store_that_gave_other_ids_is_refused(base, inputs, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(base, store)
    snapshot = Store(store).pin()
    summary = {key: value for key, value in snapshot.summary.items() if key != "ingest"}
    without = {**snapshot.configuration, "input": {**snapshot.configuration["input"], "id_column": None}}
    Store(store).publish(configuration=without, summary=summary)
    with pytest.raises(StoreError, match="earlier topicscale, which gave documents without an id column other ids"):
        update([str(inputs["sport"])], store, ui=QUIET)


def test_vectors_of_another_length_than_the_stores_are_refused(base, tmp_path) -> None:
    store, path = tmp_path / "store", tmp_path / "batch.parquet"
    shutil.copytree(base, store)
    snapshot = Store(store).pin()
    given = {**snapshot.configuration, "input": {**snapshot.configuration["input"], "embedding_column": "v"}}
    Store(store).publish(configuration=given, summary=snapshot.summary)
    pq.write_table(pa.table({"id": ["x1"], "text": ["one"], "v": [[1.0, 0.0]]}), path)
    with pytest.raises(RequestError, match=r"vectors of the store's length, 384\. Got vectors of length 2 instead"):
        update([str(path)], store, ui=QUIET)
    with Store(store).lock("x"):
        pass
    assert Store(store).pin().generation == 2


def test_a_new_topic_takes_its_own_documents_and_is_made_once() -> None:
    """Also one more diffuse than all there were, whose documents are further from it than others may be."""
    random = np.random.default_rng(0)
    documents = unit(np.eye(16)[1] + 0.5 * random.normal(size=(40, 16))).astype(np.float32)
    leaf = {"partition_id": ["p"], "local_topic": [0], "size": [40], "vector_sum": [exact(documents).sum(axis=0).tolist()]}
    store = SimpleNamespace(read=lambda *_, **__: pa.table(leaf))
    job = SimpleNamespace(store=store, config=config.Config.from_dict({"topics": {"min_size": 5}}))
    zero, none = np.zeros(1, np.int64), np.full(1, -1, np.int64)
    topics = Topics(["old"], np.eye(16, dtype=np.float32)[:1], np.float32([0.9]), np.float32([0.9]), zero + 100, none, [""])
    base = add.Base([], topics, Sums(np.array([0, 100]), np.array([np.zeros(16), 99 * np.eye(16)[0]])))
    found = add.extend(job, base, ["p"], height=1e-3, names=None)
    assert found.new == [1]
    taken, _ = assign(documents, found.topics.vectors, found.topics.cutoffs)
    assert np.mean(taken == 1) > 0.5
    empty = Sums(np.array([0, 100, 0]), np.concatenate([base.sums.vector_sums, np.zeros((1, 16))]))
    assert add.extend(job, add.Base([], found.topics, empty), ["p"], height=1e-3, names=None).new == []


def test_where_no_granularity_was_found_no_topic_is() -> None:
    leaves = [{"partition_id": "p", "local_topic": i, "size": 40, "vector_sum": (40 * np.eye(16)[1 + i]).tolist()} for i in range(2)]
    store = SimpleNamespace(read=lambda *_, **__: pa.Table.from_pylist(leaves))
    job = SimpleNamespace(store=store, config=config.Config.from_dict({"topics": {"min_size": 5}}))
    none = Topics([], np.zeros((0, 16), np.float32), np.float32([]), np.float32([]), np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    base = add.Base([], none, Sums(np.zeros(1, np.int64), np.zeros((1, 16))))
    assert add.extend(job, base, ["p"], height=0.0, names=None).new == []


def test_the_same_texts_day_by_day_become_a_topic() -> None:
    day = {"size": 5, "vector_sum": (5 * np.eye(16)[1]).tolist()}
    leaves = [{"partition_id": f"p{i}", "local_topic": 0, **day} for i in range(3)]
    job = SimpleNamespace(store=None, config=config.Config.from_dict({"topics": {"min_size": 12}}))
    topics = Topics(
        ["old"], np.eye(16, dtype=np.float32)[:1], np.float32([0.9]), np.float32([0.9]), np.array([100]), np.full(1, -1, np.int64), [""]
    )
    base = add.Base([], topics, Sums(np.array([0, 100]), np.array([np.zeros(16), 99 * np.eye(16)[0]])))
    for days, new in ((2, []), (3, [1])):
        job.store = SimpleNamespace(read=lambda *_, days=days, **__: pa.Table.from_pylist(leaves[:days]))
        found = add.extend(job, base, ["p"], height=1e-3, names=None)
        assert (found.new, found.of_leaf.tolist()) == (new, ([1] if new else [-1]) * days)


def test_a_store_takes_documents_after_all_were_forgotten(base, inputs, tmp_path) -> None:
    store, listed = tmp_path / "store", tmp_path / "ids.txt"
    shutil.copytree(base, store)
    listed.write_text("\n".join(row[0] for row in OLD))
    assert forget(listed, store, ui=QUIET)["forgotten"] == len(OLD)
    found = update([str(inputs["sport"])], store, ui=QUIET)
    assert (found["documents"], found["already_present"]) == (len(SPORT), 0)
    adds_up(store)


def test_forgotten_documents_are_in_no_table_sum_or_file(updated, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(updated[0], store)
    secret = next(row for row in SPORT if row[1].endswith("."))
    victims = [secret, OLD[7], *OLD[20:32]]
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join([row[0] for row in victims] + ["never-there"]) + "\n")
    (store / PENDING).write_text('["d-from-before"]')  # a forget that was cut short
    with pytest.raises(StoreError, match="forget"), Store(store).lock("x"):
        pass
    found = forget(listed, store, ui=QUIET)
    assert (found["forgotten"], found["not_found"], found["quarantined"]) == (len(victims), 1, 1)
    adds_up(store)
    assert not (store / PENDING).exists()
    with Store(store).lock("x"):
        pass
    texts, ids = {row[1] for row in victims}, {row[0] for row in victims}
    for path in store.rglob("*"):
        if path.suffix == ".parquet" and "_delta_log" not in path.parts:
            for column in pq.read_table(path).to_pydict().values():
                flat = {str(value) for value in column} | {str(v) for value in column if isinstance(value, list) for v in value}
                assert not flat & ids, path
                assert not any(text in value for text in texts for value in flat), path
        elif path.is_file():
            content = path.read_bytes()
            assert not any(text.encode() in content for text in texts), path
    again = forget(listed, store, ui=QUIET)
    assert again["forgotten"] == 0
    assert described(again).startswith("Nothing to forget.")
    assert len(Store(store).snapshots()) == 1
    (store / PENDING).write_text("[]")  # one that was cut short while it deleted old files
    assert described(forget(listed, store, ui=QUIET)).startswith("A forget that was cut short is finished: old files are deleted.")
    assert not (store / PENDING).exists()


def test_a_partition_without_vectors_is_forgotten_where_the_model_is_not(base, tmp_path, monkeypatch) -> None:
    """A run whose embedding failed in part leaves one; and nothing that forget does needs the model."""
    store = tmp_path / "store"
    shutil.copytree(base, store)
    held = Store(store)
    snapshot = held.pin()
    gone = held.read("documents", ["doc_id", "partition_id"]).slice(0, 1).to_pylist()[0]
    for table in PER_DOCUMENT:
        DeltaTable(held.table_path(table)).delete(f"partition_id = '{gone['partition_id']}'")
    Store(store).publish(configuration=snapshot.configuration, summary=snapshot.summary)
    monkeypatch.setattr("jobs.stages.embed.embedding_space", lambda _: (_ for _ in ()).throw(ModelError("It is elsewhere.")))
    listed = tmp_path / "ids.txt"
    listed.write_text(gone["doc_id"])
    assert forget(listed, store, ui=QUIET)["forgotten"] == 1
    assert not (store / PENDING).exists()
    assert gone["doc_id"] not in Store(store).read("documents", ["doc_id"])["doc_id"].to_pylist()
    Store(store).read("batches", version=Store(store).pin().versions["batches"])


def test_forgotten_rows_leave_quarantine_whatever_they_were_refused_for(updated, tmp_path) -> None:
    """By their own ids, wherever in the row these are; also the ids of documents that are nowhere else."""
    store, only = tmp_path / "store", "refused-only"
    shutil.copytree(updated[0], store)
    rows = [
        (only, " ", "x"),
        ("other", " ", "x"),
        (OLD[3][0], "another text " * 200, "x"),
        ("fresh", "a new text about bread and butter", "x"),
    ]
    update([str(corpus.write_csv(tmp_path / "more.csv", rows))], store, overrides=["input.max_quarantine=1"], ui=QUIET)
    listed = tmp_path / "ids.txt"
    listed.write_bytes(f"\ufeff{only}\r\n {OLD[3][0]} \r\nnever-there\r\n".encode())
    found = forget(listed, store, ui=QUIET)
    assert (found["forgotten"], found["quarantined"], found["not_found"]) == (1, 2, 1)
    left = Store(store).read("quarantine")["doc_id"].to_pylist()
    assert "other" in left
    assert not {only, OLD[3][0]} & set(left)
    listed.write_text("other\n")
    assert "1 rows out of quarantine" in described(found := forget(listed, store, ui=QUIET))
    assert (found["forgotten"], found["quarantined"], found["not_found"]) == (0, 1, 0)
    adds_up(store)


def test_forget_refuses_bad_requests(updated, tmp_path) -> None:
    empty = tmp_path / "ids.txt"
    empty.write_text("\n \n")
    with pytest.raises(RequestError, match="holds none"):
        forget(empty, updated[0], ui=QUIET)
    with pytest.raises(RequestError, match="cannot be read"):
        forget(tmp_path / "no.txt", updated[0], ui=QUIET)


def test_a_run_that_was_cut_short_is_finished_before_anything_is_added(base, inputs, tmp_path, monkeypatch) -> None:
    store = tmp_path / "store"
    shutil.copytree(base, store)
    listed = tmp_path / "ids.txt"
    listed.write_text(OLD[0][0])
    with monkeypatch.context() as broken:
        broken.setattr("jobs.stages.cluster.cluster", lambda *_: (_ for _ in ()).throw(JobFailed("as the test wants it")))
        with pytest.raises(JobFailed, match="as the test"):
            run(settings(inputs["old"], "embedding.max_tokens=16"), str(store), ui=QUIET)
    for other in (lambda: update([str(inputs["sport"])], store, ui=QUIET), lambda: forget(listed, store, ui=QUIET)):
        with pytest.raises(StoreError, match="embeddings"):
            other()
    assert Store(store).pin().generation == 1
    run(settings(inputs["old"]), str(store), ui=QUIET)
    assert update([str(inputs["sport"])], store, ui=QUIET)["documents"] == len(SPORT)


def kill(command: list[str], store: Path, when: str) -> None:
    """Start a command on a store, and kill it as soon as there is a file that was not there before."""
    there = set(store.glob(when))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *command, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 300
        while set(store.glob(when)) <= there:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait(60)


LATE = "topic_terms/_delta_log/*.json"
"""What a killed command has begun to write: nearly all of it is done. The long tests kill at other points."""


def points(*long: str) -> list:
    return [LATE, *(pytest.param(one, marks=pytest.mark.slow) for one in long)]


@pytest.fixture(scope="module")
def halted(request, base, inputs, tmp_path_factory) -> Path:
    """A store with an update that was killed at a point."""
    store = tmp_path_factory.mktemp("stores") / "halted"
    shutil.copytree(base, store)
    kill(["update", "--input", str(inputs["sport"]), "--store", str(store)], store, request.param)
    return store


@pytest.mark.parametrize("when", points("documents/_delta_log/*.json", "generations/_delta_log/*.json"))
def test_a_killed_forget_is_finished_by_the_next(when, base, tmp_path) -> None:
    calm, killed, listed = tmp_path / "calm", tmp_path / "killed", tmp_path / "ids.txt"
    shutil.copytree(base, calm)
    shutil.copytree(base, killed)
    victims = [OLD[7], *OLD[20:32]]
    listed.write_text("\n".join(row[0] for row in victims))
    forget(listed, calm, ui=QUIET)
    kill(["forget", "--ids", str(listed), "--store", str(killed)], killed, when)
    with pytest.raises(StoreError, match="forget"):
        update([str(listed)], killed, ui=QUIET)
    forget(listed, killed, ui=QUIET)
    adds_up(killed)
    assert contents(str(killed)) == contents(str(calm))
    assert not (killed / PENDING).exists()
    assert len(Store(killed).snapshots()) == 1
    held = {value for path in killed.glob("documents/**/*.parquet") for value in pq.read_table(path)["doc_id"].to_pylist()}
    assert not held & {row[0] for row in victims}


@pytest.mark.parametrize("halted", points("documents/_delta_log/*.json", "assignments/partition_id=*-b00001/*.parquet"), indirect=True)
def test_a_killed_update_ends_with_the_same_tables(halted, base, inputs, tmp_path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    shutil.copytree(base, calm)
    shutil.copytree(halted, killed)
    update([str(inputs["sport"])], calm, ui=QUIET)
    assert Store(killed).pin().generation == 1, "nothing of an unfinished batch is seen"
    listed = tmp_path / "ids.txt"
    listed.write_text(SPORT[0][0])
    for other in (
        lambda: refit(killed, ui=QUIET),
        lambda: run(settings(inputs["old"]), str(killed), ui=QUIET),
        lambda: dry_run(settings(inputs["old"]), str(killed)),
        lambda: forget(listed, killed, ui=QUIET),
    ):
        with pytest.raises(StoreError, match="cut short"):
            other()
    update([str(inputs["sport"])], killed, ui=QUIET)
    assert contents(str(killed)) == contents(str(calm))


@pytest.mark.parametrize("halted", [LATE], indirect=True)
def test_another_update_takes_the_place_of_a_killed_one(halted, inputs, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(halted, store)
    one = corpus.write_csv(tmp_path / "one.csv", [MORE[0], ("e1", " ", "x"), ("e2", "a text of its own about bread", "x")])
    assert update([str(one)], store, ui=QUIET)["documents"] == 2
    adds_up(store)
    reader = Store(store)
    reader.pin()
    documents = sorted(reader.read("documents")["doc_id"].to_pylist())
    for table in ("embeddings", "local_assignments", "assignments"):
        assert sorted(reader.read(table)["doc_id"].to_pylist()) == documents, table
    assert reader.read("quarantine").num_rows == 1
    assert update([str(inputs["sport"])], store, ui=QUIET)["documents"] == len(SPORT)
    adds_up(store)


def test_reading_that_was_cut_short_is_finished_before_anything_else(base, inputs, tmp_path, monkeypatch) -> None:
    store, listed = tmp_path / "store", tmp_path / "ids.txt"
    shutil.copytree(base, store)
    listed.write_text(OLD[0][0])
    with monkeypatch.context() as broken:
        broken.setattr("spark.ingest.summarise", lambda *_, **__: (_ for _ in ()).throw(JobFailed("as the test wants it")))
        with pytest.raises(JobFailed, match="as the test"):
            run(settings(inputs["sport"]), str(store), ui=QUIET)
    for other in (
        lambda: refit(store, overrides=["topics.min_size=4"], ui=QUIET),
        lambda: update([str(inputs["more"])], store, ui=QUIET),
        lambda: forget(listed, store, ui=QUIET),
    ):
        with pytest.raises(StoreError, match="cut short"):
            other()
    run(settings(inputs["old"]), str(store), ui=QUIET)
    assert contents(str(store)) == contents(str(base))


def test_a_batch_laid_out_otherwise(base, tmp_path) -> None:
    store = tmp_path / "store"
    shutil.copytree(base, store)
    path = tmp_path / "other.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "body", "extra"])
        writer.writerows([(row[0], row[1], "1") for row in SPORT])
    found = update([str(path)], store, overrides=["input.text_column=body"], ui=QUIET)
    assert found["documents"] == len(SPORT)
    reader = Store(store)
    reader.pin()
    names = reader.read("documents").column_names
    assert "extra" not in names
    assert "theme" in names


@pytest.mark.parametrize("kept", [None, ["theme"]])
def test_documents_without_ids_are_known_again_however_a_batch_is_laid_out(kept, tmp_path, spark, ray_layout) -> None:
    """Columns in another order, one more, one that is called otherwise, and another format."""
    store, path = tmp_path / "store", tmp_path / "batch"
    rows = [{"theme": theme, "text": text, "n": i, "note": None} for i, (_, text, theme) in enumerate(ROWS[:60])]
    first, again = tmp_path / "first.jsonl", rows[:50]
    first.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"input": {"paths": [str(first)], "keep": kept}, "partition": {"number": 2}, "topics": {"min_size": 5}}
    run(config.load(values=values), str(store), ui=QUIET)
    pq.write_table(pa.table({"text": [r["text"] for r in again], "n": [r["n"] for r in again], "theme": [r["theme"] for r in again]}), path)
    with (tmp_path / "batch.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["body", "more", "theme", "n"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "body": row["text"], "more": "x"} for row in again)
    for batch, overrides in ((path, ["input.format=parquet"]), (tmp_path / "batch.csv", ["input.format=csv", "input.text_column=body"])):
        found = update([str(batch)], store, overrides=overrides, ui=QUIET)
        assert (found["documents"], found["already_present"]) == (0, len(again))
