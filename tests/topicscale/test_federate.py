"""Merging stores, as a function of the set of their leaves."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from topicscale import federate
from topicscale.cluster import exact, unit
from topicscale.config import TermsConfig
from topicscale.ctfidf import c_tf_idf
from topicscale.errors import RequestError
from topicscale.leaf_terms import hashed, summed, vocabulary
from topicscale.models import UNNAMED
from topicscale.tables import TABLES

WORDS = ["oil", "gas", "tax", "court", "goal", "match", "vaccine", "nurse"]
VOCABULARY = vocabulary(TermsConfig())


def leaf(site: str, seed: int, *, size: int = 20, topic: int | None = None, **other) -> dict:
    random = np.random.default_rng(seed)
    centre = np.eye(8)[topic if topic is not None else seed % 8]
    rows = exact(unit(centre + 0.15 * random.normal(size=(size, 8))))
    counts = {word: int(n) for word, n in zip(WORDS, random.integers(0, 9, 8), strict=True) if n}
    return {
        "site": site,
        "site_id": f"id-{site}",
        "generation": 1,
        "topic_key": f"{site}-{seed}",
        "label": "",
        "size": size,
        "vector_sum": rows.sum(axis=0).tolist(),
        "term_counts": list(counts.items()),
        "term_documents": [(word, min(n, size)) for word, n in counts.items()],
        "min_documents": 1,
        "embedding_space": "space",
        "embedding_model": "MiniLM",
        "vocabulary": VOCABULARY,
        **other,
    }


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TABLES["site_topics"].schema)


def pilots(*heights: tuple[str, float, int]) -> pa.Table:
    rows = [
        {
            "site": s,
            "site_id": f"id-{s}",
            "generation": 1,
            "pilot_key": f"p-{s}-{h}",
            "embedding_space": "space",
            "documents": n,
            "height": h,
        }
        for s, h, n in heights
    ]
    return pa.Table.from_pylist([{**row, "agreement": 0.5} for row in rows], schema=TABLES["pilots"].schema)


NONE = pilots()


def outcome(stores: list[list[dict]], **how) -> tuple:
    """Return everything that must not depend on order, grouping and repetition."""
    union = federate.unite([table(rows) for rows in stores], [NONE] * len(stores))
    found = federate.federate(union, **(how or {"similarity": 0.7}))
    terms = summed(union.rows, found.topics, TermsConfig())
    return (
        union.keys,
        found.merged.keys,
        found.merged.sizes.tolist(),
        found.merged.vector_sums.tobytes(),
        found.topics.tolist(),
        terms.to_pylist(),
        federate.labels(found),
        federate.by_site(found),
    )


@st.composite
def leaves(draw) -> list[dict]:
    seeds = draw(st.lists(st.integers(0, 60), min_size=1, max_size=14, unique=True))
    rows = [leaf("abc"[seed % 3], seed, size=draw(st.integers(1, 40)), label=draw(st.sampled_from(["", "", "x", "y"]))) for seed in seeds]
    return [{**row, "topic_key": "outliers"} if seed % 10 == 9 else row for seed, row in zip(seeds, rows, strict=True)]


@settings(max_examples=40, deadline=None)
@given(leaves(), st.randoms(use_true_random=False))
def test_order_grouping_and_repetition_change_nothing(rows, random) -> None:
    expected = outcome([rows])
    shuffled = list(rows)
    random.shuffle(shuffled)
    cut = random.randint(0, len(shuffled))
    groups = [part for part in (shuffled[:cut], shuffled[cut:], shuffled[: cut // 2]) if part]
    assert outcome(groups) == expected
    # a merged store holds the union of its inputs' leaves: merge of merges
    first = federate.unite([table(groups[0])], [NONE])
    assert outcome([first.rows.to_pylist(), *groups[1:], *groups[:1]]) == expected


def test_sums_add_up_exactly_and_weights_are_those_of_the_sums() -> None:
    rows = [leaf(site, 10 * i + t, topic=t, size=10 + i) for i, site in enumerate("abcd") for t in range(3)]
    union = federate.unite([table(rows)], [NONE])
    found = federate.federate(union, similarity=0.7)
    assert found.merged.number == 3
    assert found.merged.sizes.sum() == sum(row["size"] for row in rows)
    np.testing.assert_array_equal(found.merged.vector_sums.sum(axis=0), np.sum([row["vector_sum"] for row in rows], axis=0))
    counted = np.zeros((3, 8))
    for row, topic in zip(union.rows.to_pylist(), found.topics, strict=True):
        for word, count in row["term_counts"]:
            counted[topic, WORDS.index(word)] += count
    for config in (TermsConfig(), TermsConfig(bm25_weighting=True, reduce_frequent_words=True)):
        terms = summed(union.rows, found.topics, config)
        got, weights = np.zeros((3, 8)), np.zeros((3, 8))
        for row in terms.to_pylist():
            got[row["topic_id"], WORDS.index(row["term"])] = row["count"]
            weights[row["topic_id"], WORDS.index(row["term"])] = row["weight"]
        np.testing.assert_array_equal(got, counted)
        expected = c_tf_idf(csr_matrix(counted), bm25_weighting=config.bm25_weighting, reduce_frequent_words=config.reduce_frequent_words)
        np.testing.assert_allclose(weights, expected.toarray(), rtol=1e-12)


def test_only_the_newest_generation_of_a_site_counts() -> None:
    old = [leaf("a", 1, size=20), leaf("a", 2, size=20)]
    new = [leaf("a", 1, size=25, generation=2), leaf("a", 2, size=20, generation=2), leaf("a", 3, size=10, generation=2)]
    other = [leaf("b", 4)]
    assert outcome([old, new, other]) == outcome([new, other])


def test_an_export_beside_its_store_counts_once() -> None:
    full = [leaf("a", 1), leaf("a", 2)]
    export = [{**full[0], "term_counts": full[0]["term_counts"][:1], "term_documents": full[0]["term_documents"][:1], "min_documents": 5}]
    assert outcome([full, export]) == outcome([full])
    union = federate.unite([table(export), table([leaf("b", 3)])], [NONE, NONE])
    assert federate.federate(union, similarity=0.7).min_documents == 5


def test_names_survive_and_conflicts_are_listed() -> None:
    rows = [leaf("a", 8, topic=0, label="Energy", size=30), leaf("b", 16, topic=0, label="Oil and gas", size=10), leaf("b", 1, label="Tax")]
    found = federate.federate(federate.unite([table(rows)], [NONE]), similarity=0.7)
    names, conflicts = federate.labels(found)
    assert sorted(names.values()) == ["Energy", "Tax"]
    assert conflicts == {0: ["Oil and gas"]}


def test_each_site_learns_what_others_share() -> None:
    rows = [leaf("a", 8, topic=0), leaf("a", 1, topic=1), leaf("b", 16, topic=0), leaf("b", 2, topic=2), leaf("b", 3, topic_key="outliers")]
    entries = federate.by_site(federate.federate(federate.unite([table(rows)], [NONE]), similarity=0.7))
    assert [(e["site"], len(e["shared"]), len(e["only_here"]), e["outliers"]) for e in entries] == [("a", 1, 1, 0), ("b", 1, 1, 20)]
    assert entries[0]["shared"][0]["topic_id"] == entries[1]["shared"][0]["topic_id"]
    assert 0.7 < entries[0]["shared"][0]["similarity"] <= 1


def test_two_embedding_models_are_refused_with_both_names_and_matched_by_terms() -> None:
    rows = [leaf("a", 1), leaf("b", 2, embedding_space="other", embedding_model="mpnet", vector_sum=[1.0] * 5)]
    union = federate.unite([table(rows)], [NONE])
    with pytest.raises(RequestError, match=r"MiniLM \[space, 8 dimensions\] \(a\).*|mpnet \[other, 5 dimensions\] \(b\)") as caught:
        federate.federate(union, similarity=0.7)
    assert "MiniLM" in str(caught.value)
    assert "mpnet" in str(caught.value)
    assert "--match terms" in str(caught.value)
    twin = {"term_counts": rows[0]["term_counts"], "term_documents": rows[0]["term_documents"]}
    union = federate.unite(
        [table([rows[0], {**rows[1], **twin}, leaf("b", 5, term_counts=[("rugby", 4)], term_documents=[("rugby", 2)])])], [NONE]
    )
    found = federate.federate(union, similarity=0.7, match="terms")
    assert found.merged.number == 2


def test_vectors_of_two_lengths_are_of_two_models_whatever_is_told_of_them() -> None:
    rows = [leaf("a", 1), leaf("b", 2, vector_sum=[1.0] * 4), leaf("b", 3, vector_sum=[2.0] * 4)]
    union = federate.unite([table(rows)], [NONE])
    with pytest.raises(RequestError, match=r"MiniLM \[space, 4 dimensions\] \(b\); MiniLM \[space, 8 dimensions\] \(a\)") as caught:
        federate.federate(union, similarity=0.7)
    assert "embedding.model" not in str(caught.value)
    assert federate.federate(union, similarity=0.7, match="terms").merged.number


def test_where_nobody_named_the_model_of_given_vectors_its_name_is_asked_for() -> None:
    rows = [leaf("a", 1, embedding_space="one", embedding_model=UNNAMED), leaf("b", 2, embedding_space="two", embedding_model=UNNAMED)]
    with pytest.raises(RequestError, match=r"topicscale update --refit --set embedding\.model=NAME"):
        federate.check_spaces(federate.unite([table(rows)], [NONE]))


def test_different_term_settings_are_refused_by_name() -> None:
    other = vocabulary(TermsConfig(ngram_range=(1, 2)))
    union = federate.unite([table([leaf("a", 1), leaf("b", 2, vocabulary=other)])], [NONE])
    with pytest.raises(RequestError, match=r"terms.ngram_range: \[1, 1\] and \[1, 2\]|terms.ngram_range: \[1, 2\] and \[1, 1\]"):
        federate.federate(union, similarity=0.7)


def test_stop_words_are_told_by_digest_alone() -> None:
    told = vocabulary(TermsConfig(stop_words=("mustermann", "erika")))
    assert "mustermann" not in told
    assert json.loads(told)["stop_words"] == json.loads(vocabulary(TermsConfig(stop_words=("erika", "mustermann"))))["stop_words"]


def test_hashed_terms_keep_cosines() -> None:
    rows = table([leaf("a", seed) for seed in range(8)])
    similar = hashed(rows) @ hashed(rows).T
    weights = np.zeros((8, 8))
    for row in summed(rows, np.arange(8), TermsConfig()).to_pylist():
        weights[row["topic_id"], WORDS.index(row["term"])] = row["weight"]
    expected = unit(weights) @ unit(weights).T
    np.testing.assert_allclose(similar, expected, atol=0.05)


def test_height_is_that_of_most_documents_brought_to_the_whole() -> None:
    rows = [leaf("a", 1, size=10), leaf("b", 2, size=80), leaf("c", 3, size=10)]
    union = federate.unite([table(rows)], [pilots(("a", 0.1, 10), ("b", 0.2, 80), ("c", 0.9, 10))])
    assert federate.height(union) == pytest.approx(0.2 * 0.8 ** (1 / 3))
    # an export of b beside b itself is the same finding
    again = federate.unite([table(rows)] * 2, [union.pilots, pilots(("b", 0.19, 80))])
    assert federate.height(again) in (federate.height(union), pytest.approx(0.19 * 0.8 ** (1 / 3)))
    assert again.pilots.num_rows == 3
    with pytest.raises(RequestError, match="--similarity"):
        federate.height(federate.unite([table(rows)], [NONE]))
