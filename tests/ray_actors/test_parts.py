"""Matrices to Arrow and back, without an engine."""

import numpy as np
import pyarrow as pa
import pytest

from ray_actors.parts import to_list_array, to_matrix


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 4), (2, 0)])
def test_a_matrix_survives_the_round_trip(shape) -> None:
    matrix = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    array = to_list_array(matrix)
    assert array.to_pylist() == matrix.tolist()
    if matrix.size:
        np.testing.assert_array_equal(to_matrix(pa.chunked_array([array])), matrix)


def test_a_partition_beyond_arrows_offsets_is_refused_in_words() -> None:
    vast = np.broadcast_to(np.float32(0), (2**22, 2**10))
    with pytest.raises(ValueError, match="fewer than 2\\^31 numbers"):
        to_list_array(vast)


def test_vectors_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        to_matrix(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())))
