"""What models are judged by: each measure against a reference, and what cannot be judged is said first."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from deltalake import write_deltalake

from jobs import judge as jobs
from tests.topicscale.stores import site
from topicscale.config import Config, EmbeddingConfig, fingerprint, load
from topicscale.embedding import Embedder
from topicscale.errors import ConfigError, InputError, ModelError, RequestError
from topicscale.judge import task as tasks
from topicscale.judge.classification import classification
from topicscale.judge.clustering import clustering
from topicscale.judge.rank import better, ranked, table
from topicscale.judge.retrieval import retrieval
from topicscale.judge.sts import sts
from topicscale.judge.topics import chosen, fit, keywords, topics
from topicscale.models import resolve

DATA = Path(__file__).parents[3] / "shared" / "data"
STSB = DATA / "stsb_dev.tsv"
THEMES = ("oil gas barrel crude well", "court judge trial appeal law", "goal match league striker cup", "nurse vaccine dose ward clinic")


def letters(texts):
    """Return unit vectors that depend on the letters of each text alone: a model without a model."""
    counts = np.array([np.bincount(np.frombuffer(t.lower().encode("ascii", "ignore"), np.uint8), minlength=128) for t in texts], np.float64)
    counts[:, 0] += 1e-3
    return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def one(texts):
    """Return one vector for all: a model that has collapsed."""
    return np.tile(np.float32([0.6, 0.8]), (len(texts), 1))


def themed(number: int = 40) -> tuple[list[str], list[str]]:
    """Return texts about a few themes, and the theme of each."""
    random = np.random.default_rng(0)
    names = [theme.split()[0] for theme in THEMES for _ in range(number)]
    return [f"{' '.join(random.choice(theme.split(), 3))} item{i}" for theme in THEMES for i in range(number)], names


def by_theme(texts):
    """Return vectors near to their theme's axis."""
    vectors = np.zeros((len(texts), 16))
    for row, text in enumerate(texts):
        noise = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)).normal(size=16)
        vectors[row] = 0.08 * noise
        vectors[row, next(i for i, theme in enumerate(THEMES) if set(theme.split()) & set(text.split()))] += 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# -- tasks ---------------------------------------------------------------------------------------------------------


def test_sts_is_that_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    random = np.random.default_rng(1)
    words = np.array(["the", "a", "red", "blue", "cat", "dog", "house", "runs", "sleeps", "quickly", "today"])
    first, second = ([" ".join(random.choice(words, 5)) for _ in range(200)] for _ in range(2))
    scores = random.integers(0, 6, 200).astype(float)

    class Model:
        similarity_fn_name = "cosine"

        class model_card_data:
            @staticmethod
            def set_evaluation_metrics(*_: object) -> None: ...

        def encode(self, texts, **_: object):
            return letters(texts)

    theirs = EmbeddingSimilarityEvaluator(first, second, scores.tolist(), write_csv=False, main_similarity="cosine")(Model())
    ours = sts(letters, first, second, scores)
    assert ours["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-4)
    assert ours["pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-6)
    # a change of unit changes nothing
    assert sts(letters, first, second, scores / 5)["spearman"] == ours["spearman"]


def test_a_model_that_gives_one_vector_gains_nothing():
    texts, names = themed()
    assert sts(one, texts, texts[::-1], range(len(texts)))["spearman"] == 0
    found = retrieval(one, [f"q{i}" for i in range(50)], texts[:50])
    assert (found["mrr"], found["recall_at_1"]) == (0, 0)
    assert topics(one, texts, Config(), labels=names)["nmi"] == pytest.approx(0, abs=1e-9)


def test_equal_scores_are_refused():
    with pytest.raises(ValueError, match="must differ"):
        sts(letters, ["a", "b"], ["c", "d"], [3, 3])


def test_retrieval_by_hand():
    axis = np.eye(4, dtype=np.float32)
    at = {"p0": axis[0], "p1": axis[1], "p2": axis[2]}
    at["first"] = np.float32([0.9, 0.3, 0.1, 0])  # its positive p0 comes first
    at["second"] = np.float32([0.9, 0.3, 0.1, 0])  # p1 comes second
    at["both"] = np.float32([0.1, 0.2, 0.9, 0])  # p0 third and p1 second: the better counts
    pairs = [("first", "p0"), ("second", "p1"), ("both", "p0"), ("both", "p1"), ("first", "p0"), ("first", "p2")]
    found = retrieval(lambda texts: np.stack([at[t] for t in texts]), *zip(*pairs, strict=True))
    assert found == {
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 2) / 3),
        "recall_at_1": pytest.approx(1 / 3),
        "anchors": 3.0,
        "positives": 3.0,
    }


def test_retrieval_looks_at_ten_places():
    n = 30
    vectors = {f"p{i}": np.float32([math.cos(i / 50), math.sin(i / 50)]) for i in range(n)} | {"q": np.float32([1, 0])}
    for place in (9, 10):
        pairs = [("q", f"p{place}")] + [(f"p{i}", f"p{i}") for i in range(n)]
        found = retrieval(lambda texts: np.stack([vectors[t] for t in texts]), *zip(*pairs, strict=True))
        # every p finds itself
        assert found["mrr"] == pytest.approx((n + (1 / 10 if place == 9 else 0)) / (n + 1))


def test_clustering_is_k_means_with_as_many_clusters_as_labels():
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    texts, names = themed()
    found = clustering(letters, texts, names, seed=3)
    theirs = KMeans(len(THEMES), n_init=10, random_state=3).fit_predict(letters(texts))
    assert found["nmi"] == found["v_measure"] == pytest.approx(normalized_mutual_info_score(names, theirs))
    assert clustering(by_theme, texts, names)["nmi"] == pytest.approx(1)


@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="the extra mteb is not installed")
def test_classification_is_mtebs():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score

    texts, names = themed()
    # by what MTEB's paper says: ten times 8 texts of each label, the order shuffled on and on by one seed
    order, accuracies = list(range(len(texts))), []
    for _ in range(10):
        np.random.RandomState(42).shuffle(order)
        rows = [row for name in dict.fromkeys(names) for row in [i for i in order if names[i] == name][:8]]
        rows.sort(key=order.index)
        model = LogisticRegression(max_iter=100, random_state=42).fit(letters([texts[i] for i in rows]), [names[i] for i in rows])
        accuracies.append(accuracy_score(names, model.predict(letters(texts))))
    before = np.random.get_state()[1].tolist()
    found = classification(letters, (texts, names), (texts, names))
    assert found["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert found["stderr"] == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(10), abs=1e-9)
    assert 0 < found["stderr"] < 0.1
    assert np.random.get_state()[1].tolist() == before  # mteb seeds NumPy's generator


@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="the extra mteb is not installed")
def test_two_of_more_classes_can_be_judged_by():
    texts, names = themed()
    first, last = min(names), max(names)  # of four: 0 and 3 by the alphabet
    rows = [row for row, name in enumerate(names) if name in (first, last)]
    found = classification(letters, (texts, names), ([texts[i] for i in rows], [names[i] for i in rows]))
    assert 0 < found["accuracy"] <= 1
    assert (found["labels"], found["documents"]) == (4, len(rows))


def test_topics_of_themes_are_found_with_their_words():
    texts, names = themed()
    # EVoC finds four or five here, by how a processor rounds
    config = load(overrides=["cluster.algorithm=hdbscan"])
    found = topics(by_theme, texts, config, labels=[*names[:-10], *[None] * 10])
    assert (found["topics"], found["nmi"] > 0.95, found["documents"], found["labelled"]) == (4, True, 160, 150)
    assigned, core = fit(by_theme(texts), config)
    assert (core[assigned == -1]).all()
    assert 0.5 <= core.mean() < 1
    words, coherence = keywords(texts, assigned, core, config.terms)
    assert sorted(next(i for i, theme in enumerate(THEMES) if set(w[:3]) <= set(theme.split())) for w in words) == [0, 1, 2, 3]
    assert coherence == found["npmi"] > -0.9
    assert found["outlier_share"] == (assigned == -1).mean()


def test_topic_words_are_those_of_the_job():
    """By the formula of c-TF-IDF, outliers a class of their own; what is at the rim of a topic gives it no words."""
    texts = ["oil oil gas", "oil gas gas", "court court judge", "oil the the", "rim rim rim"]
    assigned, core = np.array([0, 0, 1, -1, 0], np.int32), np.array([True, True, True, True, False])
    weight = {"oil": 3 / 6 * math.log(1 + 3 / 4), "gas": 3 / 6 * math.log(1 + 3 / 3)}  # 10 terms, 3 classes: 3 a class
    words, _ = keywords(texts, assigned, core, Config().terms)
    assert words == [sorted(weight, key=lambda w: -weight[w]), ["court", "judge"]]


def test_without_topics_coherence_is_the_least():
    scattered = np.eye(12, dtype=np.float32)
    found = topics(lambda texts: scattered[: len(texts)], [f"text {i}" for i in range(12)], Config())
    assert (found["npmi"], found["topics"], found["outlier_share"]) == (-1, 0, 1)


def test_the_same_documents_are_chosen_whatever_their_order():
    keys = [f"document {i}" for i in range(100)]
    rows = chosen(keys, 20)
    assert len(set(rows.tolist())) == 20
    assert [keys[i] for i in rows] == [keys[::-1][i] for i in chosen(keys[::-1], 20)]


# -- how tasks are written, and what is refused --------------------------------------------------------------------


def test_tasks_as_they_are_written():
    assert tasks.parse("sts=a/b.tsv:_c5,_c6,_c4") == tasks.Task("sts", ("a/b.tsv",), ("_c5", "_c6", "_c4"))
    assert tasks.parse("sts=a.csv").columns == ()  # found by their usual names
    assert tasks.parse("classification=a.csv,b.csv:text,category") == tasks.Task("classification", ("a.csv", "b.csv"), ("text", "category"))
    assert tasks.parse("topics") == tasks.Task("topics")
    assert tasks.parse("topics=a.csv:body").columns == ("body",)
    assert tasks.parse("topics=a.csv:body,desk").columns == ("body", "desk")
    # a colon in a folder's name names no columns
    assert tasks.parse("clustering=/data/a:b/c.csv").paths == ("/data/a:b/c.csv",)
    several = [tasks.parse(t) for t in ("sts=x/dev.tsv", "sts=x/test.tsv", "topics")]
    assert tasks.names(several) == ["sts:dev", "sts:test", "topics"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stss=a.csv", "Did you mean 'sts'"),
        ("accuracy=a.csv", "classification, clustering"),
        ("sts", "must name its file"),
        ("clustering=", "must name its file"),
        ("sts=a.csv:x,y", "sentence1,sentence2,score"),
        ("classification=a.csv", "TRAIN,TEST"),
        ("clustering=a.csv:text,", "must be written"),
    ],
)
def test_what_no_task_is(text: str, said: str):
    with pytest.raises(RequestError, match=said):
        tasks.parse(text)


def test_files_and_columns_are_checked_before_anything_is_embedded(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("text,label,score\none,a,1\ntwo,b,1\n")

    def load(text: str) -> None:
        tasks.load([tasks.parse(text)])

    load(f"clustering={file}")
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        load("clustering=nowhere.csv")
    with pytest.raises(InputError, match="category"):
        load(f"clustering={file}:text,category")
    with pytest.raises(InputError, match="at least two labels"):
        load(f"clustering={file}:text,score")
    with pytest.raises(InputError, match="scores that differ"):
        load(f"sts={file}:text,label,score")
    with pytest.raises(InputError, match="two distinct positives"):
        load(f"retrieval={file}:text,score")
    with pytest.raises(RequestError, match="--store"):
        load("topics")
    with pytest.raises(RequestError, match="twice"):
        tasks.load([tasks.parse(f"clustering={file}")] * 2)


# -- ranking -------------------------------------------------------------------------------------------------------


def scores(spearman: float, npmi: float, outliers: float = 0.1) -> dict[str, dict[str, float]]:
    return {"sts": {"spearman": spearman, "pearson": 0.5}, "topics": {"npmi": npmi, "outlier_share": outliers, "topics": 7.0}}


def test_models_are_ranked_by_the_mean_of_their_ranks():
    rows = ranked({"a": scores(0.8, 0.1), "b": scores(0.9, 0.1), "c": scores(0.7, 0.0)})
    # topics: a and b share places 1 and 2
    assert [(row.model, row.rank) for row in rows] == [("b", 1.25), ("a", 1.75), ("c", 3.0)]
    shown = table(rows).splitlines()
    assert shown[0].split() == ["model", "rank", "sts.spearman", "sts.pearson", "topics.npmi", "topics.outlier_share"]
    assert shown[1].split() == ["b", "1.25", "0.9000*", "0.5000*", "0.1000*", "0.1000*"]
    assert shown[3].split() == ["c", "3", "0.7000", "0.5000*", "0.0000", "0.1000*"]


@pytest.mark.parametrize(
    ("after", "measure", "margin", "ok"),
    [
        (scores(0.81, 0.1), "sts.spearman", 0.0, True),
        (scores(0.81, 0.1), "sts", 0.0, True),
        (scores(0.80, 0.1), "sts.spearman", 0.0, False),
        (scores(0.81, 0.1), "sts.spearman", 0.01, False),
        (scores(0.79, 0.1), "sts.spearman", -0.02, True),
        (scores(math.nan, 0.1), "sts.spearman", 0.0, False),
        (scores(0.8, 0.1, outliers=0.05), "topics.outlier_share", 0.0, True),
        (scores(0.8, 0.1, outliers=0.15), "topics.outlier_share", 0.0, False),
    ],
)
def test_whether_a_model_is_better_than_its_base(after, measure: str, margin: float, ok: bool):
    verdict = better(scores(0.8, 0.1), after, measure, margin)
    assert verdict.ok is ok
    assert "base's" in verdict.text


def test_the_verdict_says_the_figures():
    assert better(scores(0.8, 0), scores(0.75, 0), "sts").text == "sts.spearman 0.7500 is worse than the base's 0.8000 (-0.0500)"
    assert "but not by enough" in better(scores(0.8, 0), scores(0.81, 0), "sts", 0.05).text


def test_a_measure_that_was_not_taken():
    with pytest.raises(RequestError, match=r"Did you mean 'sts.spearman'"):
        better(scores(0.8, 0.1), scores(0.8, 0.1), "sts.spearmann")


# -- the job -------------------------------------------------------------------------------------------------------


def test_a_model_is_judged_and_ranked(tmp_path: Path):
    texts, names = themed(10)
    file = tmp_path / "themes.csv"
    file.write_text("body,theme\n" + "".join(f"{text},{name}\n" for text, name in zip(texts, names, strict=True)))
    said: list[str] = []
    found = jobs.judge(["all-MiniLM-L6-v2", str(resolve("all-MiniLM-L6-v2").path)], [f"clustering={file}:body,theme"], progress=said.append)
    assert [row["rank"] for row in found["models"]] == [1.5, 1.5]
    assert found["models"][0]["scores"]["clustering"]["nmi"] > 0.8
    assert found["tasks"] == [{"task": "clustering", "rows": 40, "dropped": 0, "chief": "clustering.nmi"}]
    assert jobs.describe(found).splitlines()[0].split() == ["model", "rank", "clustering.nmi", "clustering.v_measure"]
    assert len(said) == 2


def test_documents_of_a_store_with_its_settings(tmp_path: Path):
    import pyarrow as pa

    store = site(tmp_path / "store", (0, 1, 2))
    texts, names = themed()
    rows = {"doc_id": [f"{i:03d}" for i in range(160)], "partition_id": ["p"] * 160, "text": texts, "text_hash": texts, "theme": names}
    path = store.table_path("documents")
    write_deltalake(path, pa.table(rows), partition_by=["partition_id"], mode="overwrite", schema_mode="overwrite")
    changed = Config.from_dict({"topics": {"min_size": 20}})
    store.publish(configuration=changed.to_dict(), summary={"documents": 160}, unit_fingerprint=fingerprint("another"))
    corpus = jobs.corpus(str(tmp_path / "store"), labels="theme")
    assert (corpus.documents, corpus.config.topics.min_size) == (160, 20)
    assert dict(zip(corpus.texts, corpus.labels or (), strict=True)) == dict(zip(texts, names, strict=True))
    assert corpus.texts == tuple(texts[i] for i in chosen(rows["doc_id"]))
    measured = tasks.load([tasks.parse("topics")], corpus=corpus)[0].run(by_theme)
    assert (measured["topics"], measured["nmi"] > 0.95) == (4, True)
    judged = {"tasks": [], "models": [{"model": "themes", "rank": 1.0, "ranks": {}, "scores": {"topics": measured}}]}
    assert jobs.describe(judged).endswith("topics of themes: 4 topics; NMI over 160 of 160 documents")
    with pytest.raises(RequestError, match="theme"):
        jobs.corpus(str(tmp_path / "store"), labels="nope")
    labelled, plain = (jobs.prepared([tasks.parse("topics")], str(tmp_path / "store"), labels=name)[0] for name in ("theme", None))
    assert set(labelled.measures) - set(plain.measures) == {"nmi"}
    gone = Config.from_dict({"cluster": {"algorithm": "no.such.Clusterer"}})
    store.publish(configuration=gone.to_dict(), summary={"documents": 160}, unit_fingerprint=fingerprint("a third"))
    with pytest.raises(ConfigError, match=r"no\.such\.Clusterer"):  # before anything is embedded
        jobs.prepared([tasks.parse("topics")], str(tmp_path / "store"))


def test_models_are_judged_behind_the_stores_prompt(tmp_path: Path):
    store = site(tmp_path / "store", (0, 1))
    config = Config(embedding=EmbeddingConfig(prompt="oil gas barrel and nothing else: ", max_tokens=9000))
    store.publish(configuration=config.to_dict(), summary=store.pin().summary, unit_fingerprint=fingerprint("again"))
    file = tmp_path / "pairs.csv"
    rows = [("oil", "gas", 0.9), ("oil", "court", 0.1), ("trial", "judge", 0.8), ("moon", "nurse", 0.0), ("a dose", "a vaccine", 0.7)]
    file.write_text("sentence1,sentence2,score\n" + "".join(f"{one},{two},{score}\n" for one, two, score in rows))
    alone, stores = (
        jobs.judge(["all-MiniLM-L6-v2"], [f"sts={file}"], store=name)["models"][0]["scores"]["sts"]["pearson"]
        for name in (None, str(store.path))
    )
    encode = Embedder(EmbeddingConfig(prompt=config.embedding.prompt, dtype="float32"), threads=1).encode
    behind = sts(lambda texts: encode(texts).vectors, *zip(*rows, strict=True))["pearson"]
    assert stores == pytest.approx(behind, abs=1e-3)
    assert abs(alone - stores) > 1e-2


@pytest.mark.skipif(not STSB.exists(), reason="needs the shared data")
def test_stsb_of_the_packaged_model():
    """all-MiniLM-L6-v2 on STSB dev: .867 by sentence-transformers' evaluator."""
    ready = tasks.load([tasks.parse(f"sts={STSB}:_c5,_c6,_c4")])[0]
    assert ready.rows == 1500
    embedder = Embedder(EmbeddingConfig(), threads=1)
    found = ready.run(lambda texts: embedder.encode(texts).vectors)
    assert found["spearman"] == pytest.approx(0.8672, abs=2e-3)


def test_a_model_whose_training_diverged_is_named(monkeypatch):
    """It is kept, and can be judged by its folder."""
    model = resolve("all-MiniLM-L6-v2")
    monkeypatch.setattr(
        "topicscale.embedding.Embedder.encode", lambda *_, **__: SimpleNamespace(vectors=np.full((2, 3), np.nan, np.float32))
    )
    with pytest.raises(ModelError, match="'all-MiniLM-L6-v2' gives vectors that are not finite"):
        jobs.encoder(model)(["a", "b"])
