"""Input columns with the names that results have: they are kept beside the results, and never in place of them."""

import shutil

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from jobs.evaluate import evaluate
from topicscale import TopicModel
from topicscale.config import Config, EmbeddingConfig, fingerprint, load
from topicscale.errors import ModelError, RequestError
from topicscale.models import embedding_space
from topicscale.store import Store, UnitWrite, write_part
from topicscale.tables import TABLES


@pytest.fixture
def store(tmp_path) -> str:
    made = Store(tmp_path / "store", create=True)
    ids = ["a", "b", "c"]
    documents = {"doc_id": ids, "partition_id": ["p"] * 3, "text": ["oil price", "gas price", "cup final"], "text_hash": ids}
    kept = {"topic_id": ["x", "x", None], "probability": [1, 2, 3], "Name": ["n1", "n2", "n3"], "none": pa.nulls(3, pa.string())}
    write_deltalake(made.table_path("documents"), pa.table(documents | kept), partition_by=["partition_id"])
    rows = pa.table({"doc_id": ids, "topic_id": pa.array([0, 0, 1], pa.int32()), "probability": pa.array([0.9, 0.8, 0.7], pa.float32())})
    files = write_part(made.uri, "assignments", "p", rows)
    made.commit("assignments", [UnitWrite("assign", "p", fingerprint("a"), files)])
    topics = [
        {"topic_id": i, "topic_key": str(i), "size": n, "label": f"{i}_{word}", "keywords": [word], "representative_docs": []}
        for i, n, word in [(0, 2, "price"), (1, 1, "cup")]
    ]
    made.replace("topics", pa.Table.from_pylist(topics, schema=TABLES["topics"].schema), stage="publish", unit_fingerprint=fingerprint("a"))
    made.publish(configuration=Config().to_dict(), summary={}, unit_fingerprint=fingerprint("a"))
    return made.uri


def test_document_info_tells_topics_and_columns_apart(store) -> None:
    info = TopicModel.load(store).get_document_info()
    assert info["Topic"].tolist() == [0, 0, 1]
    assert info["Name"].tolist() == ["0_price", "0_price", "1_cup"]
    assert info["Name_input"].tolist() == ["n1", "n2", "n3"]
    assert info["Probability"].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert info["topic_id"].tolist()[:2] == ["x", "x"]
    assert info["probability"].tolist() == [1, 2, 3]


def test_labels_may_be_in_a_column_called_topic_id(store) -> None:
    found = evaluate(store, labels="topic_id")["labels"]
    assert (found["documents"], found["unlabelled"]) == (2, 1)


def test_a_column_without_labels_is_refused(store) -> None:
    with pytest.raises(RequestError, match="holds none"):
        evaluate(store, labels="none")


def test_an_aspects_name_hides_no_column_and_its_weights_are_told(store, tmp_path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    last = copy.snapshots()[-1]
    rows = [
        {"topic_id": 0, "aspect": "Count", "label": "", "terms": ["cost", "fee"], "status": "ok", "detail": '{"weights": [0.5, 0.25]}'},
        {"topic_id": 0, "aspect": "mmr", "label": "", "terms": ["cost"], "status": "ok", "detail": ""},
    ]
    for name, content in {"topic_labels": rows, "topic_terms": []}.items():
        copy.create_table(name)
        copy.replace(name, pa.Table.from_pylist(content, schema=TABLES[name].schema), stage="t", unit_fingerprint=fingerprint("b"))
    copy.publish(configuration=last.configuration, summary=last.summary, unit_fingerprint=fingerprint("b"))
    model = TopicModel.load(tmp_path / "copy")
    info = model.get_topic_info()
    assert (info["Count"].tolist(), info["Count_aspect"].tolist()) == ([2, 1], [["cost", "fee"], []])
    assert model.get_document_info()["Count_aspect"].tolist()[0] == ["cost", "fee"]
    assert model.get_topic(0, full=True)["Count"] == [("cost", 0.5), ("fee", 0.25)]
    assert model.get_topic(0, full=True)["mmr"] == [("cost", 1.0)]


def test_a_model_may_have_another_place_here_and_no_other_may_take_its(tmp_path) -> None:
    made = Store(tmp_path / "merged", create=True)
    for name in ("topics", "topic_labels"):
        made.create_table(name)
    told = load(values={"embedding": {"model": "/elsewhere/minilm", "max_tokens": 64}})
    here = EmbeddingConfig(max_tokens=64)
    made.publish(configuration=told.to_dict(), summary={"space": embedding_space(here)}, unit_fingerprint=fingerprint("a"))
    with pytest.raises(ModelError, match="no model folder '/elsewhere/minilm'"):
        TopicModel.load(made.uri).transform(["a text"])
    assert TopicModel.load(made.uri, embedding_model=here.model).transform(["a text"])[0] == [-1]
    made.publish(configuration=told.to_dict(), summary={"space": "another"}, unit_fingerprint=fingerprint("b"))
    with pytest.raises(ModelError, match="is not the one this store was made with"):
        TopicModel.load(made.uri, embedding_model=here.model).transform(["a text"])
