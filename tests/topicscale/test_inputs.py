"""What is found out about an input before any engine starts."""

import gzip
import json
import os
from pathlib import PurePath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topicscale.config import InputConfig, load
from topicscale.errors import InputError
from topicscale.inputs import inspect


def _csv(folder, name="docs.csv", text="id,text\n1,one\n2,two\n"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_csv_file_is_known_by_its_name_and_its_columns_by_its_header(tmp_path):
    plan = inspect(InputConfig(paths=(_csv(tmp_path),)))
    assert (plan.format, [c.name for c in plan.columns], plan.rows) == ("csv", ["id", "text"], 2)


def test_a_misspelt_column_is_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'text'"):
        inspect(InputConfig(paths=(_csv(tmp_path),), text_column=("texts",)))


def test_a_column_with_a_blank_before_its_name_can_be_named(tmp_path):
    path = _csv(tmp_path, text="id, text\n1,one\n")
    with pytest.raises(InputError, match=r"""Did you mean ' text'\?.* --set 'input\.text_column=\[" text"\]'"""):
        inspect(InputConfig(paths=(path,)))
    chosen = load(values={"input": {"paths": [path]}}, overrides=['input.text_column=[" text"]'])
    assert inspect(chosen.input).rows == 1


def test_a_delta_table_is_read_at_the_version_that_is_asked_for(tmp_path):
    from deltalake import write_deltalake

    path = str(tmp_path / "table")
    for vectors in ([[1.0, 0.0], [0.0, 1.0], [1.0]], [[1.0, 0.0, 0.0]]):
        write_deltalake(path, pa.table({"text": ["a"] * len(vectors), "v": vectors}), mode="overwrite")
    newest = inspect(InputConfig(paths=(path,), embedding_column="v"))
    assert (newest.version, newest.rows, newest.dimension) == (1, 1, 3)
    first = inspect(InputConfig(paths=(path,), embedding_column="v", options={"versionAsOf": 0}))
    assert (first.version, first.rows, first.dimension) == (0, 3, 2)
    assert "versionAsOf" not in first.options
    os.utime(next((tmp_path / "table" / "_delta_log").glob("*0.json")), (1.6e9, 1.6e9))  # in September 2020
    for when, version in (("2021-01-01", 0), ("2100-01-01T00:00:00+02:00", 1)):
        assert inspect(InputConfig(paths=(path,), options={"timestampAsOf": when})).version == version
    for options in ({"versionAsOf": 7}, {"versionAsOf": "x"}, {"timestampAsOf": "yesterday"}):
        with pytest.raises(InputError, match=r"must name a version or a time that the Delta table has\. Got "):
            inspect(InputConfig(paths=(path,), options=options))


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path):
    _csv(tmp_path)
    with pytest.raises(InputError, match=r"Did you mean .*docs\.csv"):
        inspect(InputConfig(paths=(str(tmp_path / "doc.csv"),)))


def test_a_folder_and_a_glob_name_the_files_inside(tmp_path):
    first, second = _csv(tmp_path, "a.csv"), _csv(tmp_path, "b.csv")
    (tmp_path / "_SUCCESS").write_text("")
    assert inspect(InputConfig(paths=(str(tmp_path),))).paths == (first, second)
    assert inspect(InputConfig(paths=(str(tmp_path / "*.csv"),))).paths == (first, second)


def test_mixed_formats_are_refused(tmp_path):
    _csv(tmp_path)
    (tmp_path / "more.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match="one format"):
        inspect(InputConfig(paths=(str(tmp_path),)))


def test_files_with_other_columns_are_refused(tmp_path):
    _csv(tmp_path, "a.csv")
    _csv(tmp_path, "b.csv", "text,id\nx,1\n")
    with pytest.raises(InputError, match="same columns"):
        inspect(InputConfig(paths=(str(tmp_path),)))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="empty"):
        inspect(InputConfig(paths=(_csv(tmp_path, text=""),)))


def test_a_broken_gzip_file_is_refused(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="cannot be read"):
        inspect(InputConfig(paths=(str(tmp_path / "a.csv.gz"),)))


def test_an_array_of_json_is_refused_with_the_command_that_helps(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "x"}]')
    with pytest.raises(InputError, match="jq"):
        inspect(InputConfig(paths=(str(tmp_path / "a.json"),)))


def test_compressed_json_lines_tell_columns_and_the_length_of_vectors(tmp_path):
    rows = [{"text": "x", "n": 1, "vector": [0.1, 0.2]}, {"text": "y", "late": True, "vector": [1, 2]}]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    plan = inspect(InputConfig(paths=(str(tmp_path / "a.jsonl.gz"),), embedding_column="vector"))
    assert {c.name: c.kind for c in plan.columns} == {"text": "string", "n": "number", "vector": "vector", "late": "boolean"}
    assert plan.dimension == 2


@pytest.mark.parametrize(
    ("kind", "value"), [(pa.binary(), b"x"), (pa.list_(pa.string()), ["x"]), (pa.struct([("a", pa.int64())]), {"a": 1})]
)
def test_a_text_column_that_holds_no_text_is_refused(tmp_path, kind, value):
    pq.write_table(pa.table({"text": pa.array([value], kind)}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="must be a column of text"):
        inspect(InputConfig(paths=(str(tmp_path / "a.parquet"),)))


def test_the_fingerprint_changes_with_the_file(tmp_path):
    path = _csv(tmp_path)
    before = inspect(InputConfig(paths=(path,))).fingerprint
    assert inspect(InputConfig(paths=(path,))).fingerprint == before
    _csv(tmp_path, text="id,text\n1,one\n2,three\n")
    assert inspect(InputConfig(paths=(path,))).fingerprint != before


def test_a_remote_address_is_left_to_the_engine():
    plan = inspect(InputConfig(paths=("hdfs://bucket/docs/*.parquet",)))
    assert (plan.format, plan.columns) == ("parquet", ())


def test_a_first_row_of_megabytes_does_not_hide_the_others(tmp_path):
    rows = [{"text": "word " * 500_000}, {"text": "short", "late": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "text" in [c.name for c in inspect(InputConfig(paths=(str(tmp_path / "a.jsonl"),))).columns]


def test_a_line_separator_inside_a_json_text_ends_no_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one\u2028two", "n": 1}, ensure_ascii=False) + "\n")
    plan = inspect(InputConfig(paths=(str(tmp_path / "a.jsonl"),)))
    assert (plan.rows, [c.name for c in plan.columns]) == (1, ["text", "n"])


def test_a_line_nested_without_end_is_one_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + "[" * 200_000 + "\n")
    assert [c.name for c in inspect(InputConfig(paths=(str(tmp_path / "a.jsonl"),))).columns] == ["text"]


@pytest.mark.parametrize("options", [{"quote": "ab"}, {"sep": ""}])
def test_reader_options_that_cannot_be_are_refused(tmp_path, options):
    with pytest.raises(InputError):
        inspect(InputConfig(paths=(_csv(tmp_path),), options=options))


def test_no_value_is_no_reader_option(tmp_path):
    with pytest.raises(InputError, match=r"input\.options\.sep must be .*Got null"):
        inspect(InputConfig(paths=(_csv(tmp_path),), options={"sep": None}))


def test_the_header_of_every_file_is_checked(tmp_path):
    for number in range(201):
        _csv(tmp_path, f"{number:03d}.csv")
    _csv(tmp_path, "999.csv", "text,id\nx,1\n")
    with pytest.raises(InputError, match=r"same columns.*999\.csv"):
        inspect(InputConfig(paths=(str(tmp_path),)))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "jsonl.gz", "txt", "parquet"])
def test_the_characters_of_the_texts_are_estimated(tmp_path, kind):
    texts = [f"document {i} " + "of many words " * (i % 100) for i in range(6_000)]
    path = tmp_path / f"a.{kind}"
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        path.write_text("".join(f"{text}{separator}xxx\n" for text in ["text", *texts]).replace("xxx", "other", 1))
    elif kind == "txt":
        path.write_text("\n".join(texts))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts, "other": ["x" * 500] * len(texts)}), path)
    else:
        content = "".join(json.dumps({"text": t, "other": "x" * 300}) + "\n" for t in texts).encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    found = inspect(InputConfig(paths=(str(path),))).characters
    assert found == pytest.approx(sum(map(len, texts)), rel=0.05 if "gz" not in kind else 0.9)


def test_files_that_spark_would_leave_out_are_no_input(tmp_path):
    """Their rows would be in neither documents nor quarantine."""
    for name in ("a.csv", "_b.csv", ".c.csv", "_SUCCESS"):
        (tmp_path / name).write_text("text\none\n")
    assert inspect(InputConfig(paths=(str(tmp_path / "*"),))).paths == (str(tmp_path / "a.csv"),)
    with pytest.raises(InputError, match="hidden"):
        inspect(InputConfig(paths=(str(tmp_path / "_b.csv"),)))
    with pytest.raises(InputError, match="no input"):
        inspect(InputConfig(paths=(str(tmp_path / "_*.csv"),)))


def test_parquet_columns_of_two_types_are_refused_by_name(tmp_path):
    """Spark would fail at them, and again whenever the job is started."""
    for name, values in {"a": [1, 2], "b": [1.0, None]}.items():
        pq.write_table(pa.table({"text": ["one", "two"], "n": values}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"'n'.* long in .*a\.parquet' and double in .*b\.parquet'"):
        inspect(InputConfig(paths=(str(tmp_path),)))
    for name, kind in {"a": pa.string(), "b": pa.large_string(), "c": pa.dictionary(pa.int32(), pa.string())}.items():
        pq.write_table(pa.table({"text": pa.array(["one", "two"], kind)}), tmp_path / f"{name}.parquet")
    assert inspect(InputConfig(paths=(str(tmp_path),))).rows == 6


def test_folders_that_are_links_are_entered_once(tmp_path):
    """A glob finds what is in them, so a folder does, too."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        _csv(folder)
    (here / "more").symlink_to(there)
    (there / "round").symlink_to(here)
    assert inspect(InputConfig(paths=(str(here),))).paths == (str(here / "docs.csv"), str(here / "more" / "docs.csv"))
    for month in ("02", "03"):
        (tmp_path / "data" / f"month={month}").mkdir(parents=True)
        _csv(tmp_path / "data" / f"month={month}")
    (tmp_path / "data" / "latest").symlink_to("month=03")
    found = inspect(InputConfig(paths=(str(tmp_path / "data"),))).paths
    assert [PurePath(path).parent.name for path in found] == ["month=02", "month=03"]  # by its own name, whatever links there are


def test_names_of_folders_below_what_is_given_are_columns(tmp_path):
    for month in ("01", "02"):
        (tmp_path / "year=2026" / f"month={month}").mkdir(parents=True)
        _csv(tmp_path / "year=2026" / f"month={month}")
    for given, names in {"": {"month", "year"}, "year=2026": {"month"}, "year=2026/month=*/*.csv": {"month"}}.items():
        assert set(inspect(InputConfig(paths=(str(tmp_path / given),))).kinds) == {"id", "text"} | names
    alone = InputConfig(paths=(str(tmp_path / "year=2026" / "month=01"),), keep=("month",))
    with pytest.raises(InputError, match=r"input\.keep names 'month', which the input lacks"):
        inspect(alone)
    assert inspect(InputConfig(paths=(str(tmp_path),), keep=("month",))).folders == ("month", "year")


def test_a_delta_table_among_files_is_refused_by_its_name(tmp_path):
    """Its files hold the rows that it has not any more."""
    from deltalake import write_deltalake

    table = tmp_path / "lake" / "articles"
    write_deltalake(table, pa.table({"text": ["old"]}))
    write_deltalake(table, pa.table({"text": ["new"]}), mode="overwrite")
    with pytest.raises(InputError, match=r"no Delta table\. Got .*lake/articles', which is one, instead"):
        inspect(InputConfig(paths=(str(tmp_path / "lake"),)))
    assert inspect(InputConfig(paths=(str(table),))).rows == 1


@pytest.mark.parametrize(("kind", "row"), [("jsonl", '{"text": "x"}\n'), ("csv", "text\nx\n"), ("tsv", "text\nx\n"), ("txt", "x\n")])
def test_a_blank_file_among_others_is_left_out_as_an_empty_one_is(tmp_path, kind, row):
    (tmp_path / f"a.{kind}.gz").write_bytes(gzip.compress(b""))
    (tmp_path / f"b.{kind}").write_text("\n \n")
    with pytest.raises(InputError, match="Every input file is empty"):
        inspect(InputConfig(paths=(str(tmp_path),)))
    for number in range(210):  # Spark writes one for each partition that is empty
        (tmp_path / f"b{number}.{kind}.gz").write_bytes(gzip.compress(b""))
    (tmp_path / f"c.{kind}").write_text(row)
    assert inspect(InputConfig(paths=(str(tmp_path),))).paths == (str(tmp_path / f"c.{kind}"),)


def test_a_key_that_no_head_shows_can_be_named_where_there_is_more_than_heads(tmp_path):
    path = tmp_path / "a.jsonl"
    config = InputConfig(paths=(str(path),), keep=("late",))
    path.write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=r"input\.keep names 'late', which the input lacks"):
        inspect(config)
    path.write_text('{"text": "x"}\n' * 100_000 + '{"text": "y", "late": 1}\n')
    assert inspect(config).kinds["late"] == "late"


@pytest.mark.parametrize("kind", ["txt", "jsonl", "tsv"])
def test_an_encoding_whose_lines_spark_cannot_tell_is_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_text('{"text": "x"}\n', "utf-16")
    with pytest.raises(InputError, match=r"ends a line with one byte.*Got 'UTF-16' instead\..*iconv"):
        inspect(InputConfig(paths=(str(path),), options={"encoding": "UTF-16"}))
    with pytest.raises(InputError, match="must be a known encoding"):
        inspect(InputConfig(paths=(str(path),), options={"encoding": "UTF-17"}))


def test_what_the_engine_alone_can_look_into_is_never_taken_for_read():
    config = InputConfig(paths=("hdfs://bucket/docs/*.parquet",))
    assert inspect(config).fingerprint != inspect(config).fingerprint
