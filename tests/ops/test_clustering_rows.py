"""Clustering of the rows of a matrix: the same as of each row alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.ops import clustering, clustering_rows
from lilliput.ops.clustering import optimal_1d, optimal_1d_all
from lilliput.ops.clustering_rows import RowClusters, optimal_1d_rows, optimal_1d_rows_all

grid = st.integers(-8, 8).map(lambda i: i / 8)
cells = st.one_of(grid, st.floats(-1000, 1000, width=32))


@st.composite
def masked_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count, n = draw(st.integers(0, 4)), draw(st.integers(1, 7))
    rows = draw(st.lists(st.lists(cells, min_size=n, max_size=n), min_size=count, max_size=count))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=count, max_size=count))
    return np.array(rows).reshape(count, n), np.array(mask, dtype=bool).reshape(count, n)


def assert_rows_are_alone(found: RowClusters, rows: np.ndarray, mask: np.ndarray, ks: list[int]) -> None:
    for r, (row, kept, k) in enumerate(zip(rows, mask, ks, strict=True)):
        assert (found.labels[r][~kept] == 0).all()
        size = found.sizes[r]
        assert np.isnan(found.centroids[r, size:]).all()
        if not kept.any():
            assert (size, found.sse[r]) == (0, 0.0)
            continue
        alone = optimal_1d(row[kept], k)
        assert found.centroids[r, :size].tolist() == alone.centroids.tolist()
        assert found.labels[r][kept].tolist() == alone.labels.tolist()
        assert found.sse[r] == alone.sse


@given(masked_rows(), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_each_row_is_clustered_as_if_alone(drawn: tuple[np.ndarray, np.ndarray], k: int) -> None:
    rows, mask = drawn
    assert_rows_are_alone(optimal_1d_rows(rows, k, mask=mask), rows, mask, [k] * len(rows))
    assert_rows_are_alone(optimal_1d_rows(rows, k), rows, np.ones_like(mask), [k] * len(rows))


@given(masked_rows(), st.data())
@settings(max_examples=100, deadline=None)
def test_tables_hold_every_number_of_clusters(drawn: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    rows, mask = drawn
    tables = optimal_1d_rows_all(rows, 6, mask=mask)
    for r, (row, kept) in enumerate(zip(rows, mask, strict=True)):
        errors = [found.sse for found in optimal_1d_all(row[kept], 6)] if kept.any() else []
        assert tables.sse[r].tolist() == errors + [0.0] * (6 - len(errors))
    ks = data.draw(st.lists(st.integers(1, 6), min_size=len(rows), max_size=len(rows)))
    assert_rows_are_alone(tables.clusters(np.array(ks, dtype=np.int64)), rows, mask, ks)
    assert_rows_are_alone(tables.clusters(6), rows, mask, [6] * len(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_nothing(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering_rows, "LEAST_VALUES", 100)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 30)).astype(dtype)
    rows[::7] = rng.choice([-1, 1], size=30) + 1e-6 * rng.normal(size=30)
    mask = rng.random(rows.shape) < 0.8
    one = optimal_1d_rows(rows, 5, mask=mask, threads=1)
    many = optimal_1d_rows(rows, 5, mask=mask, threads=3)
    for a, b in zip(one, many, strict=True):
        assert a.tobytes() == b.tobytes()
    assert_rows_are_alone(one, rows, mask, [5] * len(rows))
    assert (
        optimal_1d_rows_all(rows, 5, threads=1).sse.tobytes() == optimal_1d_rows_all(rows, 5, threads=3).sse.tobytes()
    )


def test_long_rows_are_clustered_as_if_alone() -> None:
    rows = np.random.default_rng(1).laplace(size=(3, 3000)).astype(np.float32)
    assert_rows_are_alone(optimal_1d_rows(rows, 12), rows, np.ones(rows.shape, dtype=bool), [12] * 3)


def test_what_a_mask_hides_may_be_anything() -> None:
    found = optimal_1d_rows([[np.nan, 1.0, 3.0, np.inf]], 2, mask=np.array([[False, True, True, False]]))
    assert found.centroids.tolist() == [[1.0, 3.0]]
    assert found.labels.tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("rows", "k", "mask", "message"),
    [
        ([1.0, 2.0], 1, None, "matrix"),
        ([[1.0, np.nan]], 1, None, "finite"),
        ([[1.0, np.inf]], 1, None, "finite"),
        ([[-np.inf, 1.0]], 1, None, "finite"),
        ([[np.nan, np.inf]], 1, np.array([[True, False]]), "finite"),
        ([[1.0, 2.0], [-1e200, 1e200]], 1, None, "spread"),
        ([[1.0]], 0, None, "at least 1"),
        ([[1.0, 2.0]], 1, np.array([[True]]), "mask"),
        ([[1.0, 2.0]], 1, np.array([[1, 0]]), "mask"),
    ],
)
def test_bad_rows_are_refused(rows: list, k: int, mask: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimal_1d_rows(rows, k, mask=mask)
    with pytest.raises(ValueError, match=message):
        optimal_1d_rows_all(rows, k, mask=mask)


def test_more_clusters_than_were_solved_are_refused() -> None:
    tables = optimal_1d_rows_all([[1.0, 2.0, 4.0]], 2)
    for k in (0, 3):
        with pytest.raises(ValueError, match=r"1\.\.2"):
            tables.clusters(k)


def test_a_row_whose_table_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "MOST_CELLS", 100)
    with pytest.raises(ValueError, match="fewer clusters"):
        optimal_1d_rows(np.arange(50.0)[None], 5)
