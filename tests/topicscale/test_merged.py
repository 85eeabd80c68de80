"""What can be had of a merged store, which has topics and no documents, and what is refused in so many words."""

from __future__ import annotations

import numpy as np
import pytest

from jobs import cli
from jobs.merge import merge
from jobs.run import run
from tests.topicscale.stores import THEMES, site
from topicscale import TopicModel
from topicscale.config import load
from topicscale.errors import ModelError, RequestError, StoreError
from topicscale.report import build
from topicscale.report import load as read
from topicscale.store import Store

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [site(folder / "clinic", [0, 1, 2], seed=1).uri, site(folder / "lab", [2, 0, 4, 5], seed=2, outliers=0).uri]


@pytest.fixture(scope="module")
def merged(stores, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("merged") / "all")
    merge([(HOSTILE, stores[0]), stores[1]], path, similarity=0.7)
    return path


def test_topics_and_terms_are_the_sums_of_the_sites(merged) -> None:
    model = TopicModel.load(merged)
    info = model.get_topic_info()
    assert info["Topic"].tolist() == [-1, 0, 1, 2, 3, 4]
    # football: 30 + 40, oil: 40 + 35
    assert info["Count"].tolist() == [5, 75, 70, 35, 30, 25]
    assert [sorted(words) for words in info["Representation"][1:3]] == [sorted(THEMES[0].split()), sorted(THEMES[2].split())]
    assert model.get_topic(0)[0][1] > 0
    assert set(model.get_topics(full=True)["Main"]) == set(info["Topic"])
    assert model.get_topic_freq(1) == 70
    assert model.get_topic_freq()["Count"].sum() == 240
    assert model.topic_embeddings_.shape == (6, 16)
    assert sum(model.topic_sizes_.values()) == 240


def test_topics_by_site(merged) -> None:
    rows = TopicModel.load(merged).get_topics_per_site()
    assert rows.columns.tolist() == ["Site", "Topic", "Name", "Count", "Similarity", "Shared"]
    assert rows[["Site", "Topic", "Count", "Shared"]].to_numpy().tolist() == [
        [HOSTILE, -1, 5, False],
        [HOSTILE, 0, 40, True],
        [HOSTILE, 1, 30, True],
        [HOSTILE, 2, 35, False],
        ["lab", 0, 35, True],
        ["lab", 1, 40, True],
        ["lab", 3, 30, False],
        ["lab", 4, 25, False],
    ]
    assert (rows["Similarity"][rows["Topic"] >= 0] > 0.95).all()


def test_a_sites_own_store_has_no_other_sites(stores) -> None:
    with pytest.raises(StoreError, match="topicscale merge"):
        TopicModel.load(stores[0]).get_topics_per_site()


def test_vectors_of_new_documents_go_to_the_nearest_topic(merged) -> None:
    model = TopicModel.load(merged)
    topics, probabilities = model.transform(["oil", "match"], embeddings=np.eye(16)[[0, 2]])
    assert topics == [0, 1]
    assert (probabilities > 0.9).all()
    # the embedding model of these stores is none that is here
    with pytest.raises(ModelError, match="is not the one this store was made with"):
        model.transform(["oil"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.topics_,
        lambda model: model.probabilities_,
        lambda model: model.get_document_info(),
        lambda model: model.fit(["a text"] * 5),
    ],
)
def test_what_is_about_documents_is_refused(merged, ask) -> None:
    with pytest.raises(StoreError, match=r"holds (merged )?topics (and no documents|that came from elsewhere)"):
        ask(TopicModel.load(merged))


def test_a_run_into_a_merged_store_is_refused_before_it_starts(merged, tmp_path) -> None:
    (tmp_path / "c.csv").write_text("text\none\n")
    before = Store(merged).snapshots()
    with pytest.raises(StoreError, match="came from elsewhere"):
        run(load(values={"input": {"paths": [str(tmp_path / "c.csv")]}}), merged)
    assert Store(merged).snapshots() == before


def test_every_command_answers_or_refuses_in_one_line(merged, tmp_path, capsys) -> None:
    assert cli.main(["topics", "--store", merged]) == 0
    assert "oil" in capsys.readouterr().out
    assert cli.main(["status", "--store", merged]) == 0
    said = capsys.readouterr().out
    assert "240 documents, 5 topics, 5 outliers" in said
    assert "lab: 130 documents, 4 topics, 2 matched others'" in said
    assert "pending" not in said
    assert cli.main(["report", "--store", merged, "--output", str(tmp_path / "r.html")]) == 0
    capsys.readouterr()
    for command in (["evaluate"], ["evaluate", "--labels", "x"], ["update", "--refit"], ["update", "--input", "x.csv"]):
        assert cli.main([*command, "--store", merged]) == 2
        error = capsys.readouterr().err
        assert "holds merged topics and no documents" in error
        assert len(error.splitlines()) == 1


def test_topics_matched_by_words_over_two_models_have_no_vectors(stores, tmp_path) -> None:
    other = site(tmp_path / "other", [0, 3], seed=3, space="another", dimensions=24).uri
    with pytest.raises(RequestError, match="--match terms"):
        merge([stores[0], other], tmp_path / "all")
    model = TopicModel.merge([stores[0], other], store=tmp_path / "all", match="terms", similarity=0.6)
    shared = model.get_topics_per_site().query("Shared")
    assert [{word for word, _ in model.get_topic(topic)} for topic in shared["Topic"].unique()] == [{"oil", "gas", "barrel"}]
    assert model.topic_embeddings_.shape == (len(model.get_topic_info()), 0)
    for ask in (lambda: model.transform(["oil"]), lambda: model.transform(["x"], np.eye(16)[:1]), lambda: model.find_topics("oil")):
        with pytest.raises(StoreError, match="more than one embedding model, matched by their words"):
            ask()
    assert "words" in build(read(Store(tmp_path / "all")))


def test_vectors_that_came_with_the_documents_stay_the_only_ones(stores, tmp_path) -> None:
    given = site(tmp_path / "given", [0, 1])
    precomputed = load(values={"input": {"embedding_column": "vector"}}).to_dict()
    given.publish(configuration=precomputed, summary=given.snapshots()[-1].summary)
    model = TopicModel.merge([given.uri], similarity=0.7)
    with pytest.raises(ModelError, match="precomputed"):
        model.transform(["oil"])
    assert model.transform(["oil"], np.eye(16)[:1])[0] == [0]


def test_merging_is_a_class_method_under_both_names(stores, merged, tmp_path) -> None:
    ours = TopicModel.merge({HOSTILE: TopicModel.load(stores[0]), "lab": stores[1]}, similarity=0.7)
    expected = TopicModel.load(merged)
    assert ours.get_topic_info().equals(expected.get_topic_info())
    assert ours.get_topics_per_site().equals(expected.get_topics_per_site())
    theirs = TopicModel.merge_models([TopicModel.load(uri) for uri in stores[::-1]], min_similarity=0.7, store=tmp_path / "m")
    assert theirs.store == str(tmp_path / "m")
    assert theirs.get_topic_info().equals(expected.get_topic_info())
    assert TopicModel.merge(stores).get_topic_info()["Count"].sum() == 240  # by the sites' own granularity
    with pytest.raises(StoreError, match="not fitted"):
        TopicModel.merge([TopicModel(), stores[0]])
    with pytest.raises(RequestError, match="at least one"):
        TopicModel.merge([])


def test_the_report_of_merged_topics(merged) -> None:
    TopicModel.load(merged).set_topic_labels({0: "Energy"})
    data = read(Store(merged))
    assert [topic.topic_id for topic in data.topics] == [0, 1, 2, 3, 4, -1]
    assert data.topics[0].name == "Energy"
    assert (data.map, data.quarantine, data.lineage, data.total) == (None, {}, (), 240)
    assert [(s.name, s.documents, s.outliers, len(s.shared), len(s.only_here)) for s in data.sites] == [
        (HOSTILE, 110, 5, 2, 1),
        ("lab", 130, 0, 2, 2),
    ]
    html = build(data)
    assert "240 documents of 2 sites in 5 topics" in html
    assert HOSTILE not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    for absent in ('id="quarantine"', 'id="lineage"', 'id="plot"', 'id="timings"'):
        assert absent not in html


def test_names_in_conflict_are_on_the_page(stores, tmp_path) -> None:
    one, two = site(tmp_path / "one", [0, 1], seed=5), site(tmp_path / "two", [0, 3], seed=6)
    TopicModel.load(one.uri).set_topic_labels({0: "Energy"})
    TopicModel.load(two.uri).set_topic_labels({0: f"Oil {HOSTILE}"})
    merge([one.uri, two.uri], tmp_path / "all", similarity=0.7)
    data = read(Store(tmp_path / "all"))
    assert len(data.conflicts) == 1
    assert {data.topics[0].name, *data.conflicts[0]} == {"Energy", f"Oil {HOSTILE}"}
    html = build(data)
    assert "Names that sites disagree on" in html
    assert HOSTILE not in html


def test_two_sites_of_one_name_are_told_apart(tmp_path) -> None:
    one, two = site(tmp_path / "a" / "store", [0, 1], seed=7), site(tmp_path / "b" / "store", [0, 3], seed=8)
    merge([one.uri, two.uri], tmp_path / "all", similarity=0.7)
    data = read(Store(tmp_path / "all"))
    assert [s.name for s in data.sites] == ["store", "store"]
    html = build(data)
    assert f"store ({one.site_id[:8]})" in html
    assert f"store ({two.site_id[:8]})" in html
