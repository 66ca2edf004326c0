"""Families: one call or a million, the same steps, the same identities, and no object a member."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezpyp import File, Pipeline, RepeatedStepError, as_pickle_step
from ezpyp.model.columns import Columns
from ezpyp.model.fingerprints import Fingerprints, Repeated, identify

if TYPE_CHECKING:
    from pathlib import Path

    from ezpyp.model.plan import Plan

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.tuples(inner, inner),
    max_leaves=4,
)
anything = plain | st.lists(st.integers(), max_size=3) | st.dictionaries(st.text(), st.integers(), max_size=3)


def take(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Pipeline, Any]]:
    """New pipelines with a function that takes anything."""
    folder = tmp_path_factory.mktemp("families")

    def make() -> tuple[Pipeline, Any]:
        pipeline = Pipeline(folder / "cache", "families")
        return pipeline, as_pickle_step(pipeline)(take)

    return make


def planned(pipeline: Pipeline) -> Plan:
    pipeline.organize_steps()
    return pipeline._organised("looking")


def prints(pipeline: Pipeline) -> set[str]:
    return set(identify(planned(pipeline)).fingerprints)


# ----- the same steps, however they are made


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_member_is_the_step_that_the_single_call_would_be(data: st.DataObject, made: Any) -> None:
    values = data.draw(st.lists(data.draw(st.sampled_from([plain, anything, st.integers()])), min_size=1, max_size=4))
    constants = data.draw(st.dictionaries(st.sampled_from(["a", "b"]), anything, max_size=2))
    mapped, f = made()
    single, g = made()
    try:
        f.map(values, range(len(values)), **constants)
    except RepeatedStepError:
        pytest.fail("the second column tells all members apart")
    for k, value in enumerate(values):
        g(value, k, **constants)
    assert prints(mapped) == prints(single)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    numbers=st.builds(range, st.integers(-9, 9), st.integers(10, 30), st.integers(1, 9)),
    constants=st.dictionaries(
        st.sampled_from(["a", "b", "%d"]), st.integers() | st.text() | st.just("%s %%"), max_size=2
    ),
)
def test_a_member_over_a_range_is_the_step_that_the_single_call_would_be(
    numbers: range, constants: dict[str, Any], made: Any
) -> None:
    mapped, f = made()
    single, g = made()
    f.map(numbers, **constants)
    for k in numbers:
        g(k, **constants)
    assert [*identify(planned(mapped)).fingerprints] == [*identify(planned(single)).fingerprints]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(), min_size=1, max_size=4, unique=True),
    st.lists(st.text(), min_size=1, max_size=3, unique=True),
)
def test_a_product_has_its_last_axis_fastest(made: Any, numbers: list[int], texts: list[str]) -> None:
    mapped, f = made()
    single, g = made()
    f.product(numbers, numbers, text=texts)
    for a in numbers:
        for b in numbers:
            for text in texts:
                g(a, b, text=text)
    assert [(step.args, step.kwargs) for step in mapped.steps] == [(s.args, s.kwargs) for s in single.steps]
    assert list(identify(planned(mapped)).fingerprints) == list(identify(planned(single)).fingerprints)


def test_members_over_steps_wait_for_one_step_each(made: Any) -> None:
    def build(*, in_one: bool) -> Pipeline:
        pipeline: Pipeline
        pipeline, f = made()
        first = f.map(range(5)) if in_one else [f(k) for k in range(5)]
        second = f.map(first, ["x"] * 5) if in_one else [f(each, "x") for each in first]
        third = f.product(first[:2], y=second[3:]) if in_one else [f(a, y=b) for a in first[:2] for b in second[3:]]
        f(third if in_one else list(third))
        return pipeline

    together, apart = build(in_one=True), build(in_one=False)
    for pipeline in (together, apart):
        graph = planned(pipeline).graph
        assert list(graph.parents) == [
            *[()] * 5,
            *((k,) for k in range(5)),
            *((a, b) for a in (0, 1) for b in (8, 9)),
            (10, 11, 12, 13),
        ]
        assert list(graph.phases) == [*[0] * 5, *[1] * 5, *[2] * 4, 3]
    assert prints(together) == prints(apart)


def test_a_list_of_steps_is_the_same_as_what_map_gave(made: Any) -> None:
    pipeline, f = made()
    given = f.map(range(4))
    alike = [f(1, y=given), f(2, given), *f.map([3, 4], y=given)]
    other, g = made()
    listed = [*g.map(range(4))]
    for step in [g(1, y=listed), g(2, listed), *g.map([3, 4], y=listed)]:
        assert step.depends_on == listed
    assert [step.args for step in alike[:1]] == [[1]]
    assert prints(pipeline) == prints(other)
    assert f(tuple(given)).texts() != f(list(given)).texts()
    planned(pipeline)


def test_a_step_that_comes_twice_in_a_call_is_the_same_in_a_family(made: Any) -> None:
    mapped, f = made()
    single, g = made()
    sources = f.map(range(3))
    f.map(sources, sources)
    f.map(sources, other=sources[1])
    sources = [g(k) for k in range(3)]
    for each in sources:
        g(each, each)
    for each in sources:
        g(each, other=sources[1])
    assert list(identify(planned(mapped)).fingerprints) == list(identify(planned(single)).fingerprints)


def test_members_of_a_family_may_be_in_different_phases(made: Any) -> None:
    pipeline, f = made()
    deep = f(f(0))
    mixed = f.map([f(1), deep, f(2), deep], range(4))
    last = f.map(mixed, list("abcd"))
    plan = planned(pipeline)
    assert [step.name for step in plan.steps] == [
        *["take", "take[2]", "take[3]"],
        *["take[1]", "take[4]", "take[6]"],
        *["take[5]", "take[7]", "take[8]", "take[10]"],
        *["take[9]", "take[11]"],
    ]
    assert [plan.index[name] for name in ("take[4]", "take[5]", "take[6]", "take[7]")] == [4, 6, 5, 7]
    assert [plan.steps[plan.places[step]] for step in [*mixed, *last]] == [*mixed, *last]
    assert [plan.graph.parents[plan.places[step]] for step in last] == [(plan.places[step],) for step in mixed]
    assert [step.name for phase in plan.phases for step in phase] == [step.name for step in plan.steps]


def test_what_is_not_plain_is_taken_by_value(made: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    pipeline, f = made()
    lists = [[1], [2]]
    config = {"rate": 1}
    array = np.zeros(1 << 18)
    listed = f.map(lists)
    shared = f.map(range(3), config=config, array=array)
    files = f.map([File(tmp_path / "a")])
    lists[0].append(3)
    config["rate"] = 2
    assert listed[0].args == [[1]]
    assert shared[2].kwargs["config"] == {"rate": 1}
    given_array = shared[0].arguments.thaw()[1]["array"]
    assert np.shares_memory(given_array, array)
    assert not given_array.flags.writeable
    assert isinstance(shared[0].family.calls, Columns)
    assert len(identify(planned(pipeline)).inputs) == len(files) == 1


# ----- names and calls are there once


def test_the_very_same_call_is_refused_wherever_it_was_made(made: Any) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda f: f(3),
        lambda f: f.map([3]),
        lambda f: f.map(range(3, 20)),
        lambda f: f.product([3]),
        lambda f: f.map([7, 8, 7]),
    ]
    for again in calls:
        pipeline, f = made()
        f.map(range(5))
        with pytest.raises(RepeatedStepError, match="the very same as for 'take"):
            again(f)
        assert len(pipeline.steps) == 5
    pipeline, f = made()
    f.map(range(5))
    f.map(range(5, 9))
    f(9)
    f.map([True, 1.0, 0.0, -0.0])
    assert len(pipeline.steps) == 14


def test_names_of_families_are_found_and_taken_once(made: Any) -> None:
    pipeline, f = made()
    first = f.map(range(4))
    f(10)
    second = f.map(range(4, 6))
    f.options(name="take[8]")(11)
    assert [step.name for step in second] == ["take[5]", "take[6]"]
    index = planned(pipeline).index
    assert [index[name] for name in index] == list(range(8))
    assert "take[7]" not in index
    assert "take[01]" not in index
    with pytest.raises(RepeatedStepError, match=r"named 'take\[2\]' already"):
        f.options(name="take[2]")(12)
    with pytest.raises(RepeatedStepError, match=r"named 'take\[8\]' already"):
        f.map(range(20, 30))
    assert first[1].name == "take[1]"


def test_steps_read_as_a_sequence(made: Any) -> None:
    _, f = made()
    a, b = f.map(range(5)), f.map(range(5, 8))
    both = a + b
    names = [step.name for step in both]
    assert names == [f"take[{k}]" for k in range(8)]
    for cut in (slice(2), slice(3, 7), slice(5, 5), slice(-3, None), slice(None, None, 2), slice(None, None, -1)):
        assert [step.name for step in both[cut]] == names[cut]
    assert both[-1] == b[2] == both[7]
    assert a[1] in both[1:4]
    assert a[0] not in both[1:4]
    assert len({*both, *a}) == 8
    with pytest.raises(IndexError):
        both[8]


# ----- large ones are small


def test_a_family_over_a_range_costs_nothing_a_member_but_numbers(made: Any) -> None:
    pipeline, f = made()
    total = 200_000
    tracemalloc.start()
    try:
        members = f.map(range(total))
        after = f.map(members)
        plan = planned(pipeline)
        plan.digest  # noqa: B018 (it is kept)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 30 * 2 * total
    assert plan.steps[total + 7] == after[7]
    assert plan.stems[2 * total - 1] == f"take[{2 * total - 1}]"
    assert plan.index["take[123456]"] == 123456


def test_packed_fingerprints_read_as_texts() -> None:
    packed = bytes(range(48))
    found = Fingerprints(packed)
    assert list(found) == [found[k] for k in range(3)] == found[0:3] == [packed[:16].hex(), *found[1:]]
    assert found[-1] == packed[32:].hex()
    with pytest.raises(IndexError):
        found[3]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3))))
def test_repeated_values_read_as_a_list(runs: list[tuple[str, int]]) -> None:
    found: Repeated[str] = Repeated()
    for value, count in runs:
        found.add(value, count)
    assert list(found) == [value for value, count in runs for _ in range(count)]


# ----- single calls that follow each other


def test_single_calls_that_follow_each_other_are_kept_as_one_family(made: Any) -> None:
    pipeline, f = made()
    steps = [f(k, y="same") for k in range(2000)]
    assert [step.name for step in steps] == ["take", *(f"take[{k}]" for k in range(1, 2000))]
    assert steps[7].label == "take[7] args=7 y=same"
    plan = planned(pipeline)
    assert [len(family) for family in plan.register.families] == [1, 1999]
    assert [step.args for step in steps] == [[k] for k in range(2000)]
    assert [plan.index[step.name] for step in steps] == [plan.places[step] for step in steps] == [*range(2000)]
    assert isinstance(plan.register.families[1].calls, Columns)
    assert plan.register.families[1].calls.columns[0].values == range(1, 2000)


Given = st.tuples(
    st.sampled_from(["take", "other"]),
    st.lists(plain, max_size=2),
    st.dictionaries(st.sampled_from(["a", "b"]), plain | st.lists(st.integers(), max_size=1), max_size=2),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(calls=st.lists(Given, max_size=12), looked=st.integers(0, 12))
def test_how_single_calls_are_kept_changes_nothing_about_their_steps(calls: list[Any], looked: int, made: Any) -> None:
    gathered, alone = made()[0], made()[0]
    alone.gather = lambda *_: None
    functions = [{each.__name__: as_pickle_step(home)(each) for each in (take, other)} for home in (gathered, alone)]
    for place, (which, args, kwargs) in enumerate(calls):
        if place == looked and gathered.steps:
            gathered.organize_steps()
        came: list[Any] = []
        for each in functions:
            try:
                step = each[which](*args, **kwargs)
                came.append((step.name, step.args, step.kwargs, step.texts(), step.bound()))
            except RepeatedStepError as error:
                came.append(str(error).partition("It is")[0])
        assert repr(came[0]) == repr(came[1])
    if not alone.steps:
        return
    plans = [planned(each) for each in (gathered, alone)]
    assert [step.name for step in plans[0].steps] == [step.name for step in plans[1].steps]
    assert [*plans[0].stems] == [*plans[1].stems]
    assert [*identify(plans[0]).fingerprints] == [*identify(plans[1]).fingerprints]


def other(*args: Any, **kwargs: Any) -> Any:
    return kwargs, args


def test_a_name_that_a_user_gave_is_not_given_again_in_a_row_of_calls(made: Any) -> None:
    _, f = made()
    f(0)
    f(1)
    f.options(name="take[3]")("x")
    f(2)
    with pytest.raises(RepeatedStepError, match=r"There is a step named 'take\[3\]' already"):
        f(3)
