"""Cells are a division of the rows, into neighbours."""

from __future__ import annotations

import numpy as np
import pytest

import topicscale.cells as cells
from topicscale.cluster import unit


def blobs(n: int, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.integers(0, groups, n)
    return unit(unit(random.normal(size=(groups, 16)))[true] + 0.02 * random.normal(size=(n, 16))), true


@pytest.mark.parametrize("n", [1, 40, 41, 3000])
def test_every_row_is_in_one_cell_of_bounded_size(n: int) -> None:
    rows, _ = blobs(n, 30)
    found = cells.divide(lambda index: rows[index], np.arange(n), size=20)
    assert sorted(np.concatenate(found).tolist()) == list(range(n))
    assert all(len(cell) <= 40 and (np.diff(cell) > 0).all() for cell in found)


def test_neighbours_share_a_cell() -> None:
    rows, true = blobs(2000, 10)
    found = cells.divide(lambda index: rows[index], np.arange(2000), size=250)
    pure = sum(np.bincount(true[cell]).max() for cell in found)
    assert len(found) > 4
    assert max(len({i for i, cell in enumerate(found) if (true[cell] == topic).any()}) for topic in range(10)) <= 3
    assert pure > 1000


def test_rows_that_are_all_alike_are_divided_by_their_order() -> None:
    rows = np.ones((500, 4))
    found = cells.divide(lambda index: rows[index], np.arange(500), size=20)
    assert all(len(cell) <= 40 for cell in found)
    assert np.concatenate(found).tolist() == list(range(500))


def test_more_cells_than_one_division_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "WIDTH", 3)
    rows, _ = blobs(1000, 50)
    assert max(len(cell) for cell in cells.divide(lambda index: rows[index], np.arange(1000), size=20)) <= 40


def test_sums_of_groups_are_added_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_BLOCK", 16)
    random = np.random.default_rng(0)
    rows, label = random.normal(size=(200, 5)), random.choice([0, 2, 3, 9], 200, p=[0.5, 0.1, 0.3, 0.1])
    expected = np.zeros((10, 5))
    for row, group in zip(rows, label, strict=True):
        expected[group] += row
    sums, found = cells.sum_groups(lambda index: rows[index], label)
    assert found.tolist() == [0, 2, 3, 9]
    assert (sums == expected[found]).all()
