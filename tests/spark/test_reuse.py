"""Vectors follow their texts into new partitions."""

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import write_deltalake

from spark.reuse import vectors_to_reuse


def test_vectors_are_found_by_text_within_one_space(spark, tmp_path):
    documents = pa.table(
        {"doc_id": ["1", "2", "3"], "partition_id": ["new-a", "new-b", "new-b"], "text": ["x", "y", "z"], "text_hash": ["hx", "hy", "hz"]}
    )
    write_deltalake(tmp_path / "documents", documents, partition_by=["partition_id"])
    old = pa.table(
        {
            "doc_id": ["1", "9", "2", "3"],
            "partition_id": ["old"] * 4,
            "text_hash": ["hx", "hx", "hy", "hz"],
            "space": ["m1", "m1", "m1", "m2"],
            "vector": pa.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [9.0, 9.0]], pa.list_(pa.float32())),
        }
    )
    write_deltalake(tmp_path / "embeddings", old, partition_by=["partition_id"])
    for _ in range(2):
        assert vectors_to_reuse(spark, store_uri=str(tmp_path), space="m1", target=str(tmp_path / "reuse")) == 2
    found = ds.dataset(tmp_path / "reuse", partitioning="hive", exclude_invalid_files=True).to_table().to_pylist()
    assert sorted((row["partition_id"], row["text_hash"], row["vector"]) for row in found) == [
        ("new-a", "hx", [1.0, 0.0]),
        ("new-b", "hy", [0.0, 1.0]),
    ]


def test_no_vector_of_another_space_is_taken(spark, tmp_path):
    write_deltalake(tmp_path / "documents", pa.table({"doc_id": ["1"], "partition_id": ["p"], "text": ["x"], "text_hash": ["hx"]}))
    vectors = pa.array([[1.0]], pa.list_(pa.float32()))
    write_deltalake(
        tmp_path / "embeddings", pa.table({"doc_id": ["1"], "partition_id": ["p"], "text_hash": ["hx"], "space": ["m1"], "vector": vectors})
    )
    assert vectors_to_reuse(spark, store_uri=str(tmp_path), space="other", target=str(tmp_path / "reuse")) == 0
