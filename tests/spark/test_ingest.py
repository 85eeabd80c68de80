"""Every input format, every fault, and the promise that counts add up."""

import gzip
import json
import random
import re
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import functions as F

from spark.batch import _fitted
from spark.cleaning import _VISIBLE
from spark.ingest import ingest
from topicscale.config import Config
from topicscale.errors import InputError
from topicscale.tables import QUARANTINE_REASONS
from topicscale.texts import VISIBLE

TEXTS = ["red apples, and pears", 'a "quoted" word', "zweite Äpfel", "今天天气很好", "line one\nline two"]


def _run(spark, folder, path, **options):
    sections: dict = {"input": {"paths": [str(path)]}}
    for key, value in options.items():
        section, _, name = key.partition("__")
        sections.setdefault(section, {})[name] = value
    store = str(folder / "store")
    result = ingest(spark, Config.from_dict(sections), store_uri=store)
    assert result.input_rows == result.documents + sum(result.quarantined.values())
    assert set(result.quarantined) <= set(QUARANTINE_REASONS)
    documents = DeltaTable(f"{store}/documents").to_pyarrow_table().to_pylist()
    quarantine = DeltaTable(f"{store}/quarantine").to_pyarrow_table().to_pylist()
    assert len(documents) == result.documents == sum(p.rows for p in result.partitions)
    assert len(quarantine) == sum(result.quarantined.values())
    return result, documents, quarantine


def _csv(rows, sep=","):
    return "".join(sep.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)


def _write(folder, kind):
    rows = [{"n": i, "text": text} for i, text in enumerate(TEXTS)]
    path = folder / f"docs.{kind}"
    plain = kind.split(".")[0]
    if plain == "csv":
        content = _csv([["n", "text"], *([str(r["n"]), r["text"]] for r in rows)]).encode()
    elif plain == "tsv":
        content = ("n\ttext\n" + "".join(f"{r['n']}\t{r['text']}\n" for r in rows if "\n" not in r["text"])).encode()
    elif plain == "jsonl":
        content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    elif plain == "txt":
        content = "".join(r["text"] + "\n" for r in rows if "\n" not in r["text"]).encode()
    elif plain == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    else:
        write_deltalake(folder / "table", pa.Table.from_pylist(rows))
        return folder / "table"
    if kind.endswith(".gz"):
        content = gzip.compress(content)
    path.write_bytes(content)
    if kind.endswith(".zst"):
        path.write_bytes(subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout)
    return path


def test_executors_need_no_python(spark, tmp_path, monkeypatch) -> None:
    """What is called python3 where they run may be of another version, or missing."""
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "no-such-python")
    result, *_ = _run(spark, tmp_path, _write(tmp_path, "jsonl"))
    assert result.documents == len(TEXTS)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv.zst", "tsv", "jsonl", "jsonl.gz", "jsonl.zst", "txt", "txt.gz", "parquet", "delta"])
def test_a_format_gives_its_texts(spark, tmp_path, kind):
    if kind.endswith(".zst") and subprocess.run(["which", "zstd"], capture_output=True, check=False).returncode:
        pytest.skip("no zstd command to make the input with")
    _, documents, _ = _run(spark, tmp_path, _write(tmp_path, kind))
    wanted = [text for text in TEXTS if "\n" not in text or kind.split(".")[0] not in ("tsv", "txt")]
    assert sorted(d["text"] for d in documents) == sorted(wanted)


def test_every_fault_of_a_csv_row_has_its_reason(spark, tmp_path):
    path = tmp_path / "bad.csv"
    rows = [
        b"id,text",
        b"1,good",
        b'2,""',
        b"3,   ",
        b"4,\xff\xfe broken",
        b"5,one,two",
        b"6",
        b"1,again",
        b",nameless",
        b"7," + b"x" * 300,
    ]
    path.write_bytes(b"\n".join(rows) + b"\n")
    result, documents, quarantine = _run(spark, tmp_path, path, input__id_column="id", input__max_chars=200)
    assert result.quarantined == {"bad_row": 2, "duplicate_id": 1, "empty": 2, "missing_id": 1, "too_long": 1, "undecodable": 1}
    assert [d["doc_id"] for d in documents] == ["1"]
    raw = {row["raw"] for row in quarantine if row["reason"] == "bad_row"}
    assert raw == {"5,one,two", "6"}
    assert {row["source"] for row in quarantine} == {str(path)}


def test_every_fault_of_a_json_line_has_its_reason(spark, tmp_path):
    path = tmp_path / "bad.jsonl"
    good = {"text": "fine", "v": [0.5, 0.5]}
    lines = [
        json.dumps(good),
        '{"text": "cut off',
        "[1, 2]",
        '{"text": null, "v": [1, 0]}',
        '{"text": {"nested": 1}, "v": [1, 0]}',
        '{"text": "{braces}", "v": [1, 0]}',
        '{"text": "short", "v": [1]}',
        '{"text": "zero", "v": [0, 0]}',
        '{"text": "none"}',
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xc3\x28", "v": [1, 0]}\n\n')
    result, documents, _ = _run(spark, tmp_path, path, input__embedding_column="v")
    assert result.quarantined == {"bad_row": 2, "bad_vector": 3, "empty": 1, "not_text": 1, "undecodable": 1}
    assert {d["text"]: d["embedding"] for d in documents} == {"fine": [0.5, 0.5], "{braces}": [1.0, 0.0]}


@pytest.mark.parametrize("name", ["текст", "it's", 'a "b"', "a\\b"])
def test_an_object_is_no_text_whatever_its_key(spark, tmp_path, name):
    path = tmp_path / "keys.jsonl"
    path.write_text("\n".join(json.dumps({name: value}) for value in ({"a": 1}, [1], "[1]", "words")), "utf-8")
    result, documents, _ = _run(spark, tmp_path, path, input__text_column=[name])
    assert result.quarantined == {"not_text": 2}
    assert {d["text"] for d in documents} == {"[1]", "words"}


def test_a_ten_megabyte_row_is_refused_and_shown_short(spark, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("short\n" + "word " * 2_000_000 + "\nalso short\n")
    result, _, quarantine = _run(spark, tmp_path, path)
    assert result.quarantined == {"too_long": 1}
    assert len(quarantine[0]["raw"]) == 1000


def test_ids_are_the_same_in_another_order_and_for_identical_rows(spark, tmp_path):
    texts = [f"text number {i % 40}" for i in range(60)]
    first = tmp_path / "one.txt"
    first.write_text("\n".join(texts))
    _, before, _ = _run(spark, tmp_path, first)
    random.Random(1).shuffle(texts)
    second = tmp_path / "two.txt"
    second.write_text("\n".join(texts))
    _, after, _ = _run(spark, tmp_path, second)
    assert len({d["doc_id"] for d in before}) == 60
    assert {(d["doc_id"], d["text"], d["partition_id"]) for d in before} == {(d["doc_id"], d["text"], d["partition_id"]) for d in after}


def test_a_row_has_one_id_however_its_columns_come(spark, tmp_path):
    """In another order, format or number of them, with other rows of which some have more, or numbers that are read otherwise."""
    one, same = {"text": "one", "n": 7, "site": "a", "at": None}, {"text": "two", "n": 1.5, "site": None, "at": None}
    inputs = {
        "plain.jsonl": [one, same],
        "fewer.jsonl": [{"site": "a", "n": 7, "text": "one"}, {"n": 1.5, "text": "two"}],
        "mixed.jsonl": [{"n": "n/a", "text": "other", "more": 1}, one, same],
        "gap.jsonl": [{"text": "other"}, one | {"n": 7.0}, same],
    }
    for name, rows in inputs.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text("n,site,text,at\n7,a,one,\n1.5,,two,\n")
    pq.write_table(pa.Table.from_pylist([one, same]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"n": 7.0, "site": "a", "text": "one"}, same]), tmp_path / "b.parquet")
    ids = set()
    for name in [*inputs, "a.csv", "a.parquet", "b.parquet"]:
        _, documents, _ = _run(spark, tmp_path, tmp_path / name)
        ids.add(tuple(next(d["doc_id"] for d in documents if d["text"] == text) for text in ("one", "two")))
    assert len(ids) == 1


def test_of_two_rows_with_one_id_the_same_one_is_kept_in_any_order(spark, tmp_path):
    kept = set()
    for order in (["a,x", "a,y", "b,z"], ["b,z", "a,y", "a,x"]):
        path = tmp_path / "ids.csv"
        path.write_text("id,text\n" + "\n".join(order) + "\n")
        _, documents, _ = _run(spark, tmp_path, path, input__id_column="id")
        kept.add(tuple(sorted(d["text"] for d in documents)))
    assert len(kept) == 1


def test_numbers_as_ids_of_json_lines_stay_as_they_are_written(spark, tmp_path):
    path = tmp_path / "numbers.jsonl"
    ids = [7, 90071992547409930, 90071992547409931]  # the latter two are the same double
    path.write_text("".join(json.dumps({"id": i, "text": f"text {i}"}) + "\n" for i in ids))
    result, documents, _ = _run(spark, tmp_path, path, input__id_column="id")
    assert result.quarantined == {}
    assert sorted(d["doc_id"] for d in documents) == sorted(map(str, ids))


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.float32(), pa.decimal128(30, 2), "jsonl"])
def test_numbers_as_ids_are_the_same_whatever_type_they_have(spark, tmp_path, kind):
    ids = [4711, 12345678, -3]
    if kind == "jsonl":  # as pandas writes them where one is missing
        path = tmp_path / "ids.jsonl"
        path.write_text("".join(json.dumps({"id": float(i), "text": f"text {i}"}) + "\n" for i in ids))
    else:
        path = tmp_path / "ids.parquet"
        pq.write_table(pa.table({"id": pa.array(ids).cast(kind), "text": [f"text {i}" for i in ids]}), path)
    _, documents, _ = _run(spark, tmp_path, path, input__id_column="id")
    assert {d["doc_id"]: d["text"] for d in documents} == {str(i): f"text {i}" for i in ids}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "txt"])
def test_what_folders_are_called_is_a_column(spark, tmp_path, kind):
    values = {"a b+c%2Fd": "a b+c/d", "größer": "größer", "__HIVE_DEFAULT_PARTITION__": None}
    for i, name in enumerate(values):
        folder = tmp_path / "in" / f"site={name}"
        folder.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table({"text": [f"text {i}"]}), folder / "part.parquet")
        else:
            (folder / f"part.{kind}").write_text(
                {"csv": "text\ntext {}", "jsonl": '{{"text": "text {}"}}', "txt": "text {}"}[kind].format(i)
            )
    result, documents, _ = _run(spark, tmp_path, tmp_path / "in", partition__column="site")
    assert {d["text"]: d["site"] for d in documents} == {f"text {i}": value for i, value in enumerate(values.values())}
    assert {p.value for p in result.partitions} == set(values.values())


def test_an_array_of_another_type_in_a_column_nobody_asked_for_costs_no_document(spark, tmp_path):
    path = tmp_path / "tags.jsonl"
    path.write_text('{"text": "one", "tags": [1, 2]}\n{"text": "two", "tags": ["a"]}\n{"text": "three", "tags": "b"}\n')
    _, documents, _ = _run(spark, tmp_path, path)
    assert sorted(d["text"] for d in documents) == ["one", "three", "two"]


def test_several_text_columns_are_joined_by_a_blank_line(spark, tmp_path):
    path = tmp_path / "two.csv"
    path.write_text("title,body\nTop,below\nAlone,\n")
    _, documents, _ = _run(spark, tmp_path, path, input__text_column=["title", "body"])
    assert sorted(d["text"] for d in documents) == ["Alone", "Top\n\nbelow"]


def test_columns_whose_names_clash_are_renamed_and_told(spark, tmp_path):
    path = tmp_path / "names.jsonl"
    path.write_text('{"body": "words", "text": "other", "doc_id": 7, "a b;c": true, "deep": {"x": 1}, "service.name": "s", "`": 1}\n')
    result, documents, _ = _run(spark, tmp_path, path, input__text_column=["body"])
    names = {"text": "text_input", "doc_id": "doc_id_input", "a b;c": "a_b_c", "service.name": "service_name", "`": "column"}
    assert result.renamed == names
    assert documents[0]["service_name"] == "s"
    assert documents[0]["text"] == "words"
    assert (documents[0]["text_input"], documents[0]["a_b_c"]) == ("other", True)
    assert "deep" in result.changed


def test_a_mark_at_the_start_and_windows_line_ends_are_not_text(spark, tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes("\ufeffname,text\r\nä,first\r\nö,second\r\n".encode())
    _, documents, _ = _run(spark, tmp_path, path)
    assert sorted((d["name"], d["text"]) for d in documents) == [("ä", "first"), ("ö", "second")]
    plain = tmp_path / "windows.txt"
    plain.write_bytes("\ufeffeins\r\nzwei\r\n".encode())
    _, documents, _ = _run(spark, tmp_path, plain)
    assert sorted(d["text"] for d in documents) == ["eins", "zwei"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "jsonl"])
@pytest.mark.parametrize("encoding", ["ISO-8859-1", "windows-1252", "Shift_JIS"])
def test_another_encoding_is_honoured(spark, tmp_path, kind, encoding):
    texts = ["リンゴ", "表"] if encoding == "Shift_JIS" else ["Äpfel", "“cœur”" if encoding == "windows-1252" else "cæur"]
    path = tmp_path / f"other.{kind}"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts] if kind == "jsonl" else ["text", *texts]
    path.write_bytes("\r\n".join(lines).encode(encoding) + b"\n")
    result, documents, _ = _run(spark, tmp_path, path, input__options={"encoding": encoding})
    assert result.quarantined == {}
    assert {d["text"] for d in documents} - {"text"} == set(texts)


def test_what_another_encoding_does_not_have_is_undecodable(spark, tmp_path):
    path = tmp_path / "ascii.txt"
    path.write_bytes("good\nÄpfel\n".encode("latin-1"))
    assert _run(spark, tmp_path, path, input__options={"encoding": "US-ASCII"})[0].quarantined == {"undecodable": 1}


def test_times_of_any_resolution_are_kept(spark, tmp_path):
    import datetime as dt

    moment = dt.datetime(2024, 2, 3, 4, 5, 6)
    path = tmp_path / "times.parquet"
    columns = {unit: pa.array([moment], pa.timestamp(unit)) for unit in ("ms", "us", "ns")}
    pq.write_table(pa.table({"text": ["x"], "day": pa.array([moment.date()]), **columns}), path)
    _, documents, _ = _run(spark, tmp_path, path)
    assert {documents[0][unit].replace(tzinfo=None) for unit in ("ms", "us", "ns")} == {moment}


def test_spark_and_the_python_api_agree_on_what_shows_nothing(spark):
    characters = [chr(code) for code in range(1, 0x3100)] + ["\ufeff", "\ufffd", "\U0001f600"]
    shown = spark.createDataFrame(pa.table({"c": characters})).select("c", F.col("c").rlike(_VISIBLE).alias("shown")).collect()
    assert [row["c"] for row in shown if row["shown"] != bool(re.search(VISIBLE, row["c"]))] == []
    assert {"\t", "\x01", "\x85", "\u200b", "\u3000"} <= {row["c"] for row in shown if not row["shown"]}


def test_hash_partitions_hold_identical_texts_together(spark, tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"text {i % 50}" for i in range(200)))
    result, documents, _ = _run(spark, tmp_path, path, partition__number=4)
    assert [p.partition_id for p in result.partitions] == [f"hash-{i:04d}-of-0004" for i in range(4)]
    assert len({(d["text"], d["partition_id"]) for d in documents}) == 50


def test_a_column_makes_one_partition_a_value_and_pieces_of_a_large_one(spark, tmp_path):
    path = tmp_path / "sites.jsonl"
    rows = [{"text": f"t{i}", "Site Name": "gross/../x"} for i in range(50)] + [
        {"text": "s", "Site Name": "klein"},
        {"text": "n", "Site Name": None},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    result, _, _ = _run(spark, tmp_path, path, partition__column="Site Name", partition__target_documents=20)
    values = [p.value for p in result.partitions]
    assert values.count("gross/../x") == 3
    assert {"klein", None} <= set(values)
    assert all(p.partition_id.startswith("site-name-") and "gross" not in p.partition_id for p in result.partitions)
    assert "site-name-null" in {p.partition_id for p in result.partitions}


def test_a_number_divides_as_people_write_it(spark, tmp_path):
    path = tmp_path / "years.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "year": year}) for i, year in enumerate([2020, 12345678, 1.5, None])))
    result, _, _ = _run(spark, tmp_path, path, partition__column="year")
    assert {p.value for p in result.partitions} == {"2020", "12345678", "1.5", None}


def test_partitions_are_bounded_by_characters_too(spark, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"text": f"{i} " + "long text " * 100, "site": "large"} for i in range(40)] + [
        {"text": f"s{i}", "site": "small"} for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    result, documents, _ = _run(spark, tmp_path, path, partition__target_characters=5_000)
    assert len(result.partitions) == -(-sum(len(d["text"]) for d in documents) // 5_000) == 9
    random.Random(2).shuffle(rows)
    path.write_text("\n".join(map(json.dumps, rows)))
    assert _run(spark, tmp_path, path, partition__target_characters=5_000)[0].partitions == result.partitions
    result, _, _ = _run(spark, tmp_path, path, partition__column="site", partition__target_characters=5_000)
    assert [p.value for p in result.partitions].count("large") == 9
    assert [p.value for p in result.partitions].count("small") == 1


def test_the_digest_tells_content_from_order(spark, tmp_path):
    path = tmp_path / "digest.txt"
    seen = []
    for lines in (["a b", "c d"], ["c d", "a b"], ["a b", "c e"]):
        path.write_text("\n".join(lines))
        seen.append(_run(spark, tmp_path, path)[0].partitions[0].digest)
    assert seen[0] == seen[1] != seen[2]


def test_a_repeated_write_changes_nothing(spark, tmp_path):
    path = tmp_path / "again.txt"
    path.write_text("one\ntwo\n")
    config = Config.from_dict({"input": {"paths": [str(path)]}})
    for _ in range(2):
        ingest(
            spark, config, store_uri=str(tmp_path / "store"), txn=dict.fromkeys(("documents", "quarantine", "partitions"), ("ingest", 5))
        )
    assert DeltaTable(tmp_path / "store" / "documents").version() == 0


def test_all_rows_bad_is_told_not_raised(spark, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text('text\n" "\n"  "\n')
    result, _, _ = _run(spark, tmp_path, path)
    assert (result.documents, result.quarantined, result.partitions) == (0, {"empty": 2}, ())


def test_an_unknown_partition_column_is_refused(spark, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    with pytest.raises(InputError, match=r"partition\.column"):
        _run(spark, tmp_path, path, partition__column="site")


def _told_by_its_head(folder, late, name="late.jsonl"):
    """Write a first MiB of rows that have a number, a truth value and nothing else, then the late rows; return the path."""
    path = folder / name
    head = [{"text": f"early text {i} " + "word " * 200, "n": i, "ok": True} for i in range(1100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*head, *late]))
    return path


def test_keys_that_appear_late_are_kept_and_told(spark, tmp_path):
    late = [{"text": "one", "n": 1, "site": "a"}, {"text": "two", "site": {"b": 1}, "N": 5}, {"text": "", "site": "c", "never": 1}]
    result, documents, _ = _run(spark, tmp_path, _told_by_its_head(tmp_path, late))
    stored = {d["text"]: d for d in documents}
    assert (stored["one"]["site"], stored["two"]["site"]) == ("a", '{"b":1}')
    assert "2 documents have it" in result.changed["site"]
    assert result.changed["N"].startswith("lost: a key of 1 documents")  # differs from n in case alone
    assert "never" not in result.changed  # its row is in quarantine, as it was read
    _, alone, _ = _run(spark, tmp_path, _told_by_its_head(tmp_path, []))
    assert {d["doc_id"] for d in alone} < {d["doc_id"] for d in documents}  # others' keys change no row's id


def test_late_keys_nobody_asked_for_are_not_told(spark, tmp_path):
    result, documents, _ = _run(spark, tmp_path, _told_by_its_head(tmp_path, [{"text": "one", "site": "a"}]), input__keep=["n"])
    assert (result.changed, "site" in documents[0]) == ({}, False)


def test_a_late_key_that_is_named_is_kept(spark, tmp_path):
    path = _told_by_its_head(tmp_path, [{"text": "one", "site": "a"}])
    result, documents, _ = _run(spark, tmp_path, path, input__keep=["n", "site"])
    assert {d["site"] for d in documents} == {"a", None}
    assert "none of the rows that tell the columns has it" in result.changed["site"]


def test_keys_without_end_make_a_bounded_number_of_columns(spark, tmp_path):
    late = [{"text": f"t{i}", "common": i, f"key {i}": 1} for i in range(150)]
    result, documents, _ = _run(spark, tmp_path, _told_by_its_head(tmp_path, late))
    assert sum("kept as text" in what for what in result.changed.values()) == 100
    assert result.changed["(other keys)"].startswith("lost")
    assert next(d["common"] for d in documents if d["text"] == "t7") == "7"


def test_late_values_that_do_not_fit_are_counted(spark, tmp_path):
    late = [
        {"text": "one", "n": "many", "ok": 2.5},
        {"text": "two", "n": "12", "ok": "yes"},
        {"text": "three", "n": 9007199254740993, "ok": None},
        {"text": "four", "n": 9007199254740992, "ok": "perhaps"},
        {"text": "", "n": "in quarantine"},
    ]
    result, documents, _ = _run(spark, tmp_path, _told_by_its_head(tmp_path, late))
    stored = {d["text"]: d for d in documents}
    assert [stored[text]["n"] for text in ("one", "two", "four")] == [None, 12.0, 9007199254740992.0]
    assert set(result.changed) == {"n", "ok"}
    assert "no number in 1 documents" in result.changed["n"]
    assert "rounded" in result.changed["n"]
    assert "no boolean in 2 documents" in result.changed["ok"]


def test_values_of_a_batch_that_do_not_fit_the_stores_type_are_null_and_counted(spark):
    held = spark.sql("select 'a' as doc_id, 1L as year, 'x' as theme")
    frame = spark.sql("select * from values ('b', '1999', 1), ('c', 'n/a', 2), ('d', '', 3), ('e', null, 4) as t(doc_id, year, extra)")
    changed: dict[str, str] = {}
    rows = _fitted(frame, held, ["doc_id", "year", "extra"], changed).orderBy("doc_id").collect()
    assert [(row["year"], row["theme"]) for row in rows] == [(1999, None), (None, None), (None, None), (None, None)]
    assert changed["year"] == "null in 2 rows, whose values are no bigint"
    assert changed["theme"].startswith("not in this batch")
    assert changed["extra"].startswith("left out")


def test_values_of_a_batch_become_the_stores_as_people_write_them_and_what_they_lose_is_counted(spark):
    held = spark.sql("select 'a' as doc_id, 'x' as code, 1L as year, date'2024-01-01' as day, 1.0D as share, 1.0F as rate")
    row = "{} as doc_id, {} as code, {} as year, {} as day, {} as share, {} as rate".format
    same = row("'b'", "12345678.0D", "2020.0D", "timestamp'2024-02-03 00:00:00'", "1.5BD", "0.1D")
    other = row("'c'", "0.5D", "1.5D", "timestamp'2024-02-03 04:05:06'", "1.25BD", "0.1234567890123D")
    frame = spark.sql(f"select {same} union all select {other}")
    changed: dict[str, str] = {}
    first, second = _fitted(frame, held, list(held.columns), changed).orderBy("doc_id").collect()
    assert (first["code"], first["year"], second["code"], second["year"]) == ("12345678", 2020, "0.5", None)
    assert {name: what.split(",")[0] for name, what in changed.items()} == {
        "year": "null in 1 rows",
        "day": "changed in 1 rows",
        "rate": "changed in 1 rows",
    }
