"""What the Python API takes for documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrameWriter

from spark.tables import write_frame
from topicscale.config import InputConfig
from topicscale.documents import ID, VECTOR, _lists, staged, texts_of, unit_rows
from topicscale.errors import InputError, StoreLocked


def test_a_list_of_paths_is_read_as_files(tmp_path) -> None:
    with staged([tmp_path / "a.csv", tmp_path / "b.csv"], None, InputConfig(), str(tmp_path / "s")) as (source, positions):
        assert source.paths == (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
        assert positions is None


@pytest.mark.parametrize(
    "documents",
    [
        ["a", None],
        ("a", None),
        np.array(["a", None], object),
        pd.Series(["a", np.nan], index=[7, 7]),
        pd.Series(["a", None], dtype="string").array,
        pd.Index(["a", None]),
        pa.array(["a", None]),
        pa.chunked_array([["a"], [None]], pa.string()),
        pa.record_batch({"text": ["a", None]}),
    ],
    ids=lambda d: type(d).__name__,
)
def test_a_missing_text_is_a_missing_text_in_every_container(documents, tmp_path) -> None:
    with staged(documents, None, InputConfig(), str(tmp_path / "s")) as (source, positions):
        assert pq.read_table(source.paths[0])["text"].to_pylist() == ["a", None]
        assert positions == 2


def test_a_second_fit_of_the_same_documents_leaves_the_first_its_file(tmp_path) -> None:
    store = str(tmp_path / "s")
    with staged(["a", "b"], None, InputConfig(), store) as (source, _):
        with pytest.raises(StoreLocked, match="in use by run fit_transform"), staged(["a", "b"], None, InputConfig(), store):
            pass
        assert Path(source.paths[0]).is_file()
        with staged(["a", "b"], None, InputConfig(), str(tmp_path / "other")) as (other, _):
            assert other.paths != source.paths
        assert Path(source.paths[0]).is_file()
    assert not Path(source.paths[0]).parent.exists()


def test_documents_are_put_where_all_machines_of_the_store_reach_them(tmp_path) -> None:
    store = tmp_path / "s"
    for documents in (["a", "b"], pd.DataFrame({"text": ["a", "b"]})):
        with staged(documents, None, InputConfig(), str(store)) as (source, _):
            assert Path(source.paths[0]).is_relative_to(store)
            assert pq.read_table(source.paths[0])["text"].to_pylist() == ["a", "b"]
        assert not list((store / "_work").iterdir())


def test_what_a_killed_fit_left_is_removed_and_what_another_fit_has_is_not(tmp_path) -> None:
    left = tmp_path / "s" / "_work" / "input-0123"
    with staged(["a"], None, InputConfig(), str(tmp_path / "s")) as (mine, _):
        left.mkdir()
        (left / "input.parquet").write_text("texts")
        with staged(["b"], None, InputConfig(), str(tmp_path / "s")):
            assert not left.exists()
            assert Path(mine.paths[0]).is_file()


def test_a_spark_frame_is_put_where_all_machines_reach_it(spark, tmp_path, monkeypatch) -> None:
    frame = spark.range(4, numPartitions=2).selectExpr("concat('text ', id) AS text")
    with staged(frame, None, InputConfig(), str(tmp_path / "s"), write=write_frame) as (source, _):
        assert Path(source.paths[0]).is_relative_to(tmp_path / "s")
        assert sorted(pq.read_table(source.paths[0])["text"].to_pylist()) == [f"text {i}" for i in range(4)]
    assert not list((tmp_path / "s" / "_work").iterdir())
    whole = DataFrameWriter.parquet

    def elsewhere(self, path: str) -> None:
        """Executors on machines that do not share the folder: this one sees what its own have written."""
        whole(self, path)
        next(Path(path.removeprefix("file://")).glob("part-*")).unlink()

    monkeypatch.setattr(DataFrameWriter, "parquet", elsewhere)
    with (
        pytest.raises(InputError, match="Of 4 rows of the data frame 2 can be seen"),
        staged(frame, None, InputConfig(), str(tmp_path / "s"), write=write_frame),
    ):
        pass


def test_vectors_of_more_numbers_than_an_array_holds_are_several(tmp_path) -> None:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(7, 3)))
    lists = _lists(vectors, block=6)
    assert [len(chunk) for chunk in lists.chunks] == [2, 2, 2, 1]
    assert lists.type == pa.list_(pa.float32())
    pq.write_table(pa.table({"v": lists}), tmp_path / "v.parquet")
    np.testing.assert_array_equal(np.array(pq.read_table(tmp_path / "v.parquet")["v"].to_pylist(), np.float32), vectors)
    with staged(list("abcdefg"), vectors, InputConfig(), str(tmp_path / "s")) as (source, _):
        assert pq.read_table(source.paths[0])[VECTOR].to_pylist() == lists.to_pylist()


def test_texts_to_be_given_topics_are_texts() -> None:
    assert texts_of("one") == ["one"]
    assert texts_of(np.array(["a", "b"])) == ["a", "b"]
    assert texts_of(pd.Series(["a", "b"], index=[5, 7])) == ["a", "b"]
    with pytest.raises(InputError, match="give its column"):
        texts_of(pd.DataFrame({"text": ["a"], "id": [1]}))
    with pytest.raises(InputError, match="Document 1 is missing"):
        texts_of(["a", None])
    with pytest.raises(InputError, match="Document 0 is a int"):
        texts_of([3])


def test_an_id_column_of_documents_in_memory_is_refused(tmp_path) -> None:
    """Their ids are their positions: the column would be ignored."""
    with (
        pytest.raises(InputError, match=r"input\.id_column=ticket cannot be used of documents in memory"),
        staged(pd.DataFrame({"ticket": ["T1"], "text": ["a"]}), None, InputConfig(id_column="ticket"), str(tmp_path / "s")),
    ):
        pass


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "at least one text"),
        (pd.DataFrame({"text": []}), "at least one text"),
        (pd.DataFrame({"text": ["a", 5]}), "column text with type object"),
        (pd.DataFrame({"text": ["a", "b"], "path": [Path("a"), Path("b")]}), "path"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "Duplicate column names"),
        (pd.DataFrame({"text": ["a"], "more": [{}]}), "cannot be stored"),
        (pd.DataFrame({"text": ["a"], "more": [2**70]}), "cannot be stored"),
        (pd.DataFrame({"text": ["half \ud83d" + "x" * 500]}), "holds half a character"),
        (["fine", "half \ud83d"], "Document 1 holds half a character"),
        (iter(["a"]), "list_iterator"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_said(documents, said, tmp_path) -> None:
    with pytest.raises(InputError, match=said), staged(documents, None, InputConfig(), str(tmp_path / "s")):
        pass


class Stream:
    """What hands its data on by Arrow's protocol alone, as polars does."""

    def __init__(self, data: pa.Table | pa.ChunkedArray) -> None:
        self._data = data

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._data.__arrow_c_stream__(requested_schema)


def test_what_hands_on_arrow_data_is_read(tmp_path) -> None:
    table = pa.table({"text": pa.array(["a", None], pa.large_string()), "team": ["x", "y"]})
    texts = pa.chunked_array([["a"], [None]], pa.string_view())
    for documents, columns in ((Stream(table), ["text", "team"]), (Stream(texts), ["text"]), (table.to_reader(), ["text", "team"])):
        with staged(documents, None, InputConfig(), str(tmp_path / "s")) as (source, positions):
            written = pq.read_table(source.paths[0])
            assert (written["text"].to_pylist(), written.column_names, positions) == (["a", None], [*columns, ID], 2)
    assert texts_of(Stream(texts.slice(0, 1))) == ["a"]
    with pytest.raises(InputError, match="give its column"):
        texts_of(Stream(table))


def test_vectors_of_another_fit_are_not_asked_for(tmp_path) -> None:
    held = InputConfig(id_column=ID, embedding_column=VECTOR, format="parquet")
    with staged(["a", "b"], None, held, str(tmp_path / "s")) as (source, _):
        assert (source.id_column, source.embedding_column) == (ID, None)
    with staged(tmp_path / "a.csv", None, held, str(tmp_path / "s")) as (source, _):
        assert (source.id_column, source.embedding_column, source.format) == (None, None, "auto")
