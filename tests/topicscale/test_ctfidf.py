"""Weights equal those of BERTopic's own class."""

import numpy as np
import pytest
import scipy.sparse as sp

from topicscale.ctfidf import c_tf_idf


@pytest.mark.parametrize("bm25", [False, True])
@pytest.mark.parametrize("reduce", [False, True])
def test_weights_equal_bertopics(bm25, reduce):
    peer = pytest.importorskip("bertopic.vectorizers").ClassTfidfTransformer(bm25_weighting=bm25, reduce_frequent_words=reduce)
    counts = (
        sp.random(12, 300, density=0.3, random_state=3, data_rvs=lambda n: np.random.default_rng(3).integers(1, 40, n)).tocsr().astype(int)
    )
    counts = counts[:, np.asarray(counts.sum(axis=0)).ravel() > 0]
    expected = peer.fit_transform(counts.astype(float)).toarray()
    got = c_tf_idf(counts, bm25_weighting=bm25, reduce_frequent_words=reduce)
    np.testing.assert_allclose(got.toarray(), expected, rtol=0, atol=1e-9)


def test_a_class_without_terms_gets_no_weights_and_breaks_nothing():
    got = c_tf_idf(sp.csr_matrix([[2, 1], [0, 0]]))
    assert got.toarray()[1].tolist() == [0.0, 0.0]
    assert np.all(got.toarray()[0] > 0)


def test_the_counts_are_left_as_they_were():
    counts = sp.csr_matrix([[2.0, 1.0], [1.0, 3.0]])
    c_tf_idf(counts, reduce_frequent_words=True)
    assert counts.toarray().tolist() == [[2.0, 1.0], [1.0, 3.0]]
