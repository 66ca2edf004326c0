"""The status file: what it says, for whom, and what it refuses to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage.record import FORMAT, Record, from_json, to_json

OUTCOME = Outcome(
    step=4,
    status=Status.DONE,
    when=1763649120.25,
    seconds=2.5,
    host="n017",
    location="alpha.step",
    codec="pickle",
    bytes=3,
    checksum="xxh3:0123456789abcdef",
)
RECORD = Record(name="alpha", fingerprint="00ff", outcome=OUTCOME)


def content(**changes: Any) -> bytes:
    return json.dumps({**json.loads(to_json(RECORD, OUTCOME)), **changes}).encode()


def test_a_status_file_is_json_that_a_person_reads() -> None:
    found = json.loads(to_json(RECORD, OUTCOME))
    assert found == {
        "format": 1,
        "name": "alpha",
        "fingerprint": "00ff",
        "when": "2025-11-20T14:32:00.250000+00:00",
        "status": 0,
        "codec": "pickle",
        "bytes": 3,
        "checksum": "xxh3:0123456789abcdef",
        "location": "alpha.step",
        "seconds": 2.5,
        "rank": 0,
        "host": "n017",
        "attempt": 1,
        "args": "[]",
        "kwargs": "{}",
        "note": "",
        "cause": "",
        "traceback": "",
        "log": None,
        "missing": [],
    }
    assert list(found)[:4] == ["format", "name", "fingerprint", "when"]


def outcome_of(**said: Any) -> Outcome:
    """An outcome; hypothesis, which knows the types of all fields, would vary those too that are not said."""
    return Outcome(**said)


@given(
    st.builds(
        outcome_of,
        step=st.just(-1),
        status=st.sampled_from(Status),
        when=st.integers(0, 10**10).map(float),
        seconds=st.floats(0, 1e9),
        rank=st.integers(0, 10**6),
        args=st.text(),
        note=st.text(st.characters()),
        traceback=st.text(),
        log=st.none() | st.tuples(st.text(), st.integers(0), st.integers(0)),
        missing=st.lists(st.text()).map(tuple),
        location=st.sampled_from(["", "alpha.step", "alpha.step.npy"]),
        bytes=st.integers(0, 10**15),
    ),
    st.text(),
)
def test_what_is_written_is_read(outcome: Outcome, name: str) -> None:
    record = Record(name=name, fingerprint="f", outcome=outcome)
    assert from_json(to_json(record, outcome), "alpha") == record


def test_an_older_reader_bears_what_a_newer_writer_adds() -> None:
    assert from_json(content(future=[1]), "alpha").name == "alpha"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is empty"),
        (b'{"format": 1, "na', "it is torn, or ezpyp did not write it"),
        (bytes(300), "it is torn, or ezpyp did not write it"),
        (b"0\n", "it is torn, or ezpyp did not write it"),
        (b"[" * 100_000, "it is torn, or ezpyp did not write it"),
        (b"\xff\xfe\x00", "it is torn, or ezpyp did not write it"),
        (b"{}", "it is torn, or ezpyp did not write it"),
        (content(format=FORMAT + 1), "it has format 2, and this ezpyp reads 1: use the ezpyp that wrote it"),
        (content(bytes="3"), "ezpyp did not write it (TypeError: bytes is '3')"),
        (content(status=7), "ezpyp did not write it (ValueError: 7 is not a valid Status)"),
        (content(when="yesterday"), "ezpyp did not write it (ValueError: Invalid isoformat string: 'yesterday')"),
        (content(location="beta.step"), "it is the status of another file (beta.step)"),
        (content(location="../alpha.step"), "it is the status of another file (../alpha.step)"),
        (content(location="alpha.step/../../x"), "it is the status of another file (alpha.step/../../x)"),
    ],
)
def test_what_is_no_status_says_why(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        from_json(text, "alpha")
    assert str(caught.value) == reason


@given(st.binary(max_size=60))
def test_no_content_raises_anything_else(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is"):
        from_json(text, "alpha")
