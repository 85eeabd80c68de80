"""Names that people give to topics: what they may be, where they are written, and what they outlive."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.merge import describe, merge
from tests.topicscale.stores import PRINT, site
from topicscale import TopicModel
from topicscale.cluster import unit
from topicscale.config import fingerprint
from topicscale.errors import RequestError, StoreError, StoreLocked
from topicscale.labels import Carried, carried, rewrite
from topicscale.store import Store, says
from topicscale.tables import TABLES
from topicscale.texts import one_line

OTHER = fingerprint("another run")


@pytest.fixture
def store(tmp_path) -> Store:
    return site(tmp_path / "clinic", [0, 1, 2])


def labels(store: Store, table: str) -> list[str]:
    """Return a table's labels at the newest generation, by topic (the leaves are in that order)."""
    reader = Store(store.uri)
    reader.pin()
    rows = reader.read(table)
    return (rows.sort_by("topic_id") if table == "topics" else rows)["label"].to_pylist()


def nowhere(number: int) -> np.ndarray:
    """Return reference vectors of topics that have none."""
    return np.zeros((number, 0), np.float32)


def test_a_name_is_shown_everywhere_and_makes_a_generation(store) -> None:
    model = TopicModel.load(store.uri)
    assert model.custom_labels_ is None
    assert "CustomName" not in model.get_topic_info()
    model.set_topic_labels({0: "  Energy ", np.int64(2): "العربية‌ها"})
    info = model.get_topic_info()
    assert info.columns.tolist()[:5] == ["Topic", "Count", "Name", "CustomName", "Representation"]
    assert info["Name"].tolist() == info["CustomName"].tolist() == ["-1_the_and", "Energy", "1_court_judge_trial", "العربية‌ها"]
    assert model.topic_labels_[0] == "Energy"
    assert model.custom_labels_ == info["Name"].tolist()
    assert model.get_topic(0, full=True)["manual"] == [("Energy", 1.0)]
    assert labels(store, "topics") == info["Name"].tolist()
    assert labels(store, "site_topics") == ["", "Energy", "", "العربية‌ها"]
    assert TopicModel.load(store.uri).get_topic_info()["Name"].tolist() == info["Name"].tolist()
    assert TopicModel.load(store.uri, generation=1).topic_labels_[0] == "0_oil_gas_barrel"
    assert [s.generation for s in store.snapshots()] == [1, 2]


def test_a_list_names_all_topics_in_the_order_of_ids(store) -> None:
    model = TopicModel.load(store.uri)
    model.set_topic_labels(["Other", "Energy", "Courts", "Sport"])
    assert model.topic_labels_ == {-1: "Other", 0: "Energy", 1: "Courts", 2: "Sport"}
    with pytest.raises(RequestError, match=r"each of the 4 topics.*outliers' first.*Got 3"):
        model.set_topic_labels(["Energy", "Courts", "Sport"])


def test_an_empty_name_removes_one_and_others_stay(store) -> None:
    model = TopicModel.load(store.uri)
    model.set_topic_labels({0: "Energy", 1: "Courts"})
    model.set_topic_labels({0: "", 2: ""})
    assert labels(store, "topics") == ["-1_the_and", "0_oil_gas_barrel", "Courts", "2_goal_match_league"]
    assert labels(store, "site_topics") == ["", "", "Courts", ""]
    model.set_topic_labels({1: ""})
    assert model.custom_labels_ is None


def test_names_that_are_there_already_change_nothing(store) -> None:
    model = TopicModel.load(store.uri)
    for _ in range(2):
        model.set_topic_labels({0: "Energy"})
    assert len(store.snapshots()) == 2


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({7: "x"}, r"by their ids \(-1 to 2\). Got 7"),
        ({"0": "x"}, "Got '0'"),
        ({True: "x"}, "Got True"),
        ({0: 3}, "must be a text. Got int"),
        ({0: None}, "must be a text. Got NoneType"),
        ({0: "two\nlines"}, r"U\+000A"),
        ({0: "bell\x07"}, r"U\+0007"),
        ({0: "\x1b[31mred"}, r"U\+001B"),
        ({0: "turn\u202eround"}, r"U\+202E"),
        ({0: "line\u2028separator"}, r"U\+2028"),
        ({0: "half \ud800"}, r"U\+D800"),
        ({0: "x" * 201}, "at most 200 characters. Got 201"),
        ("Energy", "Got str"),
        (3, "Got int"),
    ],
)
def test_what_is_no_name_is_refused_and_nothing_is_written(store, given, hint) -> None:
    with pytest.raises(RequestError, match=hint):
        TopicModel.load(store.uri).set_topic_labels(given)
    assert len(store.snapshots()) == 1


def test_markup_is_a_name_like_any_other(store) -> None:
    hostile = "<script>alert(1)</script>' OR 1=1 -- " + "x" * 160
    model = TopicModel.load(store.uri)
    model.set_topic_labels({0: hostile})
    assert model.topic_labels_[0] == hostile


def test_ids_of_an_older_generation_and_a_store_in_use_are_refused(store) -> None:
    one, two = TopicModel.load(store.uri), TopicModel.load(store.uri)
    one.set_topic_labels({0: "Energy"})
    with pytest.raises(StoreError, match="moved on from generation 1 to 2"):
        two.set_topic_labels({0: "Oil"})
    with store.lock("a run"), pytest.raises(StoreLocked, match="a run"):
        one.set_topic_labels({1: "Courts"})
    with pytest.raises(StoreError, match="not fitted"):
        TopicModel().set_topic_labels({0: "x"})


def test_a_finished_run_still_counts_as_finished(store) -> None:
    before = {table: store.version(table) for table in TABLES if store.has(table)}
    TopicModel.load(store.uri).set_topic_labels({0: "Energy"})
    changed = {table for table, version in before.items() if store.version(table) != version}
    assert changed == {"topics", "topic_labels", "site_topics", "generations"}
    assert all(says(store.unit_version(table, "publish"), PRINT) for table in ("topics", "topic_labels", "site_topics"))
    assert says(store.unit_version("generations", "generation"), PRINT)


def test_an_unfinished_run_is_neither_shown_nor_taken_for_finished(store) -> None:
    # it wrote topics and lineage, and was killed before its generation
    for table in ("topics", "topic_lineage"):
        store.replace(table, TABLES[table].schema.empty_table(), stage="publish", unit_fingerprint=OTHER)
    lineage = store.snapshots()[-1].versions["topic_lineage"]
    model = TopicModel.load(store.uri)
    model.set_topic_labels({0: "Energy"})
    assert model.topic_labels_[0] == "Energy"
    assert store.snapshots()[-1].versions["topic_lineage"] == lineage
    assert not says(store.unit_version("topics", "publish"), OTHER)
    assert says(store.unit_version("topic_lineage", "publish"), OTHER)


def test_killed_between_two_tables_it_is_as_if_it_had_not_begun(store, monkeypatch) -> None:
    original = Store.amend

    def dying(self, name, *arguments, **named):
        if name == "site_topics":
            raise KeyboardInterrupt
        return original(self, name, *arguments, **named)

    monkeypatch.setattr(Store, "amend", dying)
    with pytest.raises(KeyboardInterrupt):
        TopicModel.load(store.uri).set_topic_labels({0: "Energy"})
    monkeypatch.undo()
    model = TopicModel.load(store.uri)
    assert model.custom_labels_ is None
    assert carried(store, [], nowhere(0)) == Carried({}, {}, [])
    model.set_topic_labels({1: "Courts"})
    assert model.topic_labels_ == {-1: "-1_the_and", 0: "0_oil_gas_barrel", 1: "Courts", 2: "2_goal_match_league"}


def test_names_go_with_what_topics_are_made_of(store) -> None:
    model = TopicModel.load(store.uri)
    model.set_topic_labels({0: "Energy", 1: "Courts"})
    keys = [row["topic_key"] for row in store.read("topics").to_pylist()][1:]
    assert carried(store, keys[::-1], nowhere(3)) == Carried({2: "Energy", 1: "Courts"}, {}, [])
    assert carried(store, keys[1:], nowhere(2)) == Carried({0: "Courts"}, {}, ["Energy"])
    # tables without the topic, and then with it again: the name comes back
    rows = [row for row in store.read("topics").to_pylist() if row["topic_id"] != 0]
    told = [row for row in store.read("topic_labels").to_pylist() if row["topic_id"] != 0]
    leaves = [row for row in store.read("site_topics").to_pylist() if row["topic_key"] != keys[0]]
    for table, content in (("topics", rows), ("topic_labels", told), ("site_topics", leaves)):
        store.replace(table, pa.Table.from_pylist(content, schema=TABLES[table].schema), stage="publish", unit_fingerprint=OTHER)
    store.publish(configuration=model.config.to_dict(), summary={}, unit_fingerprint=OTHER)
    assert carried(store, keys, nowhere(3)) == Carried({0: "Energy", 1: "Courts"}, {}, [])
    # one that was removed does not
    TopicModel.load(store.uri).set_topic_labels({1: ""})
    assert carried(store, keys, nowhere(3)) == Carried({0: "Energy"}, {}, [])


def test_names_go_to_topics_whose_documents_have_changed(store, tmp_path) -> None:
    TopicModel.load(store.uri).set_topic_labels({0: "Energy", 1: "Courts"})
    keys, vectors = zip(*((row["topic_key"], row["reference_vector"]) for row in store.read("topics").to_pylist()[1:]), strict=True)
    energy, courts, sport = unit(np.array(vectors))
    near = unit(np.array([energy + 0.1 * sport, energy + 0.15 * courts, courts + 0.1 * sport, courts + 0.3 * sport]))

    def now(*topics: tuple[str, np.ndarray]) -> Carried:
        return carried(store, [key for key, _ in topics], np.array([vector for _, vector in topics], np.float32))

    found = now(("new", near[0]), (keys[1], courts))
    assert (found.names, found.gone) == ({0: "Energy", 1: "Courts"}, [])
    assert found.alike == {0: pytest.approx(near[0] @ energy, abs=1e-3)}
    # of two that are like it, the one that is more so; what is still there is nobody's successor
    assert now(("one", near[1]), ("other", near[0]), (keys[1], courts)).names == {1: "Energy", 2: "Courts"}
    assert now((keys[0], energy), ("other", near[0])) == Carried({0: "Energy"}, {}, ["Courts"])
    # not like enough, and no topic at all
    assert now(("new", near[3])) == Carried({}, {}, ["Courts", "Energy"])
    assert now(("new", near[2]), ("other", near[3])).names == {0: "Courts"}
    # where the newest generation has no outliers, they are nobody's successor
    assert carried(Store(tmp_path / "none", create=True), [], nowhere(0)) == Carried({}, {}, [])
    few = site(tmp_path / "few", [0, 1, 2], outliers=0)
    TopicModel.load(few.uri).set_topic_labels({2: "Sport"})
    assert carried(few, ["a", "b", "c"], unit(np.array([energy, courts, sport])).astype(np.float32)).names == {2: "Sport"}
    # another embedding model: its vectors say nothing here
    assert carried(store, ["new"], np.ones((1, 3), np.float32)).gone == ["Courts", "Energy"]


def test_merging_keeps_names_and_lists_conflicts(store, tmp_path) -> None:
    other = site(tmp_path / "lab", [2, 0, 4], seed=1)
    TopicModel.load(store.uri).set_topic_labels({0: "Energy", 1: "Courts"})
    TopicModel.load(other.uri).set_topic_labels({1: "Oil and gas", 2: "Space", -1: "Rest"})
    found = merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    names = TopicModel.load(tmp_path / "all").topic_labels_
    assert {"Energy", "Courts", "Space"} <= set(names.values())
    energy = next(topic for topic, name in names.items() if name == "Energy")
    assert found["label_conflicts"] == {energy: ["Oil and gas"]}
    assert f"Topic {energy} is called 'Energy'; other sites call it 'Oil and gas'" in describe(found)
    # a merge of merges keeps them too
    again = merge([tmp_path / "all", other.uri], tmp_path / "again", similarity=0.7)
    assert again["label_conflicts"] == found["label_conflicts"]
    # nor is there a conflict left once the topic is named where it was merged
    TopicModel.load(tmp_path / "all").set_topic_labels({energy: "Fuel"})
    same = merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    assert (same["nothing_to_do"], same["names"][energy], same["label_conflicts"]) == (True, "Fuel", {})


def write_label(store: str, topic: int, label: str) -> None:
    """Name a topic as a language model does."""
    reader = Store(store)
    row = {"topic_id": topic, "aspect": "llm", "label": label, "terms": [], "status": "ok", "detail": ""}
    with reader.lock("label"):
        base = reader.pin()
        rows = [held for held in reader.read("topic_labels").to_pylist() if (held["topic_id"], held["aspect"]) != (topic, "llm")]
        rewrite(reader, base, [*rows, row], {topic})


def test_a_persons_name_comes_before_a_language_models_whatever_the_sizes(store, tmp_path) -> None:
    """At the merge, at a merge of merges, and where an export brought it."""
    other = site(tmp_path / "lab", [2, 0, 4], seed=1)
    write_label(store.uri, 0, "Barrels of crude")  # of 40 documents
    write_label(store.uri, 1, "Judges and trials")
    TopicModel.load(other.uri).set_topic_labels({1: "Energy"})  # of 35
    found = merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    energy, courts = (next(topic for topic, name in found["names"].items() if name == wanted) for wanted in ("Energy", "Judges and trials"))
    assert found["label_conflicts"] == {energy: ["Barrels of crude"]}

    def aspects(path) -> dict[tuple[int, str], str]:
        reader = Store(path)
        reader.pin()
        rows = reader.read("topic_labels").to_pylist()
        return {(row["topic_id"], row["aspect"]): row["label"] for row in rows if row["aspect"] != "ctfidf"}

    assert aspects(tmp_path / "all") == {(energy, "manual"): "Energy", (courts, "llm"): "Judges and trials"}
    # what a model wrote at a site, another may write better here
    write_label(str(tmp_path / "all"), courts, "Courts")
    assert TopicModel.load(tmp_path / "all").topic_labels_[courts] == "Courts"
    for inputs in ([tmp_path / "all"], [store.uri, other.uri, tmp_path / "all"]):
        merge(inputs, tmp_path / f"again{len(inputs)}", similarity=0.7)
        named = aspects(tmp_path / f"again{len(inputs)}")
        assert [aspect for _, aspect in named] == ["manual", "llm"]
        assert named[energy, "manual"] == "Energy"
    # the same words by a person are a person's
    TopicModel.load(other.uri).set_topic_labels({1: "Barrels of crude"})
    merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    assert aspects(tmp_path / "all")[energy, "manual"] == "Barrels of crude"


def test_a_name_given_to_merged_topics_wins_and_outlives_other_inputs(store, tmp_path) -> None:
    other, third = site(tmp_path / "lab", [2, 4], seed=1), site(tmp_path / "third", [4, 5], seed=2)
    TopicModel.load(store.uri).set_topic_labels({0: "Energy", 1: "Courts"})
    merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    model = TopicModel.load(tmp_path / "all")
    of = {name: topic for topic, name in model.topic_labels_.items()}
    sport = next(topic for topic, words in model.get_topics().items() if words[0][0] in ("goal", "match", "league"))
    model.set_topic_labels({of["Energy"]: "Fuel", sport: "Sport"})
    same = merge([store.uri, other.uri], tmp_path / "all", similarity=0.7)
    assert same["nothing_to_do"]
    assert {"Fuel", "Sport", "Courts"} <= set(same["names"].values())
    # the third site shares space, and shares neither of the named topics
    more = merge([store.uri, other.uri, third.uri], tmp_path / "all", similarity=0.7)
    assert {"Fuel", "Sport", "Courts"} <= set(more["names"].values())
    assert more["names_gone"] == []
    # of sport, the lab's documents go, and what is left is much alike
    fewer = merge([store.uri, third.uri], tmp_path / "all", similarity=0.7)
    assert {"Fuel", "Sport", "Courts"} <= set(fewer["names"].values())
    assert [fewer["names"][topic] for topic in fewer["names_alike"]] == ["Sport"]
    assert "keeps the name 'Sport'" in describe(fewer)
    assert fewer["names_gone"] == []
    none = merge([third.uri], tmp_path / "all", similarity=0.7)
    assert none["names_gone"] == ["Fuel", "Sport"]
    assert "'Sport' here is gone" in describe(none)
    assert {"Fuel", "Sport", "Courts"} <= set(merge([store.uri, third.uri], tmp_path / "all", similarity=0.7)["names"].values())
    # to a store that merges this one, the name is the topic's
    merge([tmp_path / "all", other.uri], tmp_path / "next", similarity=0.7)
    assert "Fuel" in TopicModel.load(tmp_path / "next").topic_labels_.values()


def test_the_newest_name_wins_when_documents_come_and_go(store, tmp_path) -> None:
    other, target = site(tmp_path / "lab", [2, 4], seed=1), tmp_path / "all"

    def merged(*inputs: Store) -> dict[int, str]:
        return merge([one.uri for one in inputs], target, similarity=0.7)["names"]

    def rename(old: str, new: str) -> None:
        model = TopicModel.load(target)
        model.set_topic_labels({next(topic for topic, name in model.topic_labels_.items() if old in name): new})

    merged(store, other)
    rename("goal", "Sport")
    assert "Sport" in merged(store).values()
    rename("Sport", "Football")
    assert {"Football", "Sport"} & set(merged(store, other).values()) == {"Football"}
    rename("Football", "")
    assert {"Football", "Sport"} & set(merged(store).values()) == set()


def test_hostile_names_of_other_sites_are_made_harmless(store, tmp_path) -> None:
    rows = store.read("site_topics").to_pylist()
    rows[1]["label"] = "\x1b]0;owned\x07\nEnergy" + "x" * 500
    store.amend("site_topics", pa.Table.from_pylist(rows, schema=TABLES["site_topics"].schema), stage="publish")
    store.publish(configuration=store.snapshots()[-1].configuration, summary={})
    found = merge([f"bad \x1b[31m name={store.uri}"], tmp_path / "all", similarity=0.7)
    shown = describe(found) + str(TopicModel.load(tmp_path / "all").topic_labels_)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert all(len(name) <= 200 for name in found["names"].values())
    assert one_line("a\tb\n\x1bc " + "d" * 300) == "a b \ufffdc " + "d" * 193


def test_a_name_given_in_advance_comes_back_when_the_hand_set_one_goes(store) -> None:
    rows = store.read("topic_labels").to_pylist()
    rows.append({"topic_id": 1, "aspect": "zeroshot", "label": "Justice", "terms": [], "status": "ok", "detail": ""})
    store.amend("topic_labels", pa.Table.from_pylist(rows, schema=TABLES["topic_labels"].schema), stage="publish")
    store.publish(configuration=store.snapshots()[-1].configuration, summary={})
    model = TopicModel.load(store.uri)
    model.set_topic_labels({1: "Courts"})
    model.set_topic_labels({1: ""})
    assert model.topic_labels_[1] == "Justice"
    assert labels(store, "site_topics") == ["", "", "Justice", ""]


def test_generations_whose_files_were_cleaned_away_are_left_out(store) -> None:
    model = TopicModel.load(store.uri)
    model.set_topic_labels({0: "Energy"})
    for table in ("topics", "topic_labels"):
        store.table(table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    key = store.read("topics").to_pylist()[1]["topic_key"]
    assert carried(store, ["another", key], nowhere(2)) == Carried({1: "Energy"}, {}, [])
    assert carried(store, ["another"], nowhere(1)) == Carried({}, {}, ["Energy"])
