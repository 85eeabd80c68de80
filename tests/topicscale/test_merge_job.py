"""`topicscale merge` on tables made by hand: what it must not do without a word."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import cli
from jobs.export import export
from jobs.merge import describe, merge
from tests.topicscale.leaks import leaked
from tests.topicscale.sites import documents, vector, write
from topicscale import TopicModel, federate
from topicscale.config import Config, TermsConfig, fingerprint
from topicscale.errors import RequestError, StoreError
from topicscale.store import Store
from topicscale.tables import TABLES


def unlike(prefix: str, number: int, topic: int) -> list[tuple[str, int, str]]:
    """Return documents that share no term."""
    return [(f"{prefix}{i}", topic, f"{prefix}u{i} {prefix}v{i}") for i in range(number)]


def with_terms(path: Path, start: int, **terms) -> Path:
    store = write(path, documents({0: 30, 1: 20}, start=start))
    last = store.snapshots()[-1]
    configuration = dict(last.configuration)
    configuration["terms"] = {**configuration["terms"], **terms}
    store.publish(configuration=configuration, summary=last.summary, unit_fingerprint=fingerprint(start, terms))
    return path


def test_topics_without_terms_are_matched_with_nothing(tmp_path) -> None:
    one = unlike("c", 12, 0) + unlike("d", 13, 1) + unlike("e", 12, 2) + documents({3: 30})
    two = unlike("g", 12, 0) + unlike("h", 15, 1) + documents({3: 33}, start=50)
    for name, content in {"one": one, "two": two}.items():
        write(tmp_path / name, content, space=name)
        export(tmp_path / name, tmp_path / f"{name}-out", site=name)
    found = merge([tmp_path / "one-out", tmp_path / "two-out"], tmp_path / "m", match="terms")
    assert (found["topics"], found["without_terms"]) == (6, 5)
    assert "5 topics came without any term" in describe(found)
    again = merge([tmp_path / "two-out", tmp_path / "one-out"], tmp_path / "n", match="terms")
    topics = [Store(tmp_path / name).read("topics", ["topic_id", "topic_key", "size"]).to_pylist() for name in "mn"]
    assert topics[0] == topics[1]
    assert again["topics"] == 6
    write(tmp_path / "bare", unlike("k", 12, 0), space="one")
    export(tmp_path / "bare", tmp_path / "bare-out", site="bare")
    with pytest.raises(RequestError, match="when they have some"):
        merge([tmp_path / "bare-out"], tmp_path / "o", match="terms")


def test_a_merge_is_another_one_when_terms_were_counted_anew(tmp_path) -> None:
    """Sizes, vectors and pilots stay what they were when a site counts its terms with other settings."""

    def union(name: str, config: TermsConfig) -> federate.Union:
        store = write(tmp_path / name, documents({0: 30, 1: 20}), config=config)
        return replace(federate.unite([store.read("site_topics")], [store.read("pilots")]), pilots=TABLES["pilots"].schema.empty_table())

    once, twice = union("a", TermsConfig()), union("b", TermsConfig())
    other = union("c", TermsConfig(stop_words=("common", "half")))
    assert once.keys == twice.keys == other.keys
    assert federate.fingerprint(once) == federate.fingerprint(twice) != federate.fingerprint(other)
    counted = replace(once, rows=once.rows.set_column(*column_of(other, once, "term_counts")))
    assert federate.fingerprint(counted) != federate.fingerprint(once)


def column_of(source: federate.Union, target: federate.Union, name: str) -> tuple[int, str, pa.ChunkedArray]:
    return target.rows.schema.get_field_index(name), name, source.rows[name]


def test_a_merge_of_merges_weighs_and_shows_words_as_one_merge_does(tmp_path) -> None:
    a = with_terms(tmp_path / "a", 0, top_n_words=20, reduce_frequent_words=True)
    b, c = (with_terms(tmp_path / name, start, top_n_words=5) for name, start in (("b", 100), ("c", 200)))
    merge([a, b, c], tmp_path / "whole", similarity=0.7)
    merge([a, b], tmp_path / "part", similarity=0.7)
    merge([tmp_path / "part", c], tmp_path / "again", similarity=0.7)
    for table in ("topics", "topic_terms"):
        one, other = (Store(tmp_path / name).read(table).sort_by("topic_id").to_pylist() for name in ("whole", "again"))
        key = lambda row: (row["topic_id"], row.get("term", ""))  # noqa: E731
        assert sorted(one, key=key) == sorted(other, key=key)
    assert Store(tmp_path / "whole").pin().configuration["terms"]["reduce_frequent_words"] is False


def test_copies_of_a_store_do_not_stand_for_each_other_without_a_word(tmp_path) -> None:
    write(tmp_path / "berlin", documents({0: 30, 1: 20}))
    shutil.copytree(tmp_path / "berlin", tmp_path / "paris")
    merge([tmp_path / "berlin", tmp_path / "paris"], tmp_path / "same", similarity=0.7)
    write(tmp_path / "paris", documents({2: 40, 3: 25}))
    found = merge([tmp_path / "berlin", tmp_path / "paris"], tmp_path / "m", similarity=0.7)
    assert found["superseded"] == {str(tmp_path / "berlin"): ["berlin"]}
    assert f"berlin of {tmp_path / 'berlin'} counts for nothing" in describe(found)
    shutil.copytree(tmp_path / "paris", tmp_path / "rome")
    write(tmp_path / "rome", documents({5: 40}))
    write(tmp_path / "berlin", documents({4: 40}))
    for order in permutations(("berlin", "paris", "rome")):
        with pytest.raises(RequestError, match="copies of one store"):
            merge([tmp_path / name for name in order], tmp_path / "n", similarity=0.7)


def test_exports_of_copies_do_not_stand_for_each_other_without_a_word(tmp_path) -> None:
    """A store that was copied for each site before it was run there: its id is every site's."""
    write(tmp_path / "template", documents({0: 30}))
    for name, start in (("berlin", 100), ("paris", 200)):
        shutil.copytree(tmp_path / "template", tmp_path / name)
        write(tmp_path / name, documents({0: 30, 1: 20}, start=start))
        export(tmp_path / name, tmp_path / f"{name}-out")
    outs = [tmp_path / "berlin-out", tmp_path / "paris-out"]
    for order in (outs, outs[::-1]):
        with pytest.raises(RequestError, match="copies of one store"):
            merge(order, tmp_path / "all", similarity=0.7)
    write(tmp_path / "paris", documents({0: 60, 1: 40}, start=200))
    export(tmp_path / "paris", tmp_path / "later")
    for order in ([outs[0], tmp_path / "later"], [tmp_path / "later", outs[0]]):
        found = merge(order, tmp_path / "all", similarity=0.7)
        assert found["superseded"] == {str(outs[0]): ["berlin"]}
    # beside its own store, and in a merge, an export is the site's once more
    merge([outs[0]], tmp_path / "merged", similarity=0.7)
    assert merge([tmp_path / "berlin", outs[0], tmp_path / "merged"], tmp_path / "same", similarity=0.7)["superseded"] == {}
    # under another name it might be another site's
    found = merge([tmp_path / "berlin", f"madrid={outs[0]}"], tmp_path / "same", similarity=0.7)
    assert found["superseded"] == {str(outs[0]): ["madrid"]}


def test_a_merge_holds_what_two_sites_share_once_and_goes_with_both(tmp_path) -> None:
    content = documents({0: 30, 1: 20})
    write(tmp_path / "berlin", content)
    write(tmp_path / "paris", content + documents({2: 25}))
    both = [tmp_path / "berlin", tmp_path / "paris"]
    found = merge(both, tmp_path / "all", similarity=0.7)
    again = merge([tmp_path / "all", *both], tmp_path / "again", similarity=0.7)
    assert (again["documents"], again["superseded"]) == (found["documents"], {})


def test_a_merge_that_lost_what_two_sites_shared_is_no_copy_of_either(tmp_path) -> None:
    content = documents({0: 30, 1: 20})
    write(tmp_path / "berlin", content)
    write(tmp_path / "paris", content + documents({2: 25}))
    merge([tmp_path / "berlin", tmp_path / "paris"], tmp_path / "all", similarity=0.7)
    write(tmp_path / "paris", documents({2: 40}))
    merge([tmp_path / "all", tmp_path / "paris"], tmp_path / "next", similarity=0.7)
    found = merge([tmp_path / "next", tmp_path / "berlin"], tmp_path / "last", similarity=0.7)
    assert found["documents"] == 30 + 20 + 40


def test_merges_of_copies_that_went_different_ways_are_not_mixed(tmp_path) -> None:
    write(tmp_path / "berlin", documents({0: 30, 1: 20}))
    shutil.copytree(tmp_path / "berlin", tmp_path / "copy")
    (tmp_path / "copy" / "_lock").unlink(missing_ok=True)
    for name, others in (("berlin", {2: 25}), ("copy", {3: 35})):
        write(tmp_path / name, documents({0: 30, **others}, start=len(name)))
        write(tmp_path / f"beside-{name}", documents({1: 40}, start=100 + len(name)))
        merge([tmp_path / name, tmp_path / f"beside-{name}"], tmp_path / f"merged-{name}", similarity=0.7)
    with pytest.raises(RequestError, match="copies of one store"):
        merge([tmp_path / "merged-berlin", tmp_path / "merged-copy"], tmp_path / "all", similarity=0.7)


def test_an_export_goes_by_the_name_it_is_given(tmp_path) -> None:
    """Its own is that of its site's folder, which others may have, too."""
    for clinic in ("one", "two"):
        write(tmp_path / clinic / "store", documents({0: 30, 1: 20}, start=ord(clinic[0])))
        export(tmp_path / clinic / "store", tmp_path / clinic / "out", min_documents=5)
    found = merge([f"berlin={tmp_path / 'one' / 'out'}", str(tmp_path / "two" / "out")], tmp_path / "all", similarity=0.5)
    assert sorted(site["site"] for site in found["by_site"]) == ["berlin", "store"]
    # a merge of several sites keeps their names
    again = merge([f"europe={tmp_path / 'all'}"], tmp_path / "next", similarity=0.5)
    assert sorted(site["site"] for site in again["by_site"]) == ["berlin", "store"]


def test_a_merge_of_exports_knows_how_its_vectors_are_made(tmp_path) -> None:
    """What its vectors come from leaves with an export: neither a folder nor a column, which are nobody else's."""

    def of(name: str, **changed) -> Config:
        content = documents({0: 30, 1: 20})
        store = write(tmp_path / name, content, vectors={d: vector(text) for d, _, text in content})
        last = store.snapshots()[-1]
        told = {**last.configuration, **changed}
        leaves = store.read("site_topics")
        model = pa.array(["BAAI/bge-small-en-v1.5"] * len(leaves))
        leaves = leaves.set_column(leaves.schema.get_field_index("embedding_model"), "embedding_model", model)
        store.replace("site_topics", leaves, stage="publish", unit_fingerprint=fingerprint(name))
        store.publish(configuration=told, summary=last.summary, unit_fingerprint=fingerprint(name, told))
        export(store.uri, tmp_path / f"{name}-out", site=name)
        merge([tmp_path / f"{name}-out"], tmp_path / f"{name}-all")
        assert leaked(tmp_path / f"{name}-out", {"/srv/models", "letter_vector"}) == []
        return Config.from_dict(Store(tmp_path / f"{name}-all").pin().configuration)

    how = {"model": "/srv/models/bge", "prompt": "query: ", "max_tokens": 64, "dtype": "bfloat16"}
    found = of("asked", embedding=how)
    assert (found.embedding.model, found.embedding.prompt, found.embedding.max_tokens) == ("BAAI/bge-small-en-v1.5", "query: ", 64)
    assert (found.embedding.dtype, found.input.embedding_column) == ("auto", None)
    found = of("whole", embedding=how | {"dtype": "int8", "backend": "onnx"})
    assert (found.embedding.dtype, found.embedding.backend) == ("int8", "onnx")
    assert of("given", input={"embedding_column": "letter_vector"}).input.embedding_column == "embedding"


@pytest.mark.parametrize(
    "command",
    [
        ["topics", "--store"],
        ["report", "--output", "r.html", "--store"],
        ["label", "--store"],
        ["evaluate", "--store"],
        ["diff", "--to", "x", "--from"],
    ],
)
def test_an_export_is_for_a_merge(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "site", documents({0: 30, 1: 20}))
    export(tmp_path / "site", tmp_path / "out")
    assert cli.main([*command, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "is an export of a store" in said
    assert f"topicscale merge --inputs {tmp_path / 'out'}" in said
    with pytest.raises(StoreError, match="is an export"):
        TopicModel.load(tmp_path / "out")
