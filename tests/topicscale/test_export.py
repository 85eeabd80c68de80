"""What leaves a site, on tables made by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.export import describe, export
from tests.topicscale.leaks import everything, leaked
from tests.topicscale.sites import PARTITION, documents, vector, write
from topicscale import federate
from topicscale.config import Config, TermsConfig, fingerprint
from topicscale.errors import RequestError, StoreError, StoreLocked
from topicscale.export import count_words, labels
from topicscale.ledger import FOLDER
from topicscale.store import Store
from topicscale.tables import TABLES

ROOT = Path(__file__).parents[2]
SIZES = {-1: 12, 0: 40, 1: 25, 2: 7}


def read(folder: Path) -> dict[str, dict]:
    store = Store(folder)
    store.pin(exports=True)
    return {row["topic_key"]: row for row in store.read("site_topics").to_pylist()}


def by_size(folder: Path) -> dict[int, dict]:
    return {row["size"]: row for row in read(folder).values()}


@pytest.fixture
def site(tmp_path) -> Store:
    return write(tmp_path / "clinic", documents(SIZES))


# -- what is in it ------------------------------------------------------------------------------------------------------


def test_leaves_leave_with_exact_sums_and_without_rare_terms(site, tmp_path) -> None:
    found = export(site.uri, tmp_path / "out")
    own = {row["topic_key"]: row for row in site.read("site_topics").to_pylist()}
    left = read(tmp_path / "out")
    assert sorted(row["size"] for row in left.values()) == [12, 25, 40]  # seven documents are under ten
    assert "outliers" in left
    for key, row in left.items():
        assert (row["size"], row["vector_sum"]) == (own[key]["size"], own[key]["vector_sum"])
        documents_of = dict(own[key]["term_documents"])
        kept = {term for term, n in documents_of.items() if n >= 10}
        assert dict(row["term_documents"]) == {term: documents_of[term] for term in kept}
        assert dict(row["term_counts"]) == {term: n for term, n in own[key]["term_counts"] if term in kept}
        assert (row["site"], row["site_id"], row["generation"], row["min_documents"]) == ("clinic", site.site_id, 1, 10)
    assert (found["topics"], found["documents"], found["suppressed"]) == (2, 77, "fewer than 10")
    assert str(tmp_path / "out") in describe(found)


def test_nothing_else_is_in_it(site, tmp_path) -> None:
    export(site.uri, tmp_path / "out", site="North")
    out = Store(tmp_path / "out")
    assert out.site_id == site.site_id
    snapshot = out.pin(exports=True)
    assert snapshot.generation == 1
    assert set(os.listdir(out.path)) <= {*TABLES, "_topicscale.json"}
    assert {name for name in TABLES if out.has(name) and out.table(name).to_pyarrow_table().num_rows} == {
        "site_topics",
        "pilots",
        "generations",
    }
    told = Config.from_dict(snapshot.configuration)
    assert (told.embedding.model, told.input.paths, told.partition.column) == ("MiniLM", (), None)
    assert snapshot.summary["export"] == {"min_documents": 10, "suppressed": "fewer than 10"}


def test_no_byte_of_it_holds_what_few_documents_say(tmp_path) -> None:
    content = documents(SIZES)
    labels = {0: "Common secret0x3", 1: "Theme1"}
    site = write(tmp_path / "clinic", content, labels=labels, config=TermsConfig(stop_words=("half", "mrs-meier")))
    write(tmp_path / "clinic", content[:-1], labels=labels)  # old versions of all tables
    write(tmp_path / "clinic", content, labels=labels, config=TermsConfig(stop_words=("half", "mrs-meier")))
    export(site.uri, tmp_path / "out", site="North")
    rare = {word for _, _, text in content for word in text.split() if word.startswith(("secret", "few"))}
    ids = {doc_id for doc_id, _, _ in content}
    texts = {text for _, _, text in content}
    others = {"geriatrics", "ward", PARTITION, "/srv", "letters.csv", "letter_body", "mrs-meier", "theme2", str(site.path), "clinic"}
    assert "secret0x3" in rare
    assert leaked(tmp_path / "out", rare | ids | texts | others) == []
    assert leaked(tmp_path / "out", {"theme0", "common", "North"}) != []  # the search does find what is there
    assert set(leaked(Path(site.uri), {"secret0x3", "geriatrics-annex", "mrs-meier"})) == {"secret0x3", "geriatrics-annex", "mrs-meier"}


def test_what_is_told_of_what_was_left_out_tells_of_no_few(tmp_path) -> None:
    for few, told in ((3, "fewer than 10"), (9, "fewer than 10"), (0, "fewer than 10")):
        site = write(tmp_path / f"s{few}", documents({0: 30, **({1: few} if few else {})}))
        assert export(site.uri, tmp_path / f"out{few}")["suppressed"] == told
        row = Store(tmp_path / f"out{few}").read("pilots").to_pylist()[0]
        assert (row["documents"], row["height"], row["agreement"]) == (30, 0.123, 0.88)  # not 33: the rest could be had from it
    site = write(tmp_path / "many", documents({0: 30, 1: 9, 2: 9, 3: 9}))
    assert export(site.uri, tmp_path / "out-many")["suppressed"] == "at least 20"


def test_it_merges_with_other_sites(tmp_path) -> None:
    for name, start in (("north", 0), ("south", 100)):
        write(tmp_path / name, documents({0: 30, 1: 20}, start=start))
        export(tmp_path / name, tmp_path / f"{name}-out", site=name)
    stores = [Store(tmp_path / f"{name}-out") for name in ("north", "south")]
    union = federate.unite([s.read("site_topics") for s in stores], [s.read("pilots") for s in stores])
    found = federate.federate(union, similarity=0.7)
    assert found.merged.sizes.tolist() == [60, 40]
    assert found.min_documents == 10
    from jobs.merge import merge

    done = merge([s.uri for s in stores], tmp_path / "merged", similarity=0.7)
    assert (done["topics"], done["documents"], done["exact_terms"]) == (2, 100, False)


# -- labels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "leaves"),
    [
        ("Common THEME0", True),
        ("Bills and refunds", True),  # no document has these words: somebody thought of them
        ("common secret0x3", False),  # a term in one document
        ("few0", False),  # in four
        ("half", True),
        ("x", False),  # an uncounted part of other words: in documents, and as a word in none
        ("meier", False),  # a stop word of the site's own, which is counted nowhere, in one document
        ("the theme1", True),  # not counted either, in many documents
    ],
)
def test_a_label_leaves_if_all_its_words_may(label, leaves, tmp_path) -> None:
    content = [(d, t, f"{text} the") for d, t, text in documents({0: 40, 1: 25})]
    content[0] = (content[0][0], 0, content[0][2] + " Meier")
    site = write(tmp_path / "s", content, labels={0: label}, config=TermsConfig(stop_words=("Meier", "the")))
    found = export(site.uri, tmp_path / "out")
    assert by_size(tmp_path / "out")[40]["label"] == (label if leaves else "")
    assert found["labels_left_out"] == (not leaves)


def test_it_is_told_which_labels_no_person_gave(tmp_path) -> None:
    content = documents({0: 40, 1: 25, 2: 30})
    site = write(tmp_path / "s", content, labels={0: "Bills", 1: "Common theme1", 2: "secret2x3"})
    rows = [
        {"topic_id": topic, "aspect": aspect, "label": label, "terms": [], "status": "ok", "detail": ""}
        for topic, aspect, label in ((0, "manual", "Bills"), (0, "llm", "Invoices"), (1, "llm", "Common theme1"), (2, "llm", "secret2x3"))
    ]
    told = pa.Table.from_pylist(rows, schema=TABLES["topic_labels"].schema)
    site.replace("topic_labels", told, stage="t", unit_fingerprint=fingerprint("t"))
    last = site.snapshots()[-1]
    site.publish(configuration=last.configuration, summary=last.summary, unit_fingerprint=fingerprint("t"))
    assert export(site.uri, tmp_path / "out")["labels"] == 2
    assert Store(tmp_path / "out").pin(exports=True).summary["written"] == {"Common theme1": "llm"}
    assert leaked(tmp_path / "out", {"Invoices", "secret2x3"}) == []


def test_words_that_underscores_or_accents_hide_are_looked_at(tmp_path) -> None:
    """mueller is in two documents, a file's number in one, and an accent may be a character of its own."""
    texts = [f"claims policy{i}" + (" mueller" if i < 2 else "") + (" kru\u0308ger" if 2 <= i < 5 else "") for i in range(30)]
    texts[7] += " 30"
    content = [(f"d{i}", 0, text) for i, text in enumerate(texts)]
    for label, leaves in {
        "Claims": True,
        "0_claims": False,  # in "policy0"
        "4711_claims": True,
        "30_claims": False,
        "Claims mueller": False,
        "claims_mueller": False,
        "0_claims_mueller": False,
        "kr\u00fcger claims": False,
    }.items():
        store = tmp_path / label
        write(store, content, labels={0: label})
        export(store, tmp_path / f"{label}-out")
        (row,) = read(tmp_path / f"{label}-out").values()
        assert bool(row["label"]) == leaves, label


def leaves_as(label: str, *, common: list[str], rare: list[str]) -> bool:
    """Return whether a label leaves a site whose terms are these; its texts are the rare ones alone."""

    def leaf(terms: list[str], label: str) -> pa.Table:
        maps = {column: [(term, 30 if term in common else 1) for term in terms] for column in ("term_counts", "term_documents")}
        row = {"topic_key": "k", "size": 50, "label": label, "min_documents": 1, **maps}
        return pa.Table.from_pylist([row], schema=TABLES["site_topics"].schema)

    texts = pa.RecordBatch.from_pydict({"text": [*common, *rare]})
    (told,) = labels(leaf(common, label), leaf(common + rare, ""), 10, lambda words: count_words([texts], words))
    assert told in ("", label)
    return told == label


def test_labels_without_spaces_hold_no_rare_part() -> None:
    for label, leaves in (("信用卡", True), ("山田信用卡", False), ("問題", True)):
        assert leaves_as(label, common=["信用卡"], rare=["山田"]) == leaves, label


def test_words_of_scripts_with_marks_and_joiners_are_whole() -> None:
    """Persian writes one word of two with a joiner between, Hindi most vowels as marks."""
    assert leaves_as("بانک", common=["بانک"], rare=["بانک\u200cزاده"])
    assert not leaves_as("بانک\u200cزاده", common=["بانک", "زاده"], rare=["بانک\u200cزاده"]), "a rare name made of two common words"
    assert leaves_as("हिन्दी बैंक", common=["हिन्दी", "बैंक"], rare=[])
    assert not leaves_as("हिन्दी मिश्रा", common=["हिन्दी"], rare=["मिश्रा"])
    assert leaves_as("❤\ufe0f बैंक", common=["बैंक", "❤\ufe0f"], rare=[]), "emoji are no words"


# -- one export after another -------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    return sorted(read(folder).values(), key=lambda row: row["topic_key"])


@pytest.mark.parametrize("added", [1, 9])
def test_exports_that_differ_by_fewer_than_k_documents_are_the_same(added, tmp_path) -> None:
    content = documents({0: 40, 1: 25})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    write(tmp_path / "s", [*content, *documents({0: added}, start=500)])
    found = export(tmp_path / "s", tmp_path / "two")
    assert found["answered_with"] == 1
    assert everything(tmp_path / "two") == everything(tmp_path / "one")
    write(tmp_path / "s", content[added:])
    found = export(tmp_path / "s", tmp_path / "three")
    assert everything(tmp_path / "three") == everything(tmp_path / "one")
    assert found["holds_removed"]
    assert "no longer holds" in describe(found)


def test_other_topics_of_the_same_documents_are_not_told(tmp_path) -> None:
    # both together would set small groups apart: those that one document's move makes
    content = documents({0: 40, 1: 25})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    write(tmp_path / "s", [(d, 1 if d == "patient-0-7" else t, text) for d, t, text in content])
    assert export(tmp_path / "s", tmp_path / "two")["answered_with"] == 1
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def test_a_topic_that_changed_by_few_documents_is_given_as_it_was(tmp_path) -> None:
    content = documents({0: 40, 1: 25})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    write(tmp_path / "s", [*content, *documents({0: 3, 1: 30, 2: 20}, start=500)])
    found = export(tmp_path / "s", tmp_path / "two")
    assert (found["answered_with"], found["held_back"]) == (None, 1)
    one, two = by_size(tmp_path / "one"), by_size(tmp_path / "two")
    assert set(two) == {40, 55, 20}
    assert {**two[40], "generation": 1} == one[40]
    assert {row["generation"] for row in two.values()} == {2}  # a merge takes the newest generation's
    # the topic that was held back leaves once ten documents are new
    write(tmp_path / "s", [*content, *documents({0: 15, 1: 30, 2: 20}, start=500)])
    assert set(by_size_of(tmp_path, "three")) == {55, 20}


def by_size_of(tmp_path: Path, name: str) -> dict[int, dict]:
    export(tmp_path / "s", tmp_path / name)
    store = Store(tmp_path / name)
    store.pin(exports=True)
    return {row["size"]: row for row in store.read("site_topics").to_pylist()}


def test_what_is_given_again_tells_nothing_beside_any_earlier_export(tmp_path) -> None:
    """A topic of the second export, given again in the third, would leave one patient over when the first is taken from both."""

    def some(prefix: str, number: int, topic: int) -> list[tuple[str, int, str]]:
        return [(f"{prefix}{i}", topic, f"common {prefix}word text{prefix}{i}") for i in range(number)]

    x, y = some("x", 30, 0), some("y", 30, 0)
    store = tmp_path / "s"
    write(store, x + y + some("w", 20, 9))
    export(store, tmp_path / "1")
    write(store, x + some("z", 15, 0) + some("y", 30, 1) + some("w", 20, 9))
    export(store, tmp_path / "2")
    apart = [(name, 3 + (i >= 7), text) for i, (name, _, text) in enumerate(some("z", 15, 0))]
    patient, another = ("p", 0, "mister secret diagnosis"), ("q", 1, "another one")
    write(store, [*x, patient, *apart, *some("y", 30, 1), another, *some("w", 20, 9), *some("v", 20, 8)])
    found = export(store, tmp_path / "3")
    first, second, third = (by_size(tmp_path / name) for name in "123")
    assert (sorted(first), sorted(second)) == ([20, 60], [20, 30, 45])
    # 31 with the patient, and 30 as it was, less the 60 of before
    assert not {30, 31} <= set(third)
    assert found["held_back"] == 0


def test_a_few_documents_a_day_leave_once_they_are_k(tmp_path) -> None:
    content = documents({0: 40})
    told = []
    for day in range(6):
        write(tmp_path / "s", [*content, *documents({0: 4 * day}, start=500)] if day else content)
        export(tmp_path / "s", tmp_path / f"out{day}")
        told.append(next(iter(by_size(tmp_path / f"out{day}"))))
    assert told == [40, 40, 40, 52, 52, 52]


def test_an_edited_document_is_a_changed_one(tmp_path) -> None:
    content = documents({0: 40})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    for edited, answered in ((9, 1), (10, None)):
        write(tmp_path / "s", [(d, t, f"{text} edited" if i < edited else text) for i, (d, t, text) in enumerate(content)])
        assert export(tmp_path / "s", tmp_path / f"edited{edited}")["answered_with"] == answered


def test_a_vector_that_changed_without_its_text_is_an_edited_document(tmp_path) -> None:
    """Vectors of whole letters beside their titles: a new body is in the vector alone, and would be what two sums differ by."""
    content = documents({0: 40, 1: 25})

    def holding(letters: dict[str, str], content) -> None:
        store = write(tmp_path / "s", content, space="given", vectors={name: vector(letters.get(name, name)) for name, _, _ in content})
        last = store.snapshots()[-1]
        told = {**last.configuration, "input": {"embedding_column": "letter_vector"}}
        store.publish(configuration=told, summary=last.summary, unit_fingerprint=fingerprint(letters, content))

    holding({}, content)
    export(tmp_path / "s", tmp_path / "one")
    more = [*content, *documents({2: 20}, start=500)]
    holding({"patient-0-7": "a new body"}, more)
    assert export(tmp_path / "s", tmp_path / "two")["held_back"] == 1
    one, two = by_size(tmp_path / "one"), by_size(tmp_path / "two")
    assert set(two) == {40, 25, 20}
    assert two[40]["vector_sum"] == one[40]["vector_sum"]
    # ten of them may leave
    holding({f"patient-0-{i}": "a new body" for i in range(10)}, [*more, *documents({3: 20}, start=500)])
    assert export(tmp_path / "s", tmp_path / "three")["held_back"] == 0
    assert by_size(tmp_path / "three")[40]["vector_sum"] != one[40]["vector_sum"]


def test_a_new_name_for_the_same_topics_does_leave(tmp_path) -> None:
    content = documents({0: 40, 1: 25})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    write(tmp_path / "s", content, labels={0: "Bills"})
    found = export(tmp_path / "s", tmp_path / "two")
    assert (found["answered_with"], found["export"], found["generation"]) == (1, 2, 2)
    assert by_size(tmp_path / "two")[40]["label"] == "Bills"
    assert by_size(tmp_path / "two")[40]["vector_sum"] == by_size(tmp_path / "one")[40]["vector_sum"]
    export(tmp_path / "s", tmp_path / "three", site="North")
    assert {row["site"] for row in rows(tmp_path / "three")} == {"North"}


def test_k_may_be_raised_and_not_lowered(tmp_path) -> None:
    content = documents({0: 40, 1: 15})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    export(tmp_path / "s", tmp_path / "two", min_documents=20)
    (row,) = rows(tmp_path / "two")
    assert (row["size"], row["min_documents"]) == (40, 20)
    assert min(n for _, n in row["term_documents"]) >= 20
    with pytest.raises(RequestError, match=r"at least 20.*Got 10"):
        export(tmp_path / "s", tmp_path / "three")


def test_a_raised_k_holds_beside_an_export_of_a_smaller_one(tmp_path) -> None:
    content = documents({0: 40, 1: 12, 2: 12, 3: 12})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    # the first and second by twelve, which the smaller K allowed; the third by thirty
    write(tmp_path / "s", [*content, *documents({0: 12, 1: 12, 2: 30}, start=500)])
    export(tmp_path / "s", tmp_path / "two", min_documents=20)
    assert set(by_size(tmp_path / "two")) == {40, 42}


def test_another_model_over_the_same_documents_is_refused(tmp_path) -> None:
    content = documents({0: 40})
    write(tmp_path / "s", content)
    export(tmp_path / "s", tmp_path / "one")
    write(tmp_path / "s", content, space="space-2")
    with pytest.raises(RequestError, match="embedding model"):
        export(tmp_path / "s", tmp_path / "two")
    assert not (tmp_path / "two").exists()
    # once enough is new it leaves, and no leaf of the old space with it
    write(tmp_path / "s", [*content, *documents({0: 5, 1: 30}, start=500)], space="space-2")
    export(tmp_path / "s", tmp_path / "three")
    assert {row["embedding_space"] for row in rows(tmp_path / "three")} == {"space-2"}
    assert set(by_size(tmp_path / "three")) == {30}


# -- killed, refused ----------------------------------------------------------------------------------------------------

KILLED = """
import os, sys, shutil
from pathlib import Path
import jobs.export as job
count = int(sys.argv[3])
def dying(function):
    def inner(*arguments, **named):
        global count
        count -= 1
        if count < 0:
            os._exit(9)
        return function(*arguments, **named)
    return inner
os.fsync, os.rename, os.replace, shutil.copy2 = map(dying, (os.fsync, os.rename, os.replace, shutil.copy2))
Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)
job.export(sys.argv[1], sys.argv[2])
"""


STEPS = [1, 4, 30, 60, 61, 63, 64, 10**6]
"""File system calls to live for: before the record, between it and the copy, before and after the copy gets its name."""


@pytest.mark.timeout(300)
def test_killed_anywhere_nothing_looks_finished_and_nothing_left_without_a_record(site, tmp_path) -> None:
    finished = False
    for step in STEPS:
        folder, out = tmp_path / f"copy{step}" / "clinic", tmp_path / f"out{step}" / "out"
        shutil.copytree(site.path, folder)
        command = [sys.executable, "-c", KILLED, str(folder), str(out), str(step)]
        killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert killed.returncode in (0, 9), killed.stderr
        for marker in tmp_path.glob(f"out{step}/**/_topicscale.json"):
            # what looks like a store outside has its record inside
            assert (folder / FOLDER / "1" / "entry.json").exists()
            assert marker.exists()
        finished = killed.returncode == 0
        if not finished and not out.exists():
            export(folder, out)  # the same command goes on
        assert sorted(row["size"] for row in rows(out)) == [12, 25, 40]
        assert (folder / FOLDER / "1" / "entry.json").exists()
        assert os.listdir(out.parent) == ["out"]
    assert finished


def test_what_cannot_be_exported_is_refused(site, tmp_path) -> None:
    for least in (1, 0, -3):
        with pytest.raises(RequestError, match=f"at least 2. Got {least}"):
            export(site.uri, tmp_path / "out", min_documents=least)
    with pytest.raises(RequestError, match="nothing may leave"):
        export(site.uri, tmp_path / "out", min_documents=41)
    with pytest.raises(RequestError, match="--site"):
        export(site.uri, tmp_path / "out", site=" ")
    with pytest.raises(RequestError, match="outside the store"):
        export(site.uri, site.path / "out")
    with pytest.raises(StoreError, match="no topicscale store"):
        export(tmp_path / "nowhere", tmp_path / "out")
    Store(tmp_path / "empty", create=True)
    with pytest.raises(StoreError, match="no finished run"):
        export(tmp_path / "empty", tmp_path / "out")
    with site.lock("a run"), pytest.raises(StoreLocked, match="a run"):
        export(site.uri, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (site.path / FOLDER).exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for taken in ("full", "file"):
        with pytest.raises(RequestError, match="not empty"):
            export(site.uri, tmp_path / taken)
    (tmp_path / "vacant").mkdir()
    export(site.uri, tmp_path / "vacant")
    with pytest.raises(RequestError, match="came from elsewhere"):
        export(tmp_path / "vacant", tmp_path / "out")


def test_a_damaged_record_stops_everything(site, tmp_path) -> None:
    export(site.uri, tmp_path / "one")
    secret = site.path / FOLDER / "secret"
    kept = secret.read_bytes()
    secret.unlink()
    with pytest.raises(StoreError, match="secret"):
        export(site.uri, tmp_path / "two")
    secret.write_bytes(kept)
    (site.path / FOLDER / "1" / "entry.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        export(site.uri, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_the_record_holds_no_text_and_no_id(site, tmp_path) -> None:
    content = documents(SIZES)
    export(site.uri, tmp_path / "out")
    told = {doc_id for doc_id, _, _ in content} | {text for _, _, text in content}
    assert leaked(site.path / FOLDER, told) == []


def test_the_command_line(site, tmp_path) -> None:
    def topicscale(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", "export", "--store", site.uri, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    refused = topicscale("--output", str(tmp_path / "out"))
    assert (refused.returncode, "Only topics can be exported for now" in refused.stderr) == (2, True)
    done = topicscale("--output", str(tmp_path / "out"), "--topics-only", "--min-document-frequency", "20", "--site", "North", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["site"], found["min_documents"], found["topics"]) == ("North", 20, 2)
    assert topicscale("--output", str(tmp_path / "out"), "--topics-only").returncode == 2
