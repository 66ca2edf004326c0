"""Step names as file names: safe names stay, others never escape, collide or change."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.model import naming
from ezpyp.model.naming import stems


def stem(name: str) -> str:
    return stems([name])[name]


@pytest.mark.parametrize("name", ["alpha", "sim[17]", "x=0.3,y=4", "a-b_c+d", "A.b.c", "0", "a" * 100, "_x"])
def test_safe_names_stay(name: str) -> None:
    assert stem(name) == name


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("data/load", "data-load"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("[1]", "1"),
        ("a..b", "a-b"),
        ("a.", "a"),
        ("größe", "gr-e"),
        ("two words", "two-words"),
        ("line\nbreak\0", "line-break"),
        ("", "step"),
        ("é", "step"),
        ("a" * 101, "a" * 60),
        ("\udcff", "step"),
        *((name, name.replace(".", "-")) for name in ("pipeline", "journal", "logs", "store", "code", "report.html")),
        *((f"a.{end}", f"a-{end}") for end in ("status", "step", "partial", "schema", "summary", "Status")),
        ("a.step.npy", "a-step-npy"),
        ("Pipeline", "Pipeline"),
    ],
)
def test_other_names_keep_a_readable_part_and_get_a_digest(name: str, readable: str) -> None:
    assert re.fullmatch(rf"{re.escape(readable)}~[0-9a-f]{{10}}", stem(name))


def test_the_digest_is_the_same_tomorrow() -> None:
    assert stem("data/load") == "data-load~0837515435"


def test_of_names_that_differ_in_case_the_later_gets_the_digest() -> None:
    found = stems(["alpha", "Alpha", "ALPHA"])
    assert found["alpha"] == "alpha"
    assert found["Alpha"].startswith("Alpha~")
    assert found["ALPHA"].startswith("ALPHA~")
    assert stems(["Alpha", "alpha"])["Alpha"] == "Alpha"


def test_a_name_that_is_twice_in_the_list_has_one_stem() -> None:
    assert stems(["a", "a", "é", "é"]) == stems(["a", "é"])


def test_digests_that_meet_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_digested", lambda name, salt: f"step~{salt}")
    assert stems(["é", "ü", "alpha", "ß"]) == {"é": "step~0", "ü": "step~1", "alpha": "alpha", "ß": "step~2"}


Names = st.text(max_size=120) | st.from_regex(r"[./a-zA-Z~\[\]-]{0,8}(\.(step|status|Partial))?", fullmatch=True)


@given(st.lists(Names, max_size=20))
def test_stems_never_escape_collide_or_depend_on_chance(names: list[str]) -> None:
    found = stems(names)
    assert found == stems(list(names))
    assert set(found) == set(names)
    assert len({each.casefold() for each in found.values()}) == len(found)
    for each in found.values():
        assert re.fullmatch(r"[A-Za-z0-9_+=,][A-Za-z0-9_+=,.~\[\]-]{0,99}", each)
        assert ".." not in each
        assert not re.search(r"\.(step|status|partial|schema|summary)(\.|$)", each, re.IGNORECASE)


@given(st.lists(st.sampled_from(["alpha", "Alpha", "é", "a/b", "a.b", "sim[1]"]), unique=True), st.randoms())
def test_order_matters_only_among_names_that_differ_in_case(names: list[str], chance: random.Random) -> None:
    shuffled = names[:]
    chance.shuffle(shuffled)
    one, other = stems(names), stems(shuffled)
    assert {name for name in names if one[name] != other[name]} <= {"alpha", "Alpha"}
