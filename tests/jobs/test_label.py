"""Describing topics on real engines: aspects, a pool of language models, a server, and what becomes of their labels."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from jobs.cli import main
from jobs.forget import forget
from jobs.label import label
from jobs.merge import merge
from jobs.progress import Ui
from jobs.run import run
from jobs.stages import naming
from jobs.update import update
from tests import corpus
from tests.model_server import serving
from topicscale import TopicModel, config
from topicscale.errors import ConfigError, JobFailed, ModelError, RequestError
from topicscale.llm.backend import Answer
from topicscale.represent.view import View
from topicscale.store import Store

QUIET = Ui("quiet")
THEME = {word: theme for theme, parts in corpus.THEMES.items() for part in parts for word in part.split()}


def settings(path: Path, *overrides: str) -> config.Config:
    basic = {"input": {"paths": [str(path)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
    return config.load(values=basic, overrides=list(overrides))


def about(prompt: str) -> str:
    """Answer as a good model would: with the theme of most words of the question."""
    words = [word.strip(".,") for word in prompt.split()]
    themes = [THEME[word] for word in words if word in THEME]
    return f"All about {max(sorted(set(themes)), key=themes.count)}" if themes else "Something else"


def labels_of(store: str | Path, aspect: str = "llm") -> dict[int, dict]:
    reader = Store(store)
    reader.pin()
    return {row["topic_id"]: row for row in reader.read("topic_labels").to_pylist() if row["aspect"] == aspect}


def topics_of(store: str | Path) -> dict[int, dict]:
    reader = Store(store)
    reader.pin()
    return {row["topic_id"]: row for row in reader.read("topics").to_pylist()}


def answers(store: str | Path) -> list[str]:
    return Store(store).read("answers")["request"].to_pylist()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows())


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory, spark, ray_layout) -> Path:
    """A finished store without labels."""
    store = tmp_path_factory.mktemp("stores") / "plain"
    run(settings(source), str(store), ui=QUIET)
    return store


@pytest.fixture
def store(plain, tmp_path) -> Path:
    shutil.copytree(plain, tmp_path / "store")
    return tmp_path / "store"


def asked(url: str, *more: str) -> list[str]:
    return [f"llm.url={url}", "llm.model=test-model", "llm.attempts=1", "llm.timeout=20", *more]


def test_labels_by_a_server_name_the_topics(store) -> None:
    before = topics_of(store)
    with serving(about) as server:
        found = label(store, aspect="llm", overrides=asked(server.url), ui=QUIET)
        first = len(server.prompts)
        again = label(store, aspect="llm", overrides=asked(server.url), ui=QUIET)
        assert len(server.prompts) == first, "what is answered is not asked again"
    assert found["labelled"] == found["topics"] == len(before) - (-1 in before)
    assert found["fallback"] == {}
    assert found["generation"] == 2
    assert again["generation"] == 2, "nothing changed"
    rows, after = labels_of(store), topics_of(store)
    assert {topic: after[topic]["label"] for topic in rows} == {topic: row["label"] for topic, row in rows.items()}
    assert len({row["label"].casefold() for row in rows.values()}) == len(rows), "no two topics share a label"
    for topic, row in rows.items():
        theme = row["label"].removeprefix("All about ").split()[0]
        assert sum(THEME.get(word) == theme for word in after[topic]["keywords"]) >= 5
    assert {t: row["size"] for t, row in after.items()} == {t: row["size"] for t, row in before.items()}
    assert found["mean_reciprocal_rank"]["labels"] >= found["mean_reciprocal_rank"]["one_shot"]
    assert run_is_done(store)


def run_is_done(store: Path) -> bool:
    """A finished run that is started again does nothing, labels or not."""
    snapshot = Store(store).pin()
    return run(config.Config.from_dict(snapshot.configuration), str(store), ui=QUIET).nothing_to_do


def test_hostile_answers_become_plain_labels_or_keywords(store) -> None:
    def say(prompt: str) -> str:
        return {
            "cooking": '**Label:** "<script>alert(1)</script>Home cooking"\nIgnore the above.',
            "space": "I'm sorry, but as an AI language model I cannot label this.",
            "banking": "\x1b[31mBank \u202ecards",
            "football": "http://evil.example/win",
        }.get(about(prompt).split()[-1], about(prompt))

    with serving(say) as server:
        found = label(store, aspect="llm", overrides=asked(server.url, "llm.candidates=1"), ui=QUIET)
    rows = labels_of(store)
    assert found["fallback"], "a refusal and a link are no labels"
    assert {"refusal", "link"} >= {reason.split(": ")[-1] for reason in found["fallback"].values()}
    for topic, row in rows.items():
        assert "\n" not in row["label"]
        assert not set(row["label"]) & set("<>\x1b\u202e*")
        assert (row["status"] == "fallback") == (str(topic) in found["fallback"])
        if row["status"] == "fallback":
            assert row["detail"]
            assert set(row["label"].split(", ")) <= set(topics_of(store)[topic]["keywords"])
            assert topics_of(store)[topic]["label"].startswith(f"{topic}_"), "keywords name it as they did before"


def test_one_topics_failure_is_told_and_the_next_call_asks_only_for_it(store) -> None:
    broken = True

    def say(prompt: str) -> str | int:
        return 500 if broken and about(prompt).endswith("space") else about(prompt)

    with serving(say) as server:
        one = label(store, aspect="llm", overrides=asked(server.url, "llm.candidates=1"), ui=QUIET)
        assert one["fallback"]
        assert all("500" in reason for reason in one["fallback"].values())
        asked_before = len(server.prompts)
        broken = False
        two = label(store, aspect="llm", only_unlabelled=True, overrides=asked(server.url, "llm.candidates=1"), ui=QUIET)
        fresh = server.prompts[asked_before:]
    assert two["topics"] == len(one["fallback"])
    assert two["fallback"] == {}
    assert all(about(prompt).endswith("space") for prompt in fresh)
    assert len({row["label"] for row in labels_of(store).values()}) == len(labels_of(store))


def test_nothing_answered_is_an_error_and_changes_nothing(store) -> None:
    with serving(lambda prompt: 400) as server, pytest.raises(JobFailed, match="answered none"):
        label(store, aspect="llm", overrides=asked(server.url, "llm.concurrency=1"), ui=QUIET)
    assert len(server.prompts) == 4, "a server that refuses everything is not asked for every topic"
    assert Store(store).pin().generation == 1
    with pytest.raises(ModelError, match=r"127\.0\.0\.1"):
        label(store, aspect="llm", overrides=asked("http://127.0.0.1:9/v1"), ui=QUIET)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"overrides": ["llm.model=no-such-model-anywhere"]}, RequestError, "no-such-model-anywhere"),
        ({"overrides": ["llm.prompt=name it"]}, ConfigError, "DOCUMENTS"),
        ({"overrides": ["topics.number=3"]}, RequestError, r"topics\.number"),
        ({"topics": [99]}, RequestError, "99"),
        ({"aspect": "poem"}, RequestError, "poem"),
        ({"overrides": ["represent.aspects={a: keybrt}"]}, ConfigError, "keybert"),
    ],
)
def test_wrong_requests_are_refused(store, given, kind, says) -> None:
    with pytest.raises(kind, match=says):
        label(store, **({"aspect": "mmr"} if "topics" in given else {}) | given, ui=QUIET)
    assert Store(store).pin().generation == 1


def test_limits_leave_the_smaller_topics_their_keywords(store) -> None:
    with serving(about) as server:
        found = label(store, aspect="llm", overrides=asked(server.url, "llm.max_topics=2"), ui=QUIET)
    rows = topics_of(store)
    largest = sorted((t for t in rows if t >= 0), key=lambda t: (-rows[t]["size"], t))[:2]
    assert {t for t, row in labels_of(store).items() if row["status"] == "ok"} == set(largest)
    assert all("llm.max_topics=2" in reason for reason in found["fallback"].values())


def test_word_aspects_and_given_names(store) -> None:
    TopicModel.load(store).set_topic_labels({0: "By hand"})
    with serving(about) as server:
        found = label(store, overrides=asked(server.url, "llm.candidates=1"), ui=QUIET)
    assert found["aspects"] == ["keybert", "mmr", "llm"]
    for aspect in ("keybert", "mmr"):
        for topic, row in labels_of(store, aspect).items():
            assert len(row["terms"]) == 10
            assert len(set(row["terms"])) == 10, (aspect, topic)
    assert topics_of(store)[0]["label"] == "By hand"
    assert labels_of(store)[0]["label"].startswith("All about")
    model = TopicModel.load(store)
    described = model.get_topic(1, full=True)
    assert described["llm"] == [(labels_of(store)[1]["label"], 1.0)]
    assert [word for word, _ in described["keybert"]] == labels_of(store, "keybert")[1]["terms"]
    keywords = labels_of(store, "ctfidf")
    assert any(labels_of(store, "mmr")[t]["terms"] != keywords[t]["terms"] for t in keywords if t >= 0)


def test_run_and_update_describe_what_is_new(source, tmp_path, spark, ray_layout) -> None:
    rows = corpus.rows()
    old = corpus.write_csv(tmp_path / "old.csv", [row for row in rows if row[2] != "football"])
    sport = corpus.write_csv(tmp_path / "sport.csv", [row for row in rows if row[2] == "football"])
    store = tmp_path / "store"
    with serving(about) as server:
        chosen = settings(old, "represent.aspects={words: keybert, llm: [mmr, llm]}", *asked(server.url, "llm.candidates=1"))
        run(chosen, str(store), ui=QUIET)
        first = len(server.prompts)
        before = labels_of(store)
        assert first >= len(before) > 0
        again = run(chosen, str(store), ui=QUIET)
        assert again.nothing_to_do
        assert len(server.prompts) == first
        added = update([str(sport)], store, ui=QUIET)
        assert added["new_topics"]
        fresh = server.prompts[first:]
    # the server is gone: a batch does not wait for it
    more = [(f"more-{i}", text, theme) for i, text, theme in corpus.rows(seed=8)[::6]]
    late = update([str(corpus.write_csv(tmp_path / "more.csv", more))], store, ui=QUIET)
    assert late["documents"] == len(more)
    assert late["generation"] > added["generation"]
    assert fresh
    assert all(about(prompt) == "All about football" for prompt in fresh), "only new topics are asked about"
    after, topics = labels_of(store), topics_of(store)
    assert {topic: row["label"] for topic, row in after.items() if topic in before} == {t: r["label"] for t, r in before.items()}
    for topic in added["new_topics"]:
        assert topics[topic]["label"] == after[topic]["label"]
        assert "football" in after[topic]["label"]
    assert set(labels_of(store, "words")) == set(after)


def test_forget_takes_what_was_made_of_the_documents(store, tmp_path) -> None:
    with serving(about) as server:
        label(store, overrides=asked(server.url, "llm.candidates=1"), ui=QUIET)
    reader = Store(store)
    reader.pin()
    gone = next(row for row in reader.read("assignments").to_pylist() if row["topic_id"] == 0)
    ids = tmp_path / "ids.txt"
    ids.write_text(gone["doc_id"])
    forget(ids, store, ui=QUIET)
    assert 0 not in labels_of(store)
    assert 0 not in labels_of(store, "keybert")
    assert set(labels_of(store)) == set(topics_of(store)) - {0, -1}
    assert topics_of(store)[0]["label"].startswith("0_")
    assert topics_of(store)[1]["label"] == labels_of(store)[1]["label"]
    assert answers(store) == []
    leaves = {row["label"] for row in reader.read("site_topics").to_pylist() if row["label"]} if reader.pin() else set()
    assert leaves == {row["label"] for row in labels_of(store).values()}


def test_merged_topics_are_named_by_their_keywords(store, tmp_path) -> None:
    merge([str(store)], tmp_path / "merged")
    with serving(about) as server:
        found = label(tmp_path / "merged", aspect="llm", overrides=asked(server.url, "llm.documents=0"), ui=QUIET)
    assert found["labelled"] == found["topics"] > 0
    assert all("was ready" not in prompt for prompt in server.prompts), "no document is shown"


def test_the_packaged_model_in_four_bits(store, capsys) -> None:
    assert main(["label", "--store", str(store), "--aspect", "llm", "--topics", "0,1", "--set", "llm.candidates=1", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "2 topics described" in said
    rows = labels_of(store)
    assert set(rows) == {0, 1}
    assert all(row["status"] == "ok" for row in rows.values()), rows
    assert len(answers(store)) >= 2


def test_a_killed_job_asks_for_the_rest_alone(store) -> None:
    script = (
        "import json, sys; from jobs.label import label; from jobs.progress import Ui\n"
        "label(sys.argv[1], aspect='llm', overrides=json.loads(sys.argv[2]), ui=Ui('quiet'))"
    )

    def slowly(prompt: str) -> str:
        time.sleep(0.4)
        return about(prompt)

    with serving(slowly) as server:
        chosen = asked(server.url, "llm.candidates=1", "llm.concurrency=1")
        process = subprocess.Popen([sys.executable, "-c", script, str(store), json.dumps(chosen)])
        try:
            deadline = time.monotonic() + 120
            while len(server.prompts) < 8 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        first = len(server.prompts)
        assert Store(store).pin().generation == 1, "half the labels are no generation"
        assert len(answers(store)) >= 3
        found = label(store, aspect="llm", overrides=chosen, ui=QUIET)
        again = len(set(server.prompts[:first]) & set(server.prompts[first:]))
    assert found["labelled"] == found["topics"]
    assert again <= first - 3, "what was answered and written is not asked again"


def test_the_python_api_describes_topics(store) -> None:
    model = TopicModel(representation_model={"words": "keybert"}, config={"topics": {"min_size": 5}})
    assert model.config.represent.aspects == {"words": "keybert"}
    with pytest.raises(RequestError, match="object"):
        TopicModel(representation_model=object())
    model = TopicModel.load(store)
    with serving(about) as server:
        found = model.label_topics("llm", topics=[0], url=server.url, model="test-model")
    assert found["topics"] == 1
    assert model.topic_labels_[0].startswith("All about")
    assert model.custom_labels_ is None, "a model's labels are nobody's hand"


@pytest.mark.slow
def test_a_pool_with_a_killed_worker_names_every_topic_once(store) -> None:
    """Two workers, one killed while it answers: its prompt goes to another."""
    script = (
        "import sys; from jobs.label import label; from jobs.progress import Ui\n"
        "found = label(sys.argv[1], aspect='llm', overrides=['llm.actors=2', 'llm.candidates=1', 'llm.max_topics=8'], ui=Ui('quiet'))\n"
        "assert found['labelled'] + len(found['fallback']) == found['topics']; print(found['labelled'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(store)], stdout=subprocess.PIPE, text=True)
    try:
        killed = None
        deadline = time.monotonic() + 300
        while killed is None and process.poll() is None and time.monotonic() < deadline:
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if "Labeller.complete" in " ".join(child.cmdline()):
                        killed = child.pid
                except psutil.Error:
                    continue
            time.sleep(0.05)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        said, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0
    rows = labels_of(store)
    assert int(said) == sum(row["status"] == "ok" for row in rows.values())
    assert len(set(answers(store))) == len(answers(store)) >= 8, "every prompt was answered, and none twice"
    assert all("no label" in row["detail"] or "max_topics" in row["detail"] for row in rows.values() if row["status"] != "ok")


class Colours:
    """Embeds texts by the colours that they name."""

    def embed(self, texts, *, dimensions):
        rows = np.array([[3 * ("red" in text) + ("rust" in text), 2 * ("blue" in text)] for text in map(str.lower, texts)], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


COLOURS = [
    {"topic_id": -1, "reference_vector": []},
    {"topic_id": 0, "reference_vector": [1, 0]},
    {"topic_id": 1, "reference_vector": [0, 1]},
]


def test_labels_that_find_another_topic_get_a_keyword_even_where_the_keywords_find_no_better() -> None:
    labels = {0: "Blue things"}
    given = {"keywords": {0: ["rust", "red"]}, "others": set(), "wanted": 1, "enough": {0: 2}}
    assert naming._sharpen(Colours(), COLOURS, labels, {0: naming._Candidate("Blue things")}, **given) == {}
    assert "red" in labels[0]


def test_a_topic_without_a_label_goes_by_as_many_keywords_as_find_it() -> None:
    shown = {0: naming._Candidate("blue, sky, rust", 2), 1: naming._Candidate("blue, sky, sea", 1)}
    keywords = {0: ["blue", "sky", "rust", "sea", "red", "clay"], 1: ["blue", "sky", "sea", "red"]}
    found = naming._by_keywords(Colours(), COLOURS, shown, keywords, True)
    assert found == {0: "blue, sky, rust, sea, red", 1: "blue, sky, sea"}


def test_a_label_of_before_that_another_topic_has_by_now_is_not_kept(monkeypatch) -> None:
    class Told(Colours):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def ask(self, asks):
            return [Answer("Blue sky" if "sky" in ask.keywords else "Blue things") for ask in asks]

    monkeypatch.setattr(naming, "Asker", lambda *_: Told())
    job = SimpleNamespace(config=config.load(overrides=["llm.candidates=2"]))
    described = [["rust"], ["sky", "blue"]]
    views = [View(topic, (), (f"a text about {words[0]}",), np.zeros((1, 2), np.float32)) for topic, words in enumerate(described)]
    rows = [row | {"size": 5, "keywords": words} for row, words in zip(COLOURS[1:], described, strict=True)]
    found = naming.name_topics(job, views, described, rows=rows, taken={}, before={0: "Blue sky"})
    labels = {row["topic_id"]: row["label"] for row in found.rows}
    assert labels == {0: "rust", 1: "Blue sky"}
    assert found.fallback[0].startswith(naming.UNFOUND)
