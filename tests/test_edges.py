"""Edges: two arrays that read as a sequence of tuples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.model.edges import Edges

listed = st.integers(1, 12).flatmap(
    lambda total: st.lists(st.lists(st.integers(0, total - 1), unique=True), min_size=total, max_size=total)
)


@given(listed)
def test_edges_read_as_what_they_were_made_of(each: list[list[int]]) -> None:
    edges = Edges.of(each)
    assert list(edges) == [edges[k] for k in range(len(edges))] == [tuple(some) for some in each]
    assert edges[1:] == tuple(tuple(some) for some in each[1:])
    assert len(edges.first) == len(each) + 1
    assert edges.first[-1] == len(edges.flat)


@given(listed)
def test_turned_edges_join_the_same_steps(each: list[list[int]]) -> None:
    edges = Edges.of(each)
    pairs = {(k, end) for k, ends in enumerate(each) for end in ends}
    turned = edges.turned()
    assert {(end, k) for k, ends in enumerate(turned) for end in ends} == pairs
    assert all(list(some) == sorted(some) for some in turned)
    assert turned.turned() == Edges.of(sorted(some) for some in each)


def test_an_index_beyond_the_last_step_is_refused() -> None:
    with pytest.raises(IndexError):
        Edges.none(3)[3]
    assert Edges.none(3)[-1] == ()
    assert list(Edges.none(2)) == [(), ()]
