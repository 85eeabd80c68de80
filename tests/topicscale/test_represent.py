"""Aspects' words equal those of BERTopic's own classes; where they differ, a test says how."""

import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from topicscale.cluster import unit
from topicscale.errors import ConfigError, MissingDependency, ModelError
from topicscale.represent import pos, steps
from topicscale.represent.keybert import keybert
from topicscale.represent.mmr import diverse, mmr
from topicscale.represent.steps import Step, describe, parse
from topicscale.represent.view import View

DIMENSIONS = 32


def encode(texts):
    """A word's vector comes from its hash, a text's is the sum of its words'; an empty text's is zero."""
    rows = np.zeros((len(texts), DIMENSIONS))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row += np.random.default_rng(zlib.crc32(word.encode())).random(DIMENSIONS) ** 3
    return unit(rows).astype(np.float32)


def view(terms, documents=(), *, topic_id=0, centre=None):
    pairs = tuple(term if isinstance(term, tuple) else (term, 1.0 / (i + 1)) for i, term in enumerate(terms))
    return View(topic_id, pairs, tuple(documents), encode(documents), centre)


def words(found):
    return [word for word, _ in found]


def assert_same(ours, theirs):
    assert words(ours) == words(theirs)
    np.testing.assert_allclose([weight for _, weight in ours], [weight for _, weight in theirs], rtol=0, atol=1e-5)


# BERTopic


@pytest.fixture(scope="module")
def fitted():
    """A model of BERTopic's with aspects, the views of its topics, and its documents; the last topic has two documents."""
    pytest.importorskip("bertopic")
    from bertopic import BERTopic
    from bertopic.backend import BaseEmbedder
    from bertopic.cluster import BaseCluster
    from bertopic.dimensionality import BaseDimensionalityReduction
    from bertopic.representation import BaseRepresentation, KeyBERTInspired, MaximalMarginalRelevance

    class Toy(BaseEmbedder):
        def embed(self, documents, verbose=False):
            return encode(documents)

    class Given(BaseRepresentation):
        def extract_topics(self, topic_model, documents, c_tf_idf, topics):
            return topics

    rng = np.random.default_rng(7)
    vocabulary = np.array([f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in "nprst"])
    topics = [0] * 15 + [1] * 12 + [2] * 9 + [3] * 2
    shares = [rng.dirichlet(np.full(len(vocabulary), 0.3)) for _ in range(4)]
    documents = [" ".join(rng.choice(vocabulary, 40, p=shares[topic])) for topic in topics]
    model = BERTopic(
        embedding_model=Toy(),
        umap_model=BaseDimensionalityReduction(),
        hdbscan_model=BaseCluster(),
        representation_model={
            "Given": Given(),
            "Near": KeyBERTInspired(),
            "Diverse": MaximalMarginalRelevance(diversity=0.4),
            "Chain": [KeyBERTInspired(top_n_words=30), MaximalMarginalRelevance(diversity=0.6, top_n_words=8)],
        },
    )
    model.fit(documents, y=topics)

    import pandas as pd

    frame = pd.DataFrame({"Document": documents, "Topic": model.topics_, "ID": range(len(documents))})
    _, chosen, positions, _ = model._extract_representative_docs(model.c_tf_idf_, frame, model.topic_representations_, 500, 5)
    names = model.vectorizer_model.get_feature_names_out()
    views = []
    for topic in sorted(set(model.topics_)):
        weights = model.c_tf_idf_[topic].toarray()[0]
        best = [pair for pair in model.topic_aspects_["Given"][topic] if pair[0]]  # equal weights in BERTopic's order
        terms = best + [(str(names[i]), float(weights[i])) for i in np.argsort(-weights) if weights[i] > 0 and names[i] not in dict(best)]
        views.append(view(terms, [chosen[i] for i in positions[topic]], topic_id=topic))
    return model, views, frame


@pytest.mark.parametrize(
    ("aspect", "chain"),
    [
        ("Near", "keybert"),
        ("Diverse", {"type": "mmr", "diversity": 0.4}),
        ("Chain", [{"type": "keybert", "top_n_words": 30}, {"type": "mmr", "diversity": 0.6, "top_n_words": 8}]),
        ("Chain", ["keybert", {"type": "mmr", "diversity": 0.6, "top_n_words": 8}]),
    ],
)
def test_aspects_are_those_of_a_model_of_bertopics(fitted, aspect, chain):
    model, views, _ = fitted
    found = describe(views, parse({aspect: chain})[aspect], encode)
    assert [len(v.documents) for v in views] == [5, 5, 5, 2]
    for v, ours in zip(views, found, strict=True):
        assert_same(ours, model.topic_aspects_[aspect][v.topic_id])


def test_keybert_averages_the_topics_own_documents_where_bertopic_averages_the_first_of_the_corpus(fitted):
    from bertopic.representation import KeyBERTInspired

    model, views, frame = fitted
    ours = keybert(views, encode)
    vectors = encode(frame.Document.tolist())
    mistaken = KeyBERTInspired().extract_topics(model, frame, model.c_tf_idf_, model.topic_representations_, embeddings=vectors)
    assert any(words(found) != words(mistaken[topic]) for topic, found in enumerate(ours))
    # the same call is right once the vectors lie where it looks for them
    own = np.concatenate([v.vectors for v in views])
    put_right = KeyBERTInspired().extract_topics(model, frame, model.c_tf_idf_, model.topic_representations_, embeddings=own)
    for topic, found in enumerate(ours):
        assert_same(found, put_right[topic])


@pytest.mark.parametrize("diversity", [0.0, 0.1, 0.5, 1.0])
def test_the_choice_equals_bertopics(diversity):
    theirs = pytest.importorskip("bertopic.representation._mmr").mmr
    for seed in range(20):
        rng = np.random.default_rng(seed)
        query, vectors = rng.normal(size=(1, 24)).astype(np.float32), rng.normal(size=(40, 24)).astype(np.float32)
        vectors[seed % 40] = 0.0
        assert mmr(query[0], vectors, 12, diversity) == theirs(query, vectors, list(range(40)), diversity, 12)


# maximal marginal relevance

VECTORS = npst.arrays(np.float32, st.tuples(st.integers(0, 12), st.just(3)), elements=st.integers(-3, 3).map(float))
QUERY = npst.arrays(np.float32, 3, elements=st.integers(-3, 3).map(float))
SHARE = st.floats(0, 1)


@given(QUERY, VECTORS, st.integers(0, 15), SHARE)
@settings(deadline=None, max_examples=60)
def test_each_is_chosen_once_and_fewer_are_the_beginning_of_more(query, vectors, number, diversity):
    chosen = mmr(query, vectors, number, diversity)
    assert len(chosen) == min(number, len(vectors))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(len(vectors)))
    for fewer in range(number):
        assert mmr(query, vectors, fewer, diversity) == chosen[:fewer]
    assert sorted(mmr(query, vectors, len(vectors), diversity)) == list(range(len(vectors)))


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False), SHARE)
@settings(deadline=None, max_examples=30)
def test_the_order_of_the_candidates_does_not_matter(seed, random, diversity):
    rng = np.random.default_rng(seed)
    query, vectors = rng.normal(size=6), rng.normal(size=(9, 6))
    order = list(range(9))
    random.shuffle(order)
    assert [order[i] for i in mmr(query, vectors[order], 5, diversity)] == mmr(query, vectors, 5, diversity)


@given(st.integers(0, 2**32 - 1), st.integers(2, 70), SHARE)
@settings(deadline=None, max_examples=30)
def test_of_equals_the_first_is_chosen_first(seed, number, diversity):
    row = np.random.default_rng(seed).normal(size=17)
    assert mmr(np.ones(17), np.tile(row, (number, 1)), number, diversity) == list(range(number))


def test_without_diversity_the_nearest_are_chosen_and_with_all_of_it_a_double_comes_last():
    vectors = np.array([[1.0, 0.1], [1.0, 0.1], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert mmr(np.array([1.0, 0.0]), vectors, 3, 0.0) == [0, 1, 3]
    assert mmr(np.array([1.0, 0.0]), vectors, 5, 1.0)[-1] == 1
    assert mmr(np.zeros(2), vectors, 2, 0.0) == [0, 1]
    assert mmr(np.array([1.0, 0.0]), vectors, 0, 0.5) == mmr(np.array([1.0, 0.0]), vectors[:0], 3, 0.5) == []


def test_diverse_words_keep_their_order_and_weights():
    doubled = {"oil": "crude", "oils": "crude", "oily": "crude", "gas": "methane", "wind": "turbine"}
    near = [("oil", 0.9), ("oils", 0.8), ("oily", 0.7), ("gas", 0.6), ("wind", 0.5)]
    found = diverse([view(near)], lambda texts: encode([doubled.get(t, t) for t in texts]), diversity=0.9, top_n_words=3)
    assert found == [[("oil", 0.9), ("gas", 0.6), ("wind", 0.5)]]


def test_diverse_words_are_chosen_from_thirty_or_from_as_many_as_are_asked_for():
    terms = [f"w{i}" for i in range(100)]
    assert len(diverse([view(terms)], encode, top_n_words=60)[0]) == 60
    best = set(terms[:30])
    assert set(words(diverse([view(terms)], encode, diversity=1.0)[0])) <= best
    assert not set(words(diverse([view(terms)], encode, diversity=1.0, nr_candidate_words=None)[0])) <= best


# edge cases of all steps that need vectors


@pytest.mark.parametrize("step", [keybert, diverse])
def test_few_empty_and_repeated_words(step):
    views = [
        view([], ["oil gas"]),
        view(["oil"], ["oil gas"]),
        view(["oil", "", "gas", " ", "oil"], ["oil gas", ""]),
        view(["oil", "gas"]),
        view([("", 1e-5)], ["oil"]),
    ]
    found = step(views, encode)
    assert [sorted(words(pairs)) for pairs in found] == [[], ["oil"], ["gas", "oil"], ["gas", "oil"], []]
    assert step([], encode) == []
    assert all(type(weight) is float for pairs in found for _, weight in pairs)


def test_a_topic_without_documents_goes_by_its_centre_or_keeps_its_words():
    terms = [f"w{i}" for i in range(20)]
    centre = encode(["w13"])[0]
    near, kept, empty = keybert([view(terms, centre=centre), view(terms), view(terms, [""])], encode, top_n_words=3)
    assert near[0] == ("w13", pytest.approx(1.0))
    assert kept == empty == [("w0", 1.0), ("w1", 0.5), ("w2", pytest.approx(1 / 3))]


def test_keybert_goes_by_the_first_documents_and_the_best_terms_alone():
    terms = [f"w{i}" for i in range(200)]
    documents = ["w5 w6", "w7 w8", "w150"]
    assert keybert([view(terms, documents)], encode, nr_repr_docs=2) == keybert([view(terms, documents[:2])], encode)
    assert "w150" not in words(keybert([view(terms, ["w150"])], encode)[0])
    assert words(keybert([view(terms, ["w150"])], encode, nr_candidate_words=200)[0])[0] == "w150"


def test_keybert_encodes_every_word_once_and_blocks_change_nothing(monkeypatch):
    views = [view([f"w{i}" for i in range(start, start + 20)], [f"w{start + 3} w{start + 9}"]) for start in range(0, 50, 5)]
    whole = keybert(views, encode)
    seen = []
    monkeypatch.setattr("topicscale.represent.keybert._WORDS", 7)
    monkeypatch.setattr("topicscale.represent.keybert._PAIRS", 3)
    assert keybert(views, lambda texts: seen.append(list(texts)) or encode(texts)) == whole
    assert max(map(len, seen)) == 7
    assert sorted(word for texts in seen for word in texts) == sorted({word for v in views for word, _ in v.terms})


def test_diverse_words_do_not_depend_on_which_topics_are_encoded_together(monkeypatch):
    views = [view([f"w{i}" for i in range(start, start + 20)]) for start in range(0, 50, 5)]
    whole = diverse(views, encode, diversity=0.5)
    monkeypatch.setattr("topicscale.represent.mmr._TOPICS", 3)
    assert diverse(views, encode, diversity=0.5) == whole


def test_vectors_of_two_models_are_refused():
    with pytest.raises(ModelError, match=r"have 5 numbers and the documents' 32"):
        keybert([view(["oil"], ["oil"])], lambda texts: np.ones((len(texts), 5), np.float32))


def test_a_view_has_a_vector_for_each_document():
    with pytest.raises(ValueError, match="2 documents and 1 vectors"):
        View(3, (), ("a", "b"), encode(["a"]))


# chains


def test_a_chain_ranks_the_words_it_was_given():
    terms = [f"w{i}" for i in range(100)]
    v = view(terms, ["w3 w60 w1"])
    first = describe([v], [Step("keybert", {"top_n_words": 3})], encode)[0]
    assert {"w3", "w60", "w1"} == set(words(first))
    second = describe([v], parse({"a": [{"type": "ctfidf", "top_n_words": 5}, "keybert"]})["a"], encode)[0]
    assert set(words(second)) == set(terms[:5])
    assert {"w3", "w1"} == set(words(second)[:2])
    many = view([f"w{i}" for i in range(200)], ["w150"])
    assert words(describe([many], parse({"a": [{"type": "ctfidf", "top_n_words": 180}, "keybert"]})["a"], encode)[0])[0] == "w150"


def test_a_chain_gives_as_many_words_as_its_last_step_says_or_the_topics_have():
    v = view([f"w{i}" for i in range(100)], ["w3 w60 w1"])
    counts = {
        "plain": ("ctfidf", 7),
        "near": ("keybert", 7),
        "said": ({"type": "keybert", "top_n_words": 4}, 4),
        "chain": (["keybert", {"type": "mmr", "top_n_words": 12}], 12),
        "label": (["keybert", "llm"], 7),
        "llm": ("llm", 7),
    }
    for name, (chain, number) in counts.items():
        assert len(describe([v], parse({name: chain})[name], encode, top_n_words=7)[0]) == number, name
    assert describe([v], parse({"llm": "llm"})["llm"], encode, top_n_words=2) == [[("w0", 1.0), ("w1", 0.5)]]
    assert len(describe([v], parse({"a": ["keybert", "mmr"]})["a"], encode, top_n_words=45)[0]) == 45


def test_steps_are_read_from_names_mappings_and_lists():
    read = parse(
        {
            "keybert": "keybert",
            "diverse": ["keybert", {"type": "mmr", "diversity": 1}],
            "grammar": {"type": "pos", "model": "de_core_news_sm", "pos_patterns": [[{"POS": "NOUN"}]]},
            "llm": [{"type": "ctfidf", "top_n_words": 5.0}, "llm"],
            "ctfidf": ["ctfidf"],
            "Länder-2_b": "ctfidf",
        }
    )
    assert read["keybert"] == (Step("keybert"),)
    assert read["diverse"] == (Step("keybert"), Step("mmr", {"diversity": 1.0}))
    assert read["grammar"][0].parameters == {"model": "de_core_news_sm", "pos_patterns": [[{"POS": "NOUN"}]]}
    assert read["llm"] == (Step("ctfidf", {"top_n_words": 5}), Step("llm"))
    assert list(read) == ["keybert", "diverse", "grammar", "llm", "ctfidf", "Länder-2_b"]


@pytest.mark.parametrize(
    ("aspects", "parts"),
    [
        ({"a": "keybret"}, ["represent.aspects.a ", "'keybret'", "'keybert'"]),
        ({"a": "MaximalMarginalRelevance"}, ["'mmr'"]),
        ({"a": ["keybert", "PartOfSpeech"]}, ["represent.aspects.a[1]", "'pos'"]),
        ({"a": "xyzzy"}, ["'xyzzy'", "ctfidf, keybert, mmr, pos, llm"]),
        ({"a": {"type": "mmr", "diversty": 0.5}}, ["represent.aspects.a.diversty", "0.5", "'diversity'"]),
        ({"a": ["keybert", {"type": "mmr", "diversity": 2}]}, ["represent.aspects.a[1].diversity", "between 0 and 1", "Got 2 "]),
        ({"a": {"type": "mmr", "diversity": "much"}}, ["represent.aspects.a.diversity", "'much'"]),
        ({"a": {"type": "mmr", "diversity": True}}, ["Got True"]),
        ({"a": {"type": "keybert", "top_n_words": 0}}, ["represent.aspects.a.top_n_words", "above 0", "Got 0 "]),
        ({"a": {"type": "keybert", "top_n_words": 2.5}}, ["whole number", "2.5"]),
        ({"a": {"type": "keybert", "top_n_words": float("inf")}}, ["whole number", "inf"]),
        ({"a": {"type": "pos", "model": 3}}, ["represent.aspects.a.model", "Got 3 "]),
        ({"a": {"type": "pos", "pos_patterns": "NOUN"}}, ["pos_patterns", "'NOUN'"]),
        ({"a": {"type": "pos", "pos_patterns": [{"POS": "NOUN"}]}}, ["pos_patterns", "POS"]),
        ({"a": {"type": "pos", "pos_patterns": []}}, ["pos_patterns", "[]"]),
        ({"a": {"type": "llm", "model": "x"}}, ["represent.aspects.a.model", "section llm"]),
        ({"a": {"diversity": 0.5}}, ["represent.aspects.a ", "type", "0.5"]),
        ({"a": {"type": 5}}, ["represent.aspects.a ", "5"]),
        ({"a": None}, ["represent.aspects.a ", "None"]),
        ({"a": []}, ["at least one step"]),
        ({"a": [["keybert"]]}, ["represent.aspects.a[0]", "['keybert']"]),
        ({"a": ["llm", "mmr"]}, ["represent.aspects.a[0]", "last"]),
        ({"a": ["llm", "llm"]}, ["represent.aspects.a[0]", "last"]),
        ({"manual": "keybert"}, ["represent.aspects.manual", "another name"]),
        ({"zeroshot": "keybert"}, ["represent.aspects.zeroshot", "another name"]),
        ({"Main": "keybert"}, ["represent.aspects.Main", "another name"]),
        ({"ctfidf": ["ctfidf", "mmr"]}, ["represent.aspects.ctfidf", "another name"]),
        ({"two words": "keybert"}, ["letters, digits", "'two words'"]),
        ({"": "keybert"}, ["letters, digits"]),
        ({5: "keybert"}, ["letters, digits", "5"]),
        (["keybert"], ["represent.aspects must be a mapping"]),
    ],
)
def test_a_wrong_aspect_is_refused_by_its_path_with_its_value(aspects, parts):
    with pytest.raises(ConfigError) as caught:
        parse(aspects)
    for part in parts:
        assert part in str(caught.value)


# parts of speech


def test_without_spacy_the_step_names_the_extra(monkeypatch):
    pos.load.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(MissingDependency, match=re.escape("pip install 'topicscale[pos]'")):
        steps.check(parse({"a": ["keybert", "pos"]}))
    steps.check(parse({"a": ["keybert", "llm"]}))


@pytest.fixture
def tagger():
    """A pipeline that knows a few words."""
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install 'topicscale[pos]'")
    known = {"clean": "ADJ", "energy": "NOUN", "costs": "VERB", "wind": "NOUN", "old": "ADJ", "mill": "NOUN"}

    @spacy.Language.component("tests_tagger")
    def tag(tagged):
        for token in tagged:
            token.pos_ = known.get(token.lower_, "X")
        return tagged

    pipeline = spacy.blank("en")
    pipeline.add_pipe("tests_tagger")
    return pipeline


TERMS = [("costs", 0.9), ("energy", 0.8), ("clean energy", 0.7), ("wind", 0.6), ("old", 0.5), ("old mill", 0.4), ("mill", 0.3)]
DOCUMENTS = ["Energy costs less here , clean\nenergy", "the wind", "wind of old", "an old mill in the wind"]


def test_nouns_and_adjectives_of_the_documents_that_are_terms(tagger):
    found = pos.parts_of_speech([view(TERMS, DOCUMENTS), view(TERMS[3:], DOCUMENTS[1:2])], tagger)
    assert found == [TERMS[1:], [("wind", 0.6)]]
    assert pos.parts_of_speech([view(TERMS, DOCUMENTS)], tagger, top_n_words=2) == [TERMS[1:3]]
    assert pos.parts_of_speech([view(TERMS, DOCUMENTS)], tagger, pos_patterns=[[{"POS": "VERB"}]]) == [[("costs", 0.9)]]


def test_two_documents_are_read_for_each_of_the_best_terms(tagger):
    # only "costs" and its one document, then the first two with "wind" too: "old mill" is in the third
    assert words(pos.parts_of_speech([view(TERMS, DOCUMENTS)], tagger, nr_candidate_words=1)[0]) == ["energy", "clean energy"]
    assert words(pos.parts_of_speech([view([TERMS[3], TERMS[5]], DOCUMENTS)], tagger, nr_candidate_words=1)[0]) == ["wind"]


def test_topics_without_documents_words_or_matches(tagger):
    views = [view(TERMS), view([], DOCUMENTS), view(["costs", "xyz", ""], [*DOCUMENTS, ""])]
    assert pos.parts_of_speech(views, tagger, top_n_words=3) == [TERMS[:3], [], []]


def test_what_spacy_refuses_is_said_in_our_words(tagger):
    import spacy

    with pytest.raises(ConfigError, match="pos_patterns"):
        pos.parts_of_speech([view(TERMS, DOCUMENTS)], tagger, pos_patterns=[[{"PSO": "NOUN"}]])
    with pytest.raises(ModelError, match="tagger"):
        pos.parts_of_speech([view(TERMS, DOCUMENTS)], spacy.blank("en"))
    with pytest.raises(ModelError, match="'no_such_pipeline'"):
        steps.check(parse({"a": {"type": "pos", "model": "no_such_pipeline"}}))


def test_chains_with_a_pipeline_from_a_folder(tagger, tmp_path):
    tagger.to_disk(tmp_path / "tagger")
    chain = parse({"a": [{"type": "ctfidf", "top_n_words": 4}, {"type": "pos", "model": str(tmp_path / "tagger")}]})
    steps.check(chain)
    assert describe([view(TERMS, DOCUMENTS)], chain["a"], encode) == [TERMS[1:4]]


def test_the_words_are_bertopics(tagger, fitted):
    import pandas as pd
    import spacy
    from bertopic.representation._pos import PartOfSpeech

    model, views, frame = fitted

    @spacy.Language.component("tests_initials")
    def tag(tagged):
        for token in tagged:
            token.pos_ = {"b": "NOUN", "d": "ADJ"}.get(token.text[0], "VERB")
        return tagged

    pipeline = spacy.blank("en")
    pipeline.add_pipe("tests_initials")
    candidates = {v.topic_id: list(v.terms[:30]) for v in views}
    theirs = PartOfSpeech(pipeline).extract_topics(model, frame, model.c_tf_idf_, candidates)
    of_topic = [pd.unique(frame.Document[frame.Topic == v.topic_id]).tolist() for v in views]
    ours = pos.parts_of_speech([view(v.terms, texts, topic_id=v.topic_id) for v, texts in zip(views, of_topic, strict=True)], pipeline)
    for v, found in zip(views, ours, strict=True):
        expected = [(word, weight) for word, weight in theirs[v.topic_id] if word and weight > 0]
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])
        last = expected[-1][1]  # of equal weights BERTopic takes any
        assert {word for word, weight in found if weight > last} == {word for word, weight in expected if weight > last} != set()
