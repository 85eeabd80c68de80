import pyarrow as pa

from topicscale import leaf_terms
from topicscale.leaf_terms import term_maps
from topicscale.terms import top_terms

ROWS = [
    {"topic_id": 1, "term": "oil", "count": 4, "documents": 2, "core_weight": 0.2},
    {"topic_id": -1, "term": "the", "count": 9, "documents": 5, "core_weight": 0.1},
    {"topic_id": 1, "term": "gas", "count": 1, "documents": 1, "core_weight": 0.4},
    {"topic_id": 7, "term": "left out", "count": 1, "documents": 1, "core_weight": 0.4},
    {"topic_id": 1, "term": "älter", "count": 3, "documents": 3, "core_weight": 0.2},
]


def batches(rows) -> list[pa.RecordBatch]:
    schema = pa.schema(
        [("topic_id", pa.int32()), ("term", pa.string()), ("count", pa.int64()), ("documents", pa.int64()), ("core_weight", pa.float64())]
    )
    return pa.Table.from_pylist(rows, schema=schema).to_batches(max_chunksize=2)


def test_each_topic_gets_its_terms_in_order_and_one_without_terms_an_empty_map() -> None:
    counts, documents = term_maps(batches(ROWS), [-1, 0, 1])
    assert counts.type == pa.map_(pa.string(), pa.int64())
    assert counts.to_pylist() == [[("the", 9)], [], [("gas", 1), ("oil", 4), ("älter", 3)]]
    assert documents.to_pylist() == [[("the", 5)], [], [("gas", 1), ("oil", 2), ("älter", 3)]]


def test_terms_of_more_text_than_an_array_holds_are_several(monkeypatch) -> None:
    whole = term_maps(batches(ROWS), [-1, 0, 1, 7])
    monkeypatch.setattr(leaf_terms, "BLOCK", 2)
    parts = term_maps(batches(ROWS), [-1, 0, 1, 7])
    assert [len(maps.chunks) for maps in parts] == [2, 2]
    assert [maps.to_pylist() for maps in parts] == [maps.to_pylist() for maps in whole]


def test_no_terms_at_all() -> None:
    assert term_maps([], [-1, 0])[0].to_pylist() == [[], []]
    assert term_maps([], [])[0].to_pylist() == []
    assert top_terms([], 3) == {}


def test_the_best_terms_come_first_and_equals_by_name() -> None:
    assert top_terms(batches(ROWS), 2)[1] == [("gas", 0.4), ("oil", 0.2)]
