"""Measures of topics, against figures that gensim 4.4.0 and scikit-learn gave for the same input."""

from __future__ import annotations

import csv
import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from topicscale.coherence import c_v, count, count_many, count_matrix, npmi
from topicscale.evaluate import clustering, diversity, sizes, tokeniser, topic_quality, with_words

AG_NEWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "agnews_test.csv"

DOCUMENTS = [
    line.split()
    for line in (
        "the cat sat on the mat with another cat",
        "dogs and cats are pets that people keep at home",
        "the dog chased the cat over the garden wall",
        "stock prices fell as oil rose on the market",
        "oil prices and stock markets moved together again",
        "market traders sold stock when oil prices rose",
        "a dog and a cat share a home in the garden",
        "pets such as a dog need a garden and a home",
        "",
        "traders keep a cat at the market",
    )
]
TOPICS = [
    ["cat", "dog", "home", "garden", "pets"],
    ["oil", "stock", "prices", "market", "traders"],
    ["cat", "oil", "garden", "market", "rose"],
]
# documents longer than a window, no word twice within one: gensim drops a repeated word when its first occurrence
# leaves the window, so its figures are those of the definition only without repetitions
LONG = [
    [f"w{(a * j + b) % 211}" for j in range(n)]
    for a, b, n in ((2, 1, 150), (3, 5, 180), (5, 7, 211), (7, 0, 130), (11, 3, 200), (13, 9, 90), (17, 2, 140))
]
LONG_TOPICS = [["w1", "w3", "w5", "w7", "w9"], ["w10", "w60", "w110", "w160", "w210"], ["w2", "w4", "w33", "w44", "w100"]]


@pytest.mark.parametrize(
    ("documents", "topics", "expected_c_v", "expected_npmi", "expected_npmi_10"),
    [
        (
            DOCUMENTS,
            TOPICS,
            [0.6920115337328914, 0.9089203751725516, 0.2354361573375734],
            [0.28310648499438895, 0.5902038794012827, -0.23252482780188655],
            [0.14099685534385795, 0.6252768138294298, -0.24303657880170718],
        ),
        (
            LONG,
            LONG_TOPICS,
            [0.5319454129089906, 0.608639496858086, 0.4293115464069168],
            [0.07884908618545196, 0.15135196503289355, 0.09837671853663166],
            [0.09636416356762947, -0.6651488605859321, -0.47043787683719246],
        ),
    ],
)
def test_coherence_is_gensims(documents, topics, expected_c_v, expected_npmi, expected_npmi_10):
    sliding, whole, ten = count_many(iter(documents), topics, windows=(110, None, 10))
    np.testing.assert_allclose(c_v(topics, sliding), expected_c_v, atol=1e-6)
    np.testing.assert_allclose(npmi(topics, whole), expected_npmi, atol=1e-6)
    np.testing.assert_allclose(npmi(topics, ten), expected_npmi_10, atol=1e-6)


@pytest.mark.skipif(not AG_NEWS.exists(), reason="the AG News test set is not on this machine")
def test_coherence_is_gensims_on_ag_news():
    topics = [
        ["oil", "prices", "crude", "barrel", "opec", "yukos", "high", "record", "supply", "barrels"],
        ["iraq", "baghdad", "killed", "troops", "najaf", "bomb", "fallujah", "insurgents", "military", "iraqi"],
        ["oil", "iraq", "microsoft", "season", "google", "china", "nuclear", "space", "champions", "airlines"],
    ]
    with AG_NEWS.open(encoding="utf-8") as file:
        tokens = [re.findall(r"\w\w+", f"{row[1]} {row[2]}".lower()) for row in csv.reader(file)]
    sliding, whole = count_many((t for t in tokens if len(t) <= 110), topics, windows=(110, None))
    np.testing.assert_allclose(c_v(topics, sliding), [0.6474304867345747, 0.7888983767844377, 0.5209307100579703], atol=1e-6)
    np.testing.assert_allclose(npmi(topics, whole), [0.2365893853347708, 0.31002918486228154, -0.4395794156547765], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=40), max_size=8),
    window=st.sampled_from([None, 1, 2, 5, 9, 40]),
)
def test_windows_are_counted_as_defined(documents, window):
    topics = [["a", "b", "c"], ["c", "d", "z"]]
    found = count(documents, topics, window=window)
    windows = []
    for document in documents:
        width = len(document) if window is None else min(window, len(document))
        windows += [set(document[i : i + width]) for i in range(len(document) - width + 1)]
    assert found.windows == len(windows)
    for topic in topics:
        matrix = found.matrix(topic)
        for i, word in enumerate(topic):
            assert matrix[i, i] == sum(word in w for w in windows)
        for (i, one), (j, other) in combinations(enumerate(topic), 2):
            assert matrix[i, j] == matrix[j, i] == sum(one in w and other in w for w in windows)


def test_batches_and_blocks_change_nothing(monkeypatch):
    documents = [[f"w{(i * j + j // 7) % 23}" for j in range(500)] for i in range(1, 9)]
    topics = [["w1", "w2", "w3"], ["w4", "w5", "w22"]]
    expected = count(documents, topics, window=20)
    monkeypatch.setattr("topicscale.coherence._BATCH", 50)
    monkeypatch.setattr("topicscale.coherence._BLOCK", 7)
    found = count(documents, topics, window=20)
    assert (found.single == expected.single).all()
    assert (found.joint == expected.joint).all()


def test_matrix_and_tokens_give_the_same_counts():
    vocabulary = sorted({token for document in DOCUMENTS for token in document})
    dense = np.array([[document.count(term) for term in vocabulary] for document in DOCUMENTS])
    topics = [*TOPICS, ["unheard", "cat"]]
    whole = count(DOCUMENTS, topics, window=None)
    found = count_matrix(sparse.csr_matrix(dense), vocabulary, topics)
    np.testing.assert_allclose(npmi(topics, found), npmi(topics, whole))
    assert found.windows == len(DOCUMENTS)


def test_degenerate_topics_are_zero_not_nan():
    topics = [[], ["cat"], ["unheard", "unseen"], ["cat", "cat"]]
    counts = count(DOCUMENTS, topics)
    assert npmi(topics, counts).tolist() == [0, 0, 0, 0]
    assert not np.isnan(c_v(topics, counts)).any()
    assert npmi([["a", "b"]], count([["a", "b"]] * 3, [["a", "b"]])).tolist() == [0]
    assert topic_quality([], DOCUMENTS)["npmi"] == 0


def test_window_must_be_positive():
    with pytest.raises(ValueError, match=r"window must be at least 1 or None\. Got 0 instead\."):
        count(DOCUMENTS, TOPICS, window=0)


def test_topic_quality_reads_documents_once():
    result = topic_quality(TOPICS, iter(DOCUMENTS))
    assert result["npmi"] == pytest.approx(np.mean([0.28310648499438895, 0.5902038794012827, -0.23252482780188655]))
    assert result["c_v"] == pytest.approx(np.mean([0.6920115337328914, 0.9089203751725516, 0.2354361573375734]))
    assert result["diversity"] == pytest.approx(11 / 15)
    assert result["unseen_words"] == 0
    assert topic_quality([["cat", "unheard"]], DOCUMENTS)["unseen_words"] == 0.5


def test_diversity():
    assert diversity([["a", "b"], ["c", "d"]]) == 1.0
    assert diversity([["a", "b"], ["a", "b"]]) == 0.5
    assert diversity([]) == 0.0
    assert diversity([["a", "b", "x"], ["c", "d", "x"]], top_n=2) == 1.0


def test_outliers_are_a_cluster_of_their_own():
    perfect = clustering(["x", "x", "y", "y"], [0, 0, 1, 1])
    assert perfect["nmi"] == perfect["ari"] == perfect["ami"] == perfect["purity"] == 1.0
    # a model that leaves out what is hard does not look perfect
    partial = clustering(["x", "x", "y", "y"], [0, -1, 1, -1])
    assert partial["nmi"] < 0.7
    assert partial["nmi_assigned"] == 1.0
    assert partial["outlier_share"] == 0.5
    assert partial["topics"] == 2


def test_clustering_by_hand():
    # two topics of 3 and 2 documents; mutual information and entropies in nats
    result = clustering([0, 0, 1, 1, 1], [5, 5, 5, 7, 7])
    mutual = 0.4 * math.log(0.4 / (0.4 * 0.6)) + 0.2 * math.log(0.2 / (0.6 * 0.6)) + 0.4 * math.log(0.4 / (0.6 * 0.4))
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert result["nmi"] == result["v_measure"] == pytest.approx(mutual / entropy)
    assert result["purity"] == pytest.approx(0.8)


def test_documents_without_a_label_are_left_out_and_counted():
    result = clustering(["x", None, "y", float("nan")], [0, 0, 1, 1])
    assert result["documents"] == 2
    assert result["unlabelled"] == 2
    assert result["nmi"] == 1.0


def test_pandas_missing_values_are_no_labels():
    found = clustering(pd.Series(["a", pd.NA, "b", "a"], dtype="string"), [0, 0, 1, 0])
    assert (found["documents"], found["unlabelled"], found["ari"]) == (3, 1, 1)
    assert clustering(pd.Series([1, pd.NA], dtype="Int64"), [0, 0])["unlabelled"] == 1


def test_clustering_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="same length"):
        clustering(["x"], [0, 1])
    with pytest.raises(ValueError, match="must hold a label"):
        clustering([None, None], [0, 1])


def test_sizes():
    found = sizes({-1: 10, 0: 60, 1: 20, 2: 10})
    assert found["outlier_share"] == 0.1
    assert (found["largest"], found["median"], found["smallest"], found["topics"]) == (60, 20, 10, 3)
    assert sizes({})["outlier_share"] == 0
    assert sizes({-1: 5})["topics"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oil prices ROSE 3.5% in x", ["oil", "prices", "rose", "in"]),
        ("हिन्दी में समाचार", ["हिन्दी", "में", "समाचार"]),
        ("كِتَابٌ جديد", ["كِتَابٌ", "جديد"]),
        ("Новости — спорта", ["новости", "спорта"]),
        ("", []),
    ],
)
def test_words_come_out_as_words(text, words):
    assert tokeniser()(text) == words


def test_phrases_and_words_without_spaces_are_found_in_documents():
    """Keywords may be n-grams, or words that a dictionary found: as single tokens no document would hold them."""
    words = ["credit card", "card fees", "fees", "机器", "学习", "机器 学习"]
    tokens = with_words(tokeniser(), words, stop_words={"the", "of"})
    assert tokens("The credit card of fees") == ["the", "credit", "credit card", "card", "card fees", "of", "fees"]
    assert set(tokens("我们用机器学习")) == {"我们用机器学习", "机器", "学习", "机器 学习"}
    assert tokens("credit for a card") == ["credit", "for", "card"]
    documents = ["my credit card and debit card"] * 3 + ["nothing here"] * 3
    found = topic_quality([["credit card", "debit card"]], map(with_words(tokeniser(), ["credit card", "debit card"]), documents))
    assert found["unseen_words"] == 0
    assert found["npmi"] == pytest.approx(1.0)
    plain = tokeniser()
    assert with_words(plain, ["fees"]) is plain
