"""Labels that tell topics apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicscale.llm.clean import LONGEST
from topicscale.llm.unique import clashes, distinct, normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Card payments", "card  PAYMENTS."),
        ("Card payments", "Ｃａｒｄ　ｐａｙｍｅｎｔｓ"),
        ("Straße", "STRASSE"),
        ("Café", "Cafe\u0301"),
        ("e-mail", "Email"),
        ("می‌شود", "میشود"),
        ("ﬁnance", "Finance"),
    ],
)
def test_labels_that_count_as_the_same(one, other) -> None:
    assert normalised(one) == normalised(other)
    assert clashes({4: one, 9: other}) == [[4, 9]]


@pytest.mark.parametrize(("one", "other"), [("C", "C++"), ("Card payment", "Card payments"), ("Top 10", "Top 11"), ("resume", "résumé")])
def test_labels_that_do_not(one, other) -> None:
    assert clashes({4: one, 9: other}) == []


def test_clashes_are_sorted() -> None:
    labels = {9: "B", 3: "a", 7: "b!", 1: "A", 5: "c", 2: "b"}
    assert clashes(labels) == [[1, 3], [2, 7, 9]]


def test_the_largest_topic_keeps_the_label_and_the_others_get_a_keyword_of_their_own() -> None:
    labels = {2: "card payments", 0: "Card payments", 1: "Refunds", 5: "Card payments"}
    keywords = {0: ["card", "payment", "pending"], 2: ["payment", "pending", "refund"], 5: ["payment", "pending", "atm"]}
    expected = {0: "Card payments", 1: "Refunds", 2: "card payments (refund)", 5: "Card payments (atm)"}
    assert distinct(labels, keywords, {}) == expected
    assert distinct(expected, keywords, {}) == expected


def test_shared_keywords_are_better_than_none_and_two_better_than_a_number() -> None:
    labels = dict.fromkeys(range(6), "Cards")
    keywords = {topic: ["card", "fee", "atm"] for topic in range(6)}
    found = distinct(labels, keywords, {})
    assert list(found.values()) == ["Cards", "Cards (fee)", "Cards (atm)", "Cards (fee, atm)", "Cards (2)", "Cards (3)"]


def test_names_that_are_taken_stay_and_nobody_else_gets_them() -> None:
    labels = {0: "Cards", 1: "Refunds", 2: "Loans", 3: "Cards (fee)"}
    keywords = {0: ["fee", "atm"], 1: ["money"], 7: ["fee"]}
    taken = {2: "Refunds", 7: "CARDS", 8: "cards"}
    assert distinct(labels, keywords, taken) == {0: "Cards (atm)", 1: "Refunds (money)", 2: "Refunds", 3: "Cards (fee)"}


def test_a_keyword_is_never_mark_up_nor_in_the_label() -> None:
    keywords = {1: ["<b>x</b>", "cards", "line\nbreak", "x" * 40, "a\u202eb", "", "  ", "C++"]}
    assert distinct({0: "Cards", 1: "Cards"}, keywords, {})[1] == "Cards (C++)"


def test_a_topic_without_a_label_gets_a_name_too() -> None:
    assert distinct({0: "", 1: "...", 2: ""}, {0: ["oil", "gas"]}, {}) == {0: "oil", 1: "Topic 2", 2: "Topic 3"}


LABELS = st.sampled_from(["Cards", "cards.", "Card (fee)", "Cards (2)", "", "Cards (fee)", "C " * 60, "x" * 90]) | st.text(max_size=100)


@given(
    st.dictionaries(st.integers(-1, 30), LABELS, max_size=12),
    st.dictionaries(st.integers(-1, 30), st.lists(st.sampled_from(["fee", "2", "card", "a b"]) | st.text(max_size=40), max_size=4)),
    st.dictionaries(st.integers(-1, 40), LABELS.filter(lambda label: len(label) <= LONGEST), max_size=3),
    st.randoms(),
)
@settings(max_examples=150, deadline=None)
def test_labels_are_unique_bounded_and_free_of_order(labels, keywords, taken, random) -> None:
    found = distinct(labels, keywords, taken)
    assert list(found) == sorted(labels)
    assert all(found[topic] == taken[topic] for topic in labels if topic in taken)
    free = {topic: label for topic, label in found.items() if topic not in taken}
    assert all(0 < len(label) <= LONGEST for label in free.values())
    names = [normalised(label) for label in free.values()]
    assert len(set(names)) == len(names)
    assert not set(names) & {normalised(name) for name in taken.values()}

    def shuffled(mapping):
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    assert distinct(shuffled(labels), shuffled(keywords), shuffled(taken)) == found


@given(st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_normalising_twice_changes_nothing(text) -> None:
    assert normalised(normalised(text)) == normalised(text)
