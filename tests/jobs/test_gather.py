"""Merged stores with the sites' documents: each in the merged topic of its own, once, and gone with its site's."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import gather
from jobs.cli import main
from jobs.evaluate import evaluate
from jobs.forget import forget
from jobs.label import label
from jobs.merge import describe, merge
from jobs.progress import Ui
from jobs.report import report
from jobs.run import run
from ray_actors.parts import to_matrix
from tests import corpus
from tests.jobs.compare import contents
from topicscale import TopicModel
from topicscale.config import load
from topicscale.errors import RequestError, StoreError
from topicscale.report import build
from topicscale.report import load as read
from topicscale.store import Store

QUIET = Ui("quiet")
SITES = {"berlin": ("cooking", "space", "banking"), "paris & co": ("banking", "football", "medicine")}
GONE = "unmistakable-zanzibar"


@pytest.fixture(scope="module")
def stores(tmp_path_factory, spark, ray_layout) -> dict[str, Path]:
    """Two sites that share a theme, with the same ids for other documents and a column of two types."""
    folder = tmp_path_factory.mktemp("sites")
    everything = corpus.rows()
    found = {}
    for place, (name, themes) in enumerate(SITES.items()):
        # the shared theme's documents are dealt to both
        rows = [row for i, row in enumerate(everything) if row[2] in themes and (row[2] != "banking" or i % 2 == place)]
        path = folder / f"{place}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "theme", "ward" if place else "desk", "code"])
            for i, (_, text, theme) in enumerate(rows):
                text = f"{text} {GONE}" if place and i == 5 else text
                writer.writerow([f"d{i:03d}", text, theme, f"w{i % 3}", f"c{i}" if place else i])
        found[name] = folder / f"store{place}"
        basic = {"input": {"paths": [str(path)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
        run(load(values=basic), str(found[name]), ui=QUIET)
    return found


def named(stores: dict[str, Path]) -> list[str]:
    return [f"{name}={store}" for name, store in stores.items()]


@pytest.fixture(scope="module")
def merged(stores, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "all"
    assert main(["merge", "--inputs", *named(stores), "--store", str(path), "--documents"]) == 0
    return path


def test_status_says_whose_documents_are_here(merged, capsys) -> None:
    assert main(["status", "--store", str(merged)]) == 0
    assert f"with {len(rows_of(merged, 'documents'))} documents of" in capsys.readouterr().out


def holding(store: Path, text: str = GONE) -> list[Path]:
    """Return the files of a store that hold the text that is to go, older versions' among them."""
    found = [path for path in store.rglob("*.parquet") if text in str(pq.ParquetFile(path).read().to_pydict())]
    return found + [path for path in store.rglob("*.json") if text in path.read_text()]


def rows_of(store: str | Path, table: str) -> list[dict]:
    reader = Store(store)
    reader.pin()
    return reader.read(table).to_pylist()


def test_every_document_is_there_once_in_the_topic_of_its_own(stores, merged) -> None:
    texts = {row["doc_id"]: row["text"] for row in rows_of(merged, "documents")}
    topics = {row["doc_id"]: row["topic_id"] for row in rows_of(merged, "assignments")}
    expected = {f"{name}/{row['doc_id']}": row["text"] for name, store in stores.items() for row in rows_of(store, "documents")}
    assert texts == expected
    assert set(topics) == set(texts)
    # topics at the sites are the lineage's leaves; sizes tell them apart here
    lineage = TopicModel.load(merged).get_topics_per_site()
    for name, store in stores.items():
        own = {row["doc_id"]: row["topic_id"] for row in rows_of(store, "assignments")}
        went = {(topic, topics[f"{name}/{doc_id}"]) for doc_id, topic in own.items()}
        assert len(went) == len({topic for topic, _ in went}), "documents of one topic stay together"
        sizes = {topic: list(own.values()).count(topic) for topic, _ in went}
        said = lineage[lineage["Site"] == name]
        assert sorted((to, sizes[topic]) for topic, to in went) == sorted(zip(said["Topic"], said["Count"], strict=True))
    counted = {row["topic_id"]: row["size"] for row in rows_of(merged, "topics")}
    assert counted == {topic: list(topics.values()).count(topic) for topic in counted}


def test_probabilities_are_cosines_to_the_merged_topic(merged) -> None:
    reader = Store(merged)
    reader.pin()
    assigned = reader.read("assignments").sort_by("doc_id")
    vectors = to_matrix(reader.read("embeddings").sort_by("doc_id")["vector"])
    centres = {row["topic_id"]: np.array(row["reference_vector"], np.float32) for row in rows_of(merged, "topics")}
    for topic, probability, vector in zip(assigned["topic_id"].to_pylist(), assigned["probability"].to_pylist(), vectors, strict=True):
        if topic >= 0:
            assert probability == pytest.approx(float(vector @ centres[topic]), abs=1e-5)


def test_columns_of_all_sites_are_kept(merged) -> None:
    rows = rows_of(merged, "documents")
    assert {type(row["code"]) for row in rows} == {str}, "numbers at one site and text at the other: text"
    for row in rows:
        berlin = row["doc_id"].startswith("berlin/")
        assert (row["desk"] is not None, row["ward"] is not None) == (berlin, not berlin)
    assert {row["value"] for row in rows_of(merged, "partitions")} == set(SITES)
    assert sum(row["rows"] for row in rows_of(merged, "partitions")) == len(rows)


def test_what_is_about_documents_answers(merged, tmp_path) -> None:
    model = TopicModel.load(merged)
    info = model.get_document_info()
    assert len(info) == sum(model.topic_sizes_.values())
    found = evaluate(str(merged), labels="theme")
    assert found["labels"]["nmi"] > 0.6
    texts = {row["doc_id"]: row["text"] for row in rows_of(merged, "documents")}
    of = {texts[row["doc_id"]]: row["topic_id"] for row in rows_of(merged, "assignments")}
    for row in rows_of(merged, "topics"):
        if row["topic_id"] >= 0:
            assert row["representative_docs"]
            assert {of[text] for text in row["representative_docs"]} == {row["topic_id"]}
    page = build(read(Store(merged)))
    assert "What each site brought" in page
    assert "are here" not in page
    placed = rows_of(merged, "document_map")
    assert {row["doc_id"] for row in placed} == set(texts)
    copy = tmp_path / "copy"
    shutil.copytree(merged, copy)
    label(copy, aspect="mmr", ui=QUIET)
    assert {row["topic_id"] for row in rows_of(copy, "topic_labels") if row["aspect"] == "mmr"} == {t for t in model.topic_sizes_ if t >= 0}


def test_order_changes_nothing_and_a_repetition_writes_nothing(stores, merged, tmp_path) -> None:
    again = merge(list(reversed(named(stores))), merged, documents=True)
    assert again["nothing_to_do"]
    other = merge([*reversed(named(stores)), named(stores)[0]], tmp_path / "other", documents=True)
    assert contents(other["store"]) == contents(str(merged))
    assert "Copied" in describe(other)


@pytest.mark.parametrize("at", ["representatives", "place", "embeddings"])
def test_a_merge_that_was_cut_short_ends_with_the_same_tables(at, stores, merged, tmp_path, monkeypatch) -> None:
    commit = Store.commit

    def stop(*given, **options):
        if at != "embeddings":
            raise KeyboardInterrupt
        if given[1] == at:
            raise KeyboardInterrupt
        return commit(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(*((Store, "commit") if at == "embeddings" else (gather, at)), stop)
        with pytest.raises(KeyboardInterrupt):
            merge(named(stores), tmp_path / "all", documents=True)
    assert Store(tmp_path / "all").snapshots() == []
    assert not merge(named(stores), tmp_path / "all", documents=True)["nothing_to_do"]
    assert contents(str(tmp_path / "all")) == contents(str(merged))


def test_what_a_site_removed_is_gone_after_the_next_merge(stores, merged, tmp_path) -> None:
    target, site = tmp_path / "all", tmp_path / "site"
    shutil.copytree(merged, target)
    shutil.copytree(stores["paris & co"], site)
    victim = next(row["doc_id"] for row in rows_of(site, "documents") if GONE in row["text"])
    (tmp_path / "ids.txt").write_text(victim)
    assert holding(target)
    assert forget(tmp_path / "ids.txt", site, ui=QUIET)["forgotten"] == 1
    inputs = [named(stores)[0], f"paris & co={site}"]
    before = len(rows_of(target, "documents"))
    merge(inputs, target, documents=True)
    assert len(rows_of(target, "documents")) == before - 1
    assert [s.generation for s in Store(target).snapshots()] == [2]
    assert not holding(target)


def test_what_a_site_removed_since_a_merge_without_documents_is_gone_after_one_with_them(stores, tmp_path) -> None:
    target, site = tmp_path / "all", tmp_path / "site"
    shutil.copytree(stores["paris & co"], site)
    inputs, word = [named(stores)[0], f"paris & co={site}"], GONE.split("-")[1]
    merge(inputs, target)
    assert holding(target, word), "the topics' terms are the documents' words"
    (tmp_path / "ids.txt").write_text(next(row["doc_id"] for row in rows_of(site, "documents") if GONE in row["text"]))
    forget(tmp_path / "ids.txt", site, ui=QUIET)
    merge(inputs, target, documents=True)
    assert not holding(target, word)


def test_what_a_site_removes_after_a_merge_that_was_cut_short_is_in_no_file(stores, tmp_path, monkeypatch) -> None:
    target, site = tmp_path / "all", tmp_path / "site"
    shutil.copytree(stores["paris & co"], site)
    inputs = [named(stores)[0], f"paris & co={site}"]
    merge(inputs, target)
    before = {table: rows_of(target, table) for table in ("topics", "topic_lineage", "site_topics")}
    with monkeypatch.context() as patched:
        patched.setattr(gather, "place", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge(inputs, target, documents=True)
    assert holding(target)
    aborted = tmp_path / "aborted"
    shutil.copytree(target, aborted)
    assert merge(inputs, aborted)["generation"] == 2, "the same merge without documents, again: what was half done goes"
    assert not holding(aborted)
    assert {table: rows_of(aborted, table) for table in before} == before
    assert merge(inputs, aborted)["nothing_to_do"]
    (tmp_path / "ids.txt").write_text(next(row["doc_id"] for row in rows_of(site, "documents") if GONE in row["text"]))
    forget(tmp_path / "ids.txt", site, ui=QUIET)
    merge(inputs, target, documents=True)
    assert not holding(target)


def test_documents_with_other_columns_are_copied_anew(stores, merged, tmp_path) -> None:
    target = tmp_path / "all"
    shutil.copytree(merged, target)
    reader = Store(target)
    columns = reader.table("documents").to_pyarrow_dataset().schema
    gather._make(reader, columns.append(pa.field("another", pa.string())))  # as a merge that was killed leaves it
    reader.files.write(gather.MERGING, b"")
    merge(named(stores), target, documents=True)
    assert contents(str(target)) == contents(str(merged))


def test_a_store_that_is_made_again_in_its_place_is_read_anew(stores, tmp_path) -> None:
    for _ in range(2):
        shutil.rmtree(tmp_path / "all", ignore_errors=True)
        found = merge(named(stores)[:1], tmp_path / "all", documents=True)
    assert found["copied"]["documents"] == len(rows_of(stores["berlin"], "documents"))


def test_a_site_that_a_merge_knows_by_another_name_has_its_documents_copied(stores, tmp_path) -> None:
    merge([f"a={stores['berlin']}"], tmp_path / "earlier")
    found = merge([str(tmp_path / "earlier"), *named(stores)], tmp_path / "all", documents=True)
    assert found["copied"]["documents"] == found["documents"]


def test_a_merge_without_documents_takes_them_away(stores, merged, tmp_path) -> None:
    target = tmp_path / "all"
    shutil.copytree(merged, target)
    merge(named(stores), target)
    with pytest.raises(StoreError, match="no documents"):
        evaluate(str(target))
    assert report(str(target), tmp_path / "topics.html").stat().st_size > 1000  # that they were there confuses nobody
    assert not list(target.glob("documents/partition_id=*/*.parquet"))
    merge(named(stores), target, documents=True)
    assert contents(str(target)) == contents(str(merged))


def test_documents_that_two_stores_hold_are_counted_once(stores, tmp_path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(stores["berlin"], twin)
    marker = twin / "_topicscale.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "id": "another"}))
    found = merge([f"berlin={stores['berlin']}", f"twin={twin}"], tmp_path / "all", documents=True)
    assert found["documents"] == len(rows_of(stores["berlin"], "documents"))
    assert {row["doc_id"].split("/")[0] for row in rows_of(tmp_path / "all", "documents")} == {"berlin"}


def test_an_export_brings_topics_alone(stores, tmp_path) -> None:
    away = tmp_path / "away"
    assert main(["export", "--store", str(stores["berlin"]), "--output", str(away), "--topics-only"]) == 0
    found = merge([f"berlin={away}", named(stores)[1]], tmp_path / "all", documents=True)
    assert found["copied"]["documents"] == len(rows_of(stores["paris & co"], "documents")) < found["documents"]
    assert "other inputs hold none" in describe(found)
    with pytest.raises(RequestError, match="None of the inputs holds documents"):
        merge([str(away)], tmp_path / "none", documents=True)


def test_what_cannot_be_copied_is_said(stores, merged, tmp_path) -> None:
    with pytest.raises(RequestError, match="is a merge: name the stores it was made of"):
        merge([str(merged)], tmp_path / "all", documents=True)
    with pytest.raises(RequestError, match="different names"):
        merge([f"here={store}" for store in stores.values()], tmp_path / "all", documents=True)
    with pytest.raises(RequestError, match="must have none"):
        merge([f"eu/de={stores['berlin']}"], tmp_path / "all", documents=True)
    assert not (tmp_path / "all").exists() or not Store(tmp_path / "all").snapshots()


def test_documents_are_changed_at_the_sites(merged, tmp_path, capsys) -> None:
    (tmp_path / "new.csv").write_text("id,text\n1,one\n")
    for command in (
        ["update", "--input", str(tmp_path / "new.csv")],
        ["update", "--refit"],
        ["forget", "--ids", str(tmp_path / "new.csv")],
    ):
        assert main([*command, "--store", str(merged)]) == 2
        assert "holds merged topics and the sites' documents" in capsys.readouterr().err
    assert main(["run", "--input", str(tmp_path / "new.csv"), "--store", str(merged)]) == 2
    assert "came from elsewhere" in capsys.readouterr().err
