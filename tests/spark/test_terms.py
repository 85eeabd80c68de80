"""Words of any script, and counts and weights that equal scikit-learn's and c-TF-IDF's."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import functions as F
from sklearn.feature_extraction.text import CountVectorizer

from spark import forget
from spark.terms import count_terms
from spark.words import has_dictionaries, ngrams, words
from topicscale.config import Config, TermsConfig
from topicscale.ctfidf import c_tf_idf

AG_NEWS = Path(__file__).parents[3] / "shared" / "data" / "agnews_test.csv"


@pytest.fixture(scope="module")
def dictionaries(spark):
    """Whether the session's Java has the dictionaries that ``python -m spark.jars`` fetches."""
    return has_dictionaries(spark)


def _words(spark, text, dictionaries=True):
    return spark.range(1).select(words(F.lit(text), dictionaries=dictionaries).alias("words")).collect()[0]["words"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic: 42 towels, x y_z", ["don", "panic", "42", "towels", "y_z"]),
        ("यह एक परीक्षण है, हिन्दी!", ["यह", "एक", "परीक्षण", "है", "हिन्दी"]),
        ("مَرْحَبًا بالعالم", ["مَرْحَبًا", "بالعالم"]),
        ("Привет, Мир!", ["привет", "мир"]),
        ("naïve Straße ΜΆΘΗΣΗ", ["naïve", "straße", "μάθηση"]),
        ("❤️‍🔥 1️⃣ 👨‍👩‍👧 ok 🏴", ["ok"]),
        ("", []),
        ("नमस्ते😀दुनिया", ["नमस्ते", "दुनिया"]),
    ],
)
def test_words_of_scripts_with_spaces_come_out_whole(spark, text, expected):
    assert _words(spark, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好,我们学习机器学习。", ["今天", "天气", "很好", "我们", "学习", "机器", "学习"]),
        ("東京証券取引所のニュース", ["東京", "証券", "取引", "ニュース"]),
        ("ภาษาไทยเป็นภาษาที่สวยงาม", ["ภาษา", "ไทย", "เป็น", "ภาษา", "ที่", "สวยงาม"]),
        ("Das 中文text und ไทยlatin", ["das", "中文", "text", "und", "ไทย", "latin"]),
    ],
)
def test_words_of_scripts_without_spaces_are_found_by_dictionary(spark, dictionaries, text, expected):
    if not dictionaries:
        pytest.skip("this Java has no dictionaries; fetch them with: python -m spark.jars")
    assert _words(spark, text) == expected


def test_without_dictionaries_chinese_becomes_pairs(spark):
    assert _words(spark, "今天天气", dictionaries=False) == ["今天", "天天", "天气"]


def test_ngrams_are_neighbouring_words_of_one_text(spark):
    grams = spark.range(1).select(ngrams(F.split(F.lit("a b c"), " "), (2, 4)).alias("grams")).collect()[0]["grams"]
    assert grams == ["a b", "b c", "a b c"]


def _store(folder, texts, topics):
    ids = [f"d{i:05d}" for i in range(len(texts))]
    partitions = [f"p{i % 2}" for i in range(len(texts))]
    write_deltalake(
        folder / "documents", pa.table({"doc_id": ids, "partition_id": partitions, "text": texts}), partition_by=["partition_id"]
    )
    probabilities = pa.array([0.9, 0.5][: len(ids)] * (len(ids) // 2) + [0.9] * (len(ids) % 2), pa.float32())
    assigned = pa.table({"doc_id": ids, "partition_id": partitions, "topic_id": pa.array(topics, pa.int32()), "probability": probabilities})
    write_deltalake(folder / "assignments", assigned, partition_by=["partition_id"])
    return str(folder)


def _expected(texts, topics, config, core=None):
    vectorizer = CountVectorizer(
        stop_words=config.stop_words, ngram_range=config.ngram_range, min_df=config.min_df, lowercase=config.lowercase
    )
    per_document = vectorizer.fit_transform(texts)
    if core is not None:
        per_document[[i for i in range(len(texts)) if i not in set(core)]] = 0
    classes = sorted(set(topics))
    rows = np.array(topics)
    sums = sp.csr_matrix(np.vstack([np.asarray(per_document[rows == c].sum(axis=0)) for c in classes]))
    present = sp.csr_matrix(np.vstack([np.asarray((per_document[rows == c] > 0).sum(axis=0)) for c in classes]))
    weights = c_tf_idf(sums, bm25_weighting=config.bm25_weighting, reduce_frequent_words=config.reduce_frequent_words)
    names = vectorizer.get_feature_names_out()
    found = {}
    for i, j in zip(*sums.nonzero(), strict=True):
        found[classes[i], names[j]] = (sums[i, j], present[i, j], weights[i, j])
    return found


def _got(store):
    rows = DeltaTable(f"{store}/topic_terms").to_pyarrow_table().to_pylist()
    return {(row["topic_id"], row["term"]): (row["count"], row["documents"], row["weight"]) for row in rows}


@pytest.mark.parametrize(
    "config",
    [
        TermsConfig(),
        TermsConfig(ngram_range=(1, 3), min_df=3),
        TermsConfig(stop_words=None, lowercase=False, bm25_weighting=True),
        TermsConfig(reduce_frequent_words=True, min_df=2),
        TermsConfig(bm25_weighting=True, reduce_frequent_words=True),
    ],
    ids=["default", "ngrams", "bm25", "reduced", "both"],
)
def test_terms_counts_and_weights_equal_scikit_learns_on_news(spark, tmp_path, config):
    if not AG_NEWS.exists():
        pytest.skip("needs AG News beside the checkout")
    with AG_NEWS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[:600]
    texts, topics = [f"{row[1]}. {row[2]}" for row in rows], [int(row[0]) - 2 for row in rows]
    store = _store(tmp_path, texts, topics)
    result = count_terms(spark, config, store_uri=store, cores=[0.7, 0.7])
    expected, got = _expected(texts, topics, config), _got(store)
    assert got.keys() == expected.keys()
    assert {key: row[:2] for key, row in got.items()} == {key: row[:2] for key, row in expected.items()}
    assert max(abs(got[key][2] - expected[key][2]) for key in got) < 1e-9
    assert (result.rows, result.topics) == (len(got), 4)
    # every other document of the topics 0 and 1 is of the core, and all of the outliers and of a topic without a limit
    core = [i for i, topic in enumerate(topics) if i % 2 == 0 or topic in (-1, 2)]
    expected = _expected(texts, topics, config, core)
    rows = DeltaTable(f"{store}/topic_terms").to_pyarrow_table().to_pylist()
    got = {(row["topic_id"], row["term"]): (row["core_count"], row["core_weight"]) for row in rows if row["core_count"]}
    assert {key: row[0] for key, row in got.items()} == {key: row[0] for key, row in expected.items()}
    assert max(abs(got[key][1] - expected[key][2]) for key in got) < 1e-9
    assert all(row["core_weight"] == 0 for row in rows if not row["core_count"])


def test_a_topic_without_words_still_counts_as_a_class(spark, tmp_path):
    texts, topics = ["apple apple pear", "pear plum", "!!!"], [0, 1, -1]
    store = _store(tmp_path, texts, topics)
    count_terms(spark, TermsConfig(), store_uri=store, cores=[])
    # 5 terms over 3 classes: A is 1
    assert _got(store)[0, "apple"] == (2, 1, pytest.approx(2 / 3 * np.log(1 + 1 / 2)))


@pytest.mark.parametrize("divided", [True, False], ids=["the same words", "other words"])
def test_no_word_of_a_forgotten_text_stays_where_another_java_divides_it_otherwise(spark, dictionaries, tmp_path, monkeypatch, divided):
    texts = ["今天天气很好 rain", "rain rain"]
    versions = {"documents": 0, "assignments": 0, "topic_terms": 0}
    kept = _store(tmp_path / "kept", texts[1:], [0])
    count_terms(spark, TermsConfig(), store_uri=kept, cores=[])
    store = _store(tmp_path / "store", texts, [0, 0])
    with monkeypatch.context() as patched:
        patched.setattr("spark.terms.has_dictionaries", lambda _: dictionaries == divided)
        count_terms(spark, TermsConfig(), store_uri=store, cores=[], txn={"topic_terms": ("terms", 1)})
    documents = DeltaTable(f"{store}/documents")
    documents.delete("doc_id = 'd00000'")
    DeltaTable(f"{store}/assignments").delete("doc_id = 'd00000'")
    forget.remove_terms(
        spark, Config(), store_uri=store, ids=["d00000"], versions=versions, classes=1, cores=[], txn={"topic_terms": ("terms", 2)}
    )
    assert _got(store) == _got(kept)


def test_counts_are_of_the_versions_asked_for_and_a_repeated_write_changes_nothing(spark, tmp_path):
    store = _store(tmp_path, ["old words", "older words"], [0, 0])
    write_deltalake(
        f"{store}/assignments",
        pa.table(
            {
                "doc_id": ["d00000"],
                "partition_id": ["p0"],
                "topic_id": pa.array([7], pa.int32()),
                "probability": pa.array([1.0], pa.float32()),
            }
        ),
        mode="overwrite",
    )
    for _ in range(2):
        count_terms(
            spark, TermsConfig(), store_uri=store, cores=[], versions={"documents": 0, "assignments": 0}, txn={"topic_terms": ("terms", 3)}
        )
    assert {topic for topic, _ in _got(store)} == {0}
    assert DeltaTable(f"{store}/topic_terms").version() == 0
