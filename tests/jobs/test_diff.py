"""`topicscale diff` on stores: one of a real job over three generations, and small ones written by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from jobs import cli
from jobs.diff import describe, diff, parse
from jobs.progress import Ui
from jobs.run import run
from topicscale import config
from topicscale.errors import RequestError, StoreError
from topicscale.store import Store, UnitWrite, write_part
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import name

PART = "all-00000000"


def generation(
    store: Store,
    topics: Mapping[str, int],
    *,
    vectors: Mapping[int, list[float]] | None = None,
    space: str = "space-a",
    model: str = "model-a",
    texts: str | None = None,
    documents: bool = True,
) -> None:
    """Write a generation in which each document has a topic."""
    mark = config.fingerprint(len(store.snapshots()))
    sizes = Counter(topics.values())
    rows = []
    for topic, size in sizes.items():
        words = [f"word{topic}", "more"]
        vector = (vectors or {}).get(topic, [1.0, float(topic)])
        rows.append({"topic_id": topic, "size": size, "reference_vector": vector, "label": name(topic, words), "keywords": words})
    store.replace("topics", pa.Table.from_pylist(rows, schema=TABLES["topics"].schema), stage="publish", unit_fingerprint=mark)
    sites = [{"topic_key": str(topic), "size": size, "embedding_space": space, "embedding_model": model} for topic, size in sizes.items()]
    store.replace("site_topics", pa.Table.from_pylist(sites, schema=TABLES["site_topics"].schema), stage="publish", unit_fingerprint=mark)
    if documents:
        assigned = pa.table({"doc_id": list(topics), "topic_id": list(topics.values()), "probability": [1.0] * len(topics)})
        files = write_part(store.uri, "assignments", PART, assigned)
        store.commit("assignments", [UnitWrite("assign", PART, mark, files)])
    if texts is not None:
        table = pa.table({"doc_id": list(topics), "text_hash": [f"{texts}{doc_id}" for doc_id in topics]})
        write_deltalake(store.table_path("documents"), table, mode="overwrite")
    store.publish(configuration={}, summary={}, unit_fingerprint=mark)


def topicscale(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["diff", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def kinds(found: dict) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return {
        (change["kind"], *(tuple(topic["topic_id"] for topic in change[side]) for side in ("before", "after")))
        for change in found["changes"]
    }


# -- one real store --------------------------------------------------------------------------------------------------

THEMES = {
    "cooking": "soup bread pasta curry oven",
    "space": "rocket moon orbit lander planet",
    "banking": "card transfer account mortgage fee",
    "football": "striker goal tackle league penalty",
    "medicine": "patient surgeon nurse vaccine clinic",
}
CENTRES = np.random.default_rng(3).normal(size=(len(THEMES), 24))


def write_input(path: Path, each: Mapping[str, int]) -> Path:
    rows = []
    for theme, number in each.items():
        which, words = list(THEMES).index(theme), THEMES[theme].split()
        random = np.random.default_rng(which)
        for i in range(number):
            chosen = random.choice(words, 3, replace=False)
            vector = CENTRES[which] + 0.1 * random.normal(size=CENTRES.shape[1])
            rows.append({"id": f"{theme}{i}", "text": f"{' '.join(chosen)} number {i}", "theme": theme, "vector": vector.tolist()})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory, spark, ray_layout) -> str:
    """A store of three generations: documents of one theme go, one comes, one grows; then only two topics may be left."""
    folder = tmp_path_factory.mktemp("diff")
    store = str(folder / "mail@home")
    source = folder / "input.parquet"
    basic = {"input": {"paths": [str(source)], "id_column": "id", "embedding_column": "vector"}, "topics": {"min_size": 5}}
    basic["topics"]["core"] = 1  # what is made of two themes is to have words of both, and its core may be one of them
    basic["represent"] = {"map_documents": 0}
    for each, overrides in (
        ({"cooking": 40, "space": 40, "banking": 40, "football": 40}, ["topics.number=4"]),
        ({"space": 40, "banking": 80, "football": 40, "medicine": 40}, ["topics.number=4"]),
        ({"space": 40, "banking": 80, "football": 40, "medicine": 40}, ["topics.number=2"]),
    ):
        write_input(source, each)
        run(config.load(values=basic, overrides=["partition.number=2", "cluster.algorithm=kmeans", *overrides]), store, ui=Ui("quiet"))
    return store


def theme_of(topic: dict) -> set[str]:
    return {theme for theme, words in THEMES.items() if set(topic["keywords"]) & set(words.split())}


def test_a_job_that_ran_on_other_documents(real, capsys) -> None:
    code, out, _ = topicscale("--from", f"{real}@1", "--to", f"{real}@2", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert (found["matched_by"], found["shared_documents"], found["new_documents"], found["removed_documents"]) == (
        "documents",
        120,
        80,
        40,
    )
    told = {change["kind"]: change for change in found["changes"]}
    assert found["counts"] == {"found": 1, "gone": 1, "split": 0, "joined": 0, "grown": 1, "shrunk": 0, "renamed": 0, "same": 2}
    assert theme_of(told["found"]["after"][0]) == {"medicine"}
    assert theme_of(told["gone"]["before"][0]) == {"cooking"}
    assert theme_of(told["grown"]["after"][0]) == {"banking"}
    sizes = [max(change["size_before"], change["size_after"]) for change in found["changes"]]
    assert sizes == sorted(sizes, reverse=True)
    for about, generation_ in ((found["from"], 1), (found["to"], 2)):
        assert about["generation"] == generation_
        assert about["documents"] == sum(row["size"] for row in at(real, generation_).read("topics").to_pylist())


def at(store: str, generation_: int) -> Store:
    source = Store(store)
    source.pin(generation_)
    return source


def test_a_job_with_fewer_topics_joins_them(real, capsys) -> None:
    found = diff(f"{real}@2", real)  # generation 3 is the newest
    joined = [change for change in found["changes"] if change["kind"] == "joined"]
    assert joined
    assert sum(len(change["before"]) for change in found["changes"]) == 4
    for change in joined:
        assert set.union(*(theme_of(topic) for topic in change["before"])) == theme_of(change["after"][0])
    mirrored = diff(real, f"{real}@2")
    assert mirrored["counts"]["split"] == len(joined)
    code, out, _ = topicscale("--from", f"{real}@2", "--to", f"{real}@3", capsys=capsys)
    assert code == 0
    assert "joined" in out


def test_the_same_generation_twice(real, capsys) -> None:
    code, out, _ = topicscale("--from", real, "--to", f"{real}@3", capsys=capsys)
    assert code == 0
    assert "Nothing changed: 2 topics, 200 documents." in out


# -- stores written by hand ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", create=True)


def test_the_table_is_one_a_person_can_read(store, capsys) -> None:
    old = {f"d{i}": (0 if i < 50 else 1 if i < 80 else OUTLIER) for i in range(90)}
    generation(store, old)
    generation(store, old | {f"d{i}": 2 for i in range(84, 110)} | {f"d{i}": 1 for i in range(110, 160)})
    code, out, _ = topicscale("--from", f"{store.uri}@1", "--to", store.uri, capsys=capsys)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"from  {store.uri} generation 1")
    assert "90 documents, 2 topics, 11.1% outliers" in lines[0]
    assert "matched by 90 documents on both sides; 70 are new, 0 removed, 6 in another topic." in lines[2]
    assert "1 found, 0 gone, 0 split, 0 joined, 1 grown, 0 shrunk, 0 renamed, 1 same" in out
    row = next(line for line in lines if line.startswith("found"))
    assert "-> 2 " in row
    assert "0 -> 26" in row
    assert "(from new documents 77%, outliers 23%)" in row
    assert "30 -> 80 (+167%)" in next(line for line in lines if line.startswith("grown"))
    assert "Outliers: 10 -> 4; 6 found a topic, 0 lost theirs, 0 are new." in out


def test_an_id_that_means_another_topic_is_told(store, capsys) -> None:
    generation(store, {f"d{i}": i % 2 for i in range(40)})
    generation(store, {f"d{i}": 1 - i % 2 for i in range(40)})
    _, out, _ = topicscale("--from", f"{store.uri}@1", "--to", store.uri, capsys=capsys)
    assert "0: is what was 1; what it was is 1" in out


def test_stores_of_other_documents_are_matched_by_vectors(tmp_path) -> None:
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    generation(one, {f"a{i}": i % 2 for i in range(40)}, vectors={0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0]})
    generation(other, {f"b{i}": i % 2 for i in range(40)}, vectors={0: [0.0, 0.99, 0.1], 1: [0.0, 0.0, 1.0]})
    found = diff(one.uri, other.uri)
    assert found["matched_by"] == "vectors"
    assert {(kind, before, after) for kind, before, after in kinds(found) if kind in ("found", "gone")} == {
        ("found", (), (1,)),
        ("gone", (0,), ()),
    }
    assert [m["topic_id"] for m in found["moved_ids"]] == [0, 1]
    assert "too few documents are on both sides" in describe(found)


def test_a_store_without_assignments_is_matched_by_vectors(tmp_path) -> None:
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    generation(one, {f"a{i}": i % 2 for i in range(40)})
    generation(other, {f"a{i}": i % 2 for i in range(40)}, documents=False)
    assert (diff(one.uri, other.uri)["matched_by"], diff(one.uri, other.uri)["changed"]) == ("vectors", False)


def test_a_rerun_into_another_store_is_matched_by_documents_whatever_the_model(tmp_path) -> None:
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    labels = {f"d{i}": i % 3 for i in range(60)}
    generation(one, labels, texts="t")
    generation(other, labels, texts="t", space="space-b", model="model-b", vectors={t: [0.0, 1.0, 2.0] for t in range(3)})
    found = diff(one.uri, other.uri)
    assert (found["matched_by"], found["changed"]) == ("documents", False)
    assert {change["similarity"] for change in found["changes"]} == {None}


def test_equal_ids_of_other_texts_are_other_documents(tmp_path) -> None:
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    generation(one, {str(i): i % 2 for i in range(40)}, texts="first file, line ", vectors={0: [1.0, 0.0], 1: [0.0, 1.0]})
    generation(other, {str(i): i % 2 for i in range(40)}, texts="second file, line ", vectors={0: [0.0, 1.0], 1: [1.0, 0.0]})
    found = diff(one.uri, other.uri)
    assert (found["matched_by"], found["same_ids_other_texts"]) == ("vectors", True)
    assert [(m["topic_id"], m["now"]) for m in found["moved_ids"]] == [(0, [1]), (1, [0])]
    assert "the same ids name other texts" in describe(found)


def test_two_models_without_shared_documents_are_refused_with_both_names(tmp_path, capsys) -> None:
    one, other = Store(tmp_path / "one", create=True), Store(tmp_path / "other", create=True)
    generation(one, {f"a{i}": i % 2 for i in range(40)})
    generation(other, {f"b{i}": i % 2 for i in range(40)}, space="space-b", model="model-b")
    code, out, err = topicscale("--from", one.uri, "--to", other.uri, capsys=capsys)
    assert (code, out) == (2, "")
    assert "model-a" in err
    assert "model-b" in err


def test_requests_that_cannot_be_answered(store, tmp_path, capsys) -> None:
    empty = Store(tmp_path / "empty", create=True)
    generation(store, {f"d{i}": i % 2 for i in range(40)})
    for target, hint in (
        (f"{store.uri}@7", "no generation 7. It has 1."),
        (f"{store.uri}@newest", "must be a number. Got 'newest'"),
        (f"{store.uri}@", "must be a number"),
        (empty.uri, "no finished run yet"),
        (str(tmp_path / "nowhere"), "no topicscale store"),
        (f"{tmp_path / 'nowhere'}@1", f"no topicscale store at '{tmp_path / 'nowhere'}'"),
    ):
        for arguments in (("--from", target, "--to", store.uri), ("--from", store.uri, "--to", target)):
            code, out, err = topicscale(*arguments, capsys=capsys)
            assert (code, out) == (2, "")
            assert hint in err
    code, _, err = topicscale("--from", store.uri, "--to", store.uri, "--min-change", "-1", capsys=capsys)
    assert (code, "--min-change must be" in err) == (2, True)


def test_files_that_a_vacuum_removed_are_told(store) -> None:
    generation(store, {f"d{i}": i % 2 for i in range(40)})
    generation(store, {f"d{i}": i % 3 for i in range(40)})
    for table in ("topics", "assignments"):
        store.table(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(StoreError, match=r"Files of generation 1 of .* were removed"):
        diff(f"{store.uri}@1", store.uri)


def test_a_path_may_hold_an_at_sign(tmp_path) -> None:
    plain, odd = str(tmp_path / "mail@home"), str(tmp_path / "mail@2026")
    Store(plain, create=True)
    Store(odd, create=True)
    assert parse(plain) == (plain, None)
    assert parse(f"{plain}@3") == (plain, 3)
    assert parse(odd) == (odd, None)
    assert parse(f"{odd}@3") == (odd, 3)
    assert parse(str(tmp_path / "none@3")) == (str(tmp_path / "none"), 3)
    assert parse("me@here/none") == ("me@here/none", None)
    with pytest.raises(RequestError, match="must be a number"):
        parse(f"{plain}@last")
