"""What changed between two models: planted splits and joins are told as such, and exchanging the sides mirrors everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicscale import overlap
from topicscale.cluster import unit
from topicscale.diff import Difference, compare
from topicscale.overlap import Flows, Side, count
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import name

MIRRORED = {"found": "gone", "grown": "shrunk", "split": "joined"}
MIRRORED |= {other: kind for kind, other in MIRRORED.items()}
FIRST, SECOND = ["soup", "bread", "pasta", "curry", "salad"], ["rocket", "moon", "orbit", "lander", "planet"]

Assigned = Mapping[str, int]
"""The topic of each document."""


def side(
    sizes: Mapping[int, int],
    *,
    vectors: Mapping[int, Sequence[float]] | None = None,
    words: Mapping[int, list[str]] | None = None,
    labels: Mapping[int, str] | None = None,
) -> Side:
    def row(topic: int, size: int) -> dict[str, object]:
        keywords = (words or {}).get(topic, [] if topic == OUTLIER else ["word"])
        return {
            "topic_id": topic,
            "topic_key": f"key{topic}",
            "size": size,
            "reference_vector": list((vectors or {}).get(topic, [])),
            "label": (labels or {}).get(topic, name(topic, keywords)),
            "keywords": keywords,
        }

    rows = [row(topic, size) for topic, size in reversed(sizes.items())]  # tables come in any order
    return Side.of(pa.Table.from_pylist(rows, schema=TABLES["topics"].schema))


def batches(assigned: Assigned, *, rows: int = 7) -> list[pa.RecordBatch]:
    table = pa.table({"doc_id": pa.array(assigned.keys(), pa.string()), "topic_id": pa.array(assigned.values(), pa.int32())})
    return table.to_batches(max_chunksize=rows)


def flows_of(before: Assigned, after: Assigned, *, passes: int = 1) -> Flows:
    return count(lambda: batches(before), lambda: batches(after), passes=passes)


def diff(before: Assigned, after: Assigned, **options: float) -> Difference:
    return compare(side(Counter(before.values())), side(Counter(after.values())), flows_of(before, after), **options)


def documents(**groups: int) -> dict[str, str]:
    """Return the group of each document: ``documents(a=30)`` has 30 of group a."""
    return {f"{group}{i}": group for group, number in groups.items() for i in range(number)}


def assigned(corpus: Mapping[str, str], topics: Mapping[str, int]) -> dict[str, int]:
    return {document: topics[group] for document, group in corpus.items() if group in topics}


def told(found: Difference) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    return {(change.kind, change.before, change.after) for change in found.changes}


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("buffer", [overlap.BUFFER, 10])
def test_documents_are_counted_exactly(passes, buffer, monkeypatch) -> None:
    monkeypatch.setattr(overlap, "BUFFER", buffer)
    random = np.random.default_rng(0)
    before = {f"d{i}": int(random.integers(-1, 5)) for i in range(500)}
    after = {f"d{i}": int(random.integers(-1, 4)) for i in range(300, 900)}
    found = flows_of(before, after, passes=passes)
    expected = Counter((before[i], after[i]) for i in before.keys() & after.keys())
    assert dict(zip(zip(found.before.tolist(), found.after.tolist(), strict=True), found.documents.tolist(), strict=True)) == expected
    assert found.total == 200


def test_splits_joins_found_and_gone_are_told_apart() -> None:
    corpus = documents(a=60, b=40, c=50, d=45, e=30, f=25, out=20, new=35, stay=80)
    before = assigned(corpus, {"a": 0, "b": 0, "c": 1, "d": 2, "e": 3, "f": 4, "out": OUTLIER, "stay": 5})
    after = assigned(corpus, {"a": 1, "b": 0, "c": 7, "d": 7, "e": OUTLIER, "out": 8, "new": 9, "stay": 5})
    found = diff(before, after)
    assert told(found) == {
        ("split", (0,), (1, 0)),  # into a and b, the larger first
        ("joined", (1, 2), (7,)),
        ("gone", (3,), ()),  # its documents are outliers now
        ("gone", (4,), ()),  # its documents were removed
        ("found", (), (8,)),  # among the outliers
        ("found", (), (9,)),  # in new documents
        ("same", (5,), (5,)),
    }
    sizes = [max(change.size_before, change.size_after) for change in found.changes]
    assert sizes == sorted(sizes, reverse=True)
    by_topics = {(change.before, change.after): change for change in found.changes}
    split = by_topics[(0,), (1, 0)]
    assert [(flow.after, flow.documents) for flow in split.flows] == [(1, 60), (0, 40)]
    assert (split.overlap, split.size_before, split.size_after) == (1.0, 100, 100)
    assert [(flow.before, flow.documents) for flow in by_topics[(), (9,)].flows] == [("new", 35)]
    assert [(flow.after, flow.documents) for flow in by_topics[(4,), ()].flows] == [("removed", 25)]
    outliers = found.outliers
    assert (outliers.before, outliers.after, outliers.stayed, outliers.left, outliers.joined, outliers.new) == (20, 30, 0, 20, 30, 0)
    assert found.shared == len(corpus) - 25 - 35
    # those who left a topic for the outliers, or the other way
    assert found.reassigned == 30 + 20


def test_a_topic_that_leaves_crumbs_is_not_split_and_one_that_takes_them_is_not_joined() -> None:
    corpus = documents(a=95, crumb=5, b=100)
    found = diff(assigned(corpus, {"a": 0, "crumb": 0, "b": 1}), assigned(corpus, {"a": 0, "crumb": 1, "b": 1}))
    assert told(found) == {("same", (0,), (0,)), ("same", (1,), (1,))}
    assert (found.changed, found.reassigned) == (True, 5)


def test_a_topic_that_takes_few_old_documents_among_many_new_is_found() -> None:
    corpus = documents(a=80, taken=20, b=900, new=180)
    found = diff(assigned(corpus, {"a": 0, "taken": 0, "b": 1}), assigned(corpus, {"a": 0, "taken": 2, "new": 2, "b": 1}))
    assert ("found", (), (2,)) in told(found)
    assert not [change for change in found.changes if change.kind in ("split", "joined")]


def test_a_topic_stays_itself_however_many_documents_come() -> None:
    corpus = documents(a=10, b=90, new=500)
    found = diff(assigned(corpus, {"a": 0, "b": 1}), assigned(corpus, {"a": 0, "b": 1, "new": 0}))
    assert told(found) == {("grown", (0,), (0,)), ("same", (1,), (1,))}


def test_growth_needs_size_and_share() -> None:
    corpus = documents(a=100, b=100, more_a=100, more_b=100)
    before = assigned(corpus, {"a": 0, "b": 1})
    doubled = diff(before, assigned(corpus, {"a": 0, "b": 1, "more_a": 0, "more_b": 1}))
    assert {change.kind for change in doubled.changes} == {"same"}
    assert doubled.changed
    lopsided = diff(before, assigned(corpus, {"a": 0, "b": 1, "more_a": 0}))
    assert told(lopsided) == {("grown", (0,), (0,)), ("same", (1,), (1,))}
    assert told(diff(before, assigned(corpus, {"a": 0, "b": 1, "more_a": 0}), min_change=1.1)) == {
        ("same", (0,), (0,)),
        ("same", (1,), (1,)),
    }


def test_a_topic_can_be_split_and_part_of_a_join() -> None:
    corpus = documents(a=60, b=40, c=50)
    found = diff(assigned(corpus, {"a": 0, "b": 0, "c": 1}), assigned(corpus, {"a": 0, "c": 0, "b": 1}))
    assert told(found) == {("split", (0,), (0, 1)), ("joined", (0, 1), (0,))}


def test_an_id_whose_content_moved_is_told() -> None:
    corpus = documents(a=50, b=40, c=30)
    found = diff(assigned(corpus, {"a": 0, "b": 1, "c": 2}), assigned(corpus, {"a": 1, "b": 0, "c": 2}))
    assert {change.kind for change in found.changes} == {"same"}
    assert [(moved.topic_id, moved.now, moved.was) for moved in found.moved] == [(0, (1,), (1,)), (1, (0,), (0,))]
    assert found.changed
    assert found.reassigned == 0


def test_other_words_or_another_name_make_a_topic_renamed() -> None:
    corpus = {f"d{i}": 0 for i in range(20)}
    flows = flows_of(corpus, corpus)

    def one(words: list[str], label: str | None = None) -> Side:
        return side({0: 20}, words={0: words}, labels={} if label is None else {0: label})

    kinds = [
        compare(one(FIRST), other, flows).changes[0].kind
        for other in (one(FIRST[::-1]), one(FIRST[:3] + SECOND[:2]), one(FIRST[:2] + SECOND[:3]), one(FIRST, "Food"), one(FIRST[:2]))
    ]
    assert kinds == ["same", "same", "renamed", "renamed", "same"]
    change = compare(one(FIRST), one(FIRST[:2] + SECOND[:3]), flows).changes[0]
    assert (change.keywords_gained, change.keywords_lost) == (tuple(SECOND[:3]), tuple(FIRST[2:]))


def test_a_made_name_that_stays_while_keywords_move_on_is_no_new_name() -> None:
    corpus = {f"d{i}": 0 for i in range(20)}
    kept = {0: "0_soup_bread_pasta_curry"}
    before, after = side({0: 20}, words={0: FIRST}), side({0: 20}, words={0: FIRST[1:] + SECOND[:1]}, labels=kept)
    assert compare(before, after, flows_of(corpus, corpus)).changes[0].kind == "same"
    named = side({0: 20}, words={0: FIRST}, labels={0: "Food"})
    assert compare(named, named, flows_of(corpus, corpus)).changes[0].kind == "same"


def test_a_topic_of_other_number_is_not_renamed_by_its_number() -> None:
    corpus = documents(a=50, b=40)
    words = {0: FIRST, 1: SECOND}
    before, after = assigned(corpus, {"a": 0, "b": 1}), assigned(corpus, {"a": 1, "b": 0})
    found = compare(
        side(Counter(before.values()), words=words), side(Counter(after.values()), words={0: SECOND, 1: FIRST}), flows_of(before, after)
    )
    assert {change.kind for change in found.changes} == {"same"}


def centres(k: int, *, d: int = 32, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(k, d)))


def test_without_shared_documents_vectors_tell() -> None:
    made = centres(6)
    near = unit(made + 0.03 * np.random.default_rng(1).normal(size=made.shape))
    # two halves of one topic lie on both sides of its mean
    offset = 0.5 * unit(np.random.default_rng(2).normal(size=(2, made.shape[1])))
    halves = unit(np.array([near[1] + offset[0], near[1] - offset[0]]))
    thirds = unit(np.array([made[2] + offset[1], made[2] - offset[1]]))
    before = side({0: 80, 1: 60, 2: 30, 3: 20, 4: 40, OUTLIER: 5}, vectors=dict(enumerate([made[0], made[1], *thirds, made[3]])))
    after = side({0: 75, 1: 32, 2: 30, 3: 52, 4: 90, 5: 44}, vectors=dict(enumerate([near[0], *halves, made[2], near[4], near[3]])))
    found = compare(before, after, None)
    assert told(found) == {
        ("same", (0,), (0,)),
        ("split", (1,), (1, 2)),
        ("joined", (2, 3), (3,)),
        ("same", (4,), (5,)),
        ("found", (), (4,)),
    }
    assert found.shared is found.reassigned is found.outliers.stayed is None
    assert all(change.overlap is None and change.flows == () for change in found.changes)
    assert min(change.similarity for change in found.changes if change.similarity is not None) > 0.95


def test_a_neighbour_is_no_part() -> None:
    made = centres(2)
    # as similar to the first topic as a counterpart may be, and no help in making it up
    neighbour = unit(made[:1] + 0.7 * made[1:])[0]
    before = side({0: 50}, vectors={0: made[0]})
    after = side({0: 50, 1: 50}, vectors={0: unit(made[:1] + 0.02 * made[1:])[0], 1: neighbour})
    assert told(compare(before, after, None)) == {("same", (0,), (0,)), ("found", (), (1,))}


def test_two_spaces_need_shared_documents() -> None:
    corpus = documents(a=5, b=4)
    labels = assigned(corpus, {"a": 0, "b": 1})
    before, after = side({0: 5, 1: 4}, vectors=dict(enumerate(centres(2)))), side({0: 5, 1: 4}, vectors=dict(enumerate(centres(2, d=8))))
    with pytest.raises(ValueError, match="one embedding space"):
        compare(before, after, None, one_space=False)
    found = compare(before, after, flows_of(labels, labels), one_space=False)
    assert {(change.kind, change.similarity) for change in found.changes} == {("same", None)}


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_change_is_a_number_from_0_up(value) -> None:
    with pytest.raises(ValueError, match="min_change must be"):
        compare(side({0: 3}), side({0: 3}), None, min_change=value)


def test_sides_without_topics() -> None:
    nothing, outliers, some = side({}), side({OUTLIER: 9}), side({0: 9}, vectors={0: [1.0, 0.0]})
    assert not compare(nothing, nothing, None).changed
    assert not compare(outliers, outliers, None).changed
    assert told(compare(outliers, some, None)) == {("found", (), (0,))}
    assert told(compare(some, nothing, None)) == {("gone", (0,), ())}


labellings = st.lists(st.integers(-1, 6), min_size=1, max_size=120)


@settings(deadline=None)
@given(labellings, st.floats(0, 2))
def test_nothing_changed_between_equal_sides(labels, min_change) -> None:
    corpus = {f"d{i}": topic for i, topic in enumerate(labels)}
    found = diff(corpus, corpus, min_change=min_change)
    assert not found.changed
    assert {change.kind for change in found.changes} <= {"same"}
    assert not found.moved
    assert found.reassigned == 0


@settings(deadline=None)
@given(labellings, labellings, st.integers(0, 60), st.floats(0, 2))
def test_exchanged_sides_mirror_by_documents(first, second, offset, min_change) -> None:
    before = {f"d{i}": topic for i, topic in enumerate(first)}
    after = {f"d{i + offset}": topic for i, topic in enumerate(second)}
    mirrors(diff(before, after, min_change=min_change), diff(after, before, min_change=min_change), set(first), set(second))


topics = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 11)), max_size=12)
"""A size, and which of a few vectors: equal ones and near ones are what ties and splits are made of."""


@settings(deadline=None)
@given(topics, topics, st.floats(0, 2))
def test_exchanged_sides_mirror_by_vectors(first, second, min_change) -> None:
    basis = centres(4, d=8)
    offsets = centres(4, d=8, seed=1)
    pool = unit(np.concatenate([basis, basis + 0.4 * offsets, basis - 0.4 * offsets]))

    def made(rows: list[tuple[int, int]]) -> Side:
        return side({i: size for i, (size, _) in enumerate(rows)}, vectors={i: pool[which].tolist() for i, (_, which) in enumerate(rows)})

    before, after = made(first), made(second)
    found, swapped = (compare(*pair, None, min_change=min_change) for pair in ((before, after), (after, before)))
    mirrors(found, swapped, set(before.ids.tolist()), set(after.ids.tolist()))
    again = compare(before, before, None, min_change=min_change)
    assert not again.changed
    assert {change.kind for change in again.changes} <= {"same"}


def mirrors(found: Difference, swapped: Difference, before: set[int], after: set[int]) -> None:
    assert {(MIRRORED.get(kind, kind), later, earlier) for kind, earlier, later in told(found)} == told(swapped)
    assert found.changed == swapped.changed
    assert {(m.topic_id, m.now, m.was) for m in found.moved} == {(m.topic_id, m.was, m.now) for m in swapped.moved}
    assert found.reassigned == swapped.reassigned
    # every topic of either side is told of
    assert {topic for change in found.changes for topic in change.before} == before - {OUTLIER}
    assert {topic for change in found.changes for topic in change.after} == after - {OUTLIER}
