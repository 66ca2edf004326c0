"""Folders of families that are folded, packed: every verb finds its way to their members."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ezpyp
from ezpyp.cli.main import ezpyp_command
from ezpyp.folder import schema as schemas
from ezpyp.upkeep import acceptance
from tests.conftest import Launcher, interpreter

COUNT = 1500
STUDY = f"""
import os
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "large")

@as_json_step(pipeline)
def f(k):
    if k == 777 and not os.path.exists("mended"):
        raise ValueError("seven")
    return k

@as_json_step(pipeline)
def g(x):
    return 2 * x

@as_json_step(pipeline)
def other(k):
    return k

fs = f.map(range({COUNT}), allow_failure=True)
gs = g.map(fs[:1])
other.map(range(10, {COUNT} + 10))
pipeline.execute()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    done = interpreter(folder).run(0, STUDY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """A copy of the study that has run, in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return interpreter(tmp_path)


def typed(*words: str) -> Result:
    return CliRunner().invoke(ezpyp_command, words, catch_exceptions=False, standalone_mode=False)


def test_the_folder_is_told_of_without_its_members(study: Launcher) -> None:
    told = typed("status", "cache").output
    assert f"{2 * COUNT:,} of {2 * COUNT + 1:,} done, 1 failed" in told
    assert "failed: f[777]: ValueError: seven" in told
    assert f"{COUNT:,} records of f" in told
    summary = ezpyp.open("cache").summary()
    assert (summary.done, summary.failed, list(summary.failures)) == (2 * COUNT, 1, ["f[777]"])
    assert summary.rows[776].status == 0
    assert summary.rows[777].status == 1
    rows = [line.split()[0] for line in typed("summary", "cache").output.splitlines()[3:]]
    assert rows == ["f[0..1499]", "f[777]", "other[0..1499]", "g[0]"]


def test_verbs_know_members(study: Launcher) -> None:
    assert typed("result", "cache", "f[776]").output == "776\n"
    assert "failed" in typed("why", "cache", "f[777]").output
    assert "is done" in typed("why", "cache", "other[1499]").output
    assert "ValueError: seven" in typed("log", "cache", "f[777]").output
    for name in ("f[1500]", "f[007]", "nothing"):
        with pytest.raises(ezpyp.UnknownStep, match="No step is called"):
            typed("result", "cache", name)
    run = ezpyp.open("cache")
    assert run.names("f[12]") == ["f[12]"]
    assert run.names("f", k=12) == ["f[12]"]
    assert len(run.names("f")) == COUNT
    assert run.names("*[1499]") == ["f[1499]", "other[1499]"]


def test_a_member_is_invalidated_by_its_name_and_nothing_else(study: Launcher) -> None:
    assert typed("invalidate", "cache", "f[0]", "--dry-run").output.startswith("Would invalidate 1 results: f[0]\n")
    told = typed("invalidate", "cache", "f[0]").output
    assert told.startswith("Invalidated 1 results: f[0]\n")
    assert "steps after them keep their results: g[0]." in told
    assert typed("invalidate", "cache", "f[0]").output.startswith("None of the 1 steps has a result")
    progress = ezpyp.open("cache").status
    assert (progress.done, progress.failed, progress.not_run) == (2 * COUNT - 1, 1, 1)
    counts = json.loads(typed("plan", "script.py", "--output", "json").output)["counts"]
    assert counts["run"] == 2
    done = study.run(0, study.folder / "script.py")
    assert "2 to run" in done.stdout, done.stderr


def test_what_comes_after_a_member_is_found_by_its_place(study: Launcher) -> None:
    assert acceptance.after("cache", ["f[0]"]) == ["f[0]", "g[0]"]
    assert acceptance.after("cache", ["f[1]"]) == ["f[1]"]


def test_a_failed_member_alone_is_run_again(study: Launcher) -> None:
    (study.folder / "mended").touch()
    done = study.run(0, study.folder / "script.py")
    assert "1 to run" in done.stdout, done.stderr
    assert ezpyp.open("cache")["f[777]"] == 777
    assert ezpyp.open("cache").status.failed == 0


def test_the_folder_can_be_merged_and_repacked(study: Launcher) -> None:
    assert f"{2 * COUNT:,} of {2 * COUNT + 1:,} steps done" in typed("merge", "cache", "--into", "merged").output
    entries = json.loads(Path("merged/pipeline.schema").read_text())["0"]
    assert [each["name"] for each in entries] == ["f[0..1499]", "other[0..1499]"], "as they were"
    for folder in ("cache", "merged"):
        assert typed("repack", folder).return_value == 0
        assert typed("check", folder).return_value == 0
        assert ezpyp.open(folder)["other[7]"] == 17
        assert ezpyp.open(folder).status.failures == {"f[777]": "ValueError: seven"}


def test_a_graph_has_a_node_for_each_large_family(study: Launcher) -> None:
    text = typed("graph", "cache").output
    assert 's0["f[0..1499] (1 failed, 1,499 done)"]:::failed' in text
    assert "s0 --> s2" in text, "g[0] depends on one of them"
    assert len(text.splitlines()) == 7
    nodes = json.loads(typed("graph", "cache", "--output", "json").output)
    assert [each["name"] for each in nodes] == ["f[0..1499]", "other[0..1499]", "g[0]"]
    assert nodes[0]["statuses"] == {"1": 1, "0": 1499}
    assert nodes[2]["upstream"] == ["f[0..1499]"]
    assert len(typed("graph", "script.py").output.splitlines()) == 5
    every = json.loads(typed("graph", "cache", "--all", "--output", "json").output)
    assert len(every) == 2 * COUNT + 1
    assert every[-1]["upstream"] == ["f[0]"]


def test_of_a_large_family_a_few_results_are_printed(study: Launcher) -> None:
    few = typed("result", "cache", "other")
    assert few.stdout == "".join(f"other[{k}]: {k + 10}\n" for k in range(10))
    assert "of 1,500 steps the first 10 with a result. All of them: --all" in few.stderr
    every = typed("result", "cache", "f", "--all")
    assert every.stdout.splitlines() == [f"f[{k}]: {k}" for k in range(COUNT) if k != 777]
    assert "1 of 1,500 steps have no result" in every.stderr
    assert json.loads(typed("result", "cache", "other", "--output", "json").stdout)["other[1499]"] == 1509
    assert typed("result", "cache", "f*", "--where", "k=3").stdout == "f[3]: 3\n"


def test_a_plan_tells_members_together(study: Launcher) -> None:
    lines = typed("plan", "script.py").stdout.splitlines()
    assert "  run      f[777]: failed before: ValueError: seven" in lines
    assert any(line.startswith("  cached   f[0..776,778..1499], other[0..1499]: done on ") for line in lines)
    content = json.loads(typed("plan", "script.py", "--output", "json").stdout)
    told = [(each["name"], each["verdict"], each.get("count", 1)) for each in content["steps"]]
    assert told == [
        ("f[0..776]", "cached", 777),
        ("f[777]", "run", 1),
        ("f[778..1499]", "cached", 722),
        ("other[0..1499]", "cached", 1500),
        ("g[0]", "cached", 1),
    ]
    assert all(each["since"] > 1.7e9 for each in content["steps"] if each["verdict"] == "cached")
    every = json.loads(typed("plan", "script.py", "--all", "--output", "json").stdout)["steps"]
    assert [each["name"] for each in every][:2] == ["f[0]", "f[1]"]
    assert len(every) == 2 * COUNT + 1


def test_a_changed_family_is_refused_with_what_it_has_cost(study: Launcher) -> None:
    script = study.folder / "script.py"
    script.write_text(script.read_text().replace("    return k\n\nfs", "    return k + 1\n\nfs"))
    refused = typed("plan", "script.py")
    assert refused.return_value == 3
    assert "1,500 of 3,001 steps changed since " in refused.stderr
    assert "other[0..1499]: other: " in refused.stderr
    assert "  blocked  other[0..1499]: other: " in refused.stdout
    assert typed("accept", "script.py", "other", "--dry-run").stdout.startswith("Would accept 1,500 steps.\n")


def test_what_a_schema_says_of_its_folder_is_read_without_its_steps(
    study: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = schemas.read("cache")
    assert whole is not None
    (tmp_path / "long").mkdir()
    content = {**whole, "0": [{**whole["0"][0], "name": f"s{k}"} for k in range(COUNT)]}
    (tmp_path / "long/pipeline.schema").write_bytes(b"".join(schemas.encoded(content)))
    monkeypatch.setattr(schemas, "read", None)
    assert schemas.about("cache") == schemas.about("long") == whole["ezpyp"]
    assert schemas.about(tmp_path) is None


@pytest.mark.parametrize("torn", [b"", b"{", b'{\n  "ezpyp": {}\n}\n', b'{\n  "ezpyp": {"format": 99}\n}\n'])
def test_a_schema_that_is_none_is_told(torn: bytes, tmp_path: Path) -> None:
    (tmp_path / "pipeline.schema").write_bytes(torn)
    with pytest.raises(ezpyp.StoreError, match=r"not a schema that ezpyp wrote|has format 99"):
        schemas.about(tmp_path)
