"""Results that are kept although steps changed, and results that are made anew although they did not."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ezpyp import Pipeline, Status, as_pickle_step
from ezpyp.folder import runs, surveys
from ezpyp.model.outcomes import Outcome
from ezpyp.model.selection import Selection
from ezpyp.model.settings import Choices
from ezpyp.run import prospect, resume, session
from ezpyp.storage import filestore
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.opening import Record
from ezpyp.upkeep import acceptance
from tests.conftest import interpreter
from tests.test_explain import Typist

HELPERS = """
    def loss(x):
        return x + 3
"""

STUDY = """
    import sys
    import helpers
    from ezpyp import Pipeline, as_pickle_step

    pipeline = Pipeline(sys.argv[1] if sys.argv[1:] else "cache", "study", capture="off")

    @as_pickle_step(pipeline)
    def train(lr):
        open("executions", "a").write("train ")
        return helpers.loss(lr)

    @as_pickle_step(pipeline)
    def load(x):
        open("executions", "a").write("load ")
        return x * 2

    @as_pickle_step(pipeline)
    def best(losses, data):
        open("executions", "a").write("best ")
        return min(losses) + data

    @as_pickle_step(pipeline)
    def report(x):
        open("executions", "a").write("report ")
        return x

    report(best(train.map(range(4)), load(1)))
    pipeline.execute()
"""


@pytest.fixture
def ran(tmp_path: Path) -> Typist:
    """After a first run."""
    typist = Typist(interpreter(tmp_path))
    typist.write("helpers.py", HELPERS)
    typist.write("study.py", STUDY)
    typist.python("study.py")
    executed(typist)
    return typist


def executed(typist: Typist) -> list[str]:
    """What ran since the last look."""
    path = typist.folder / "executions"
    words = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(words)


BY = r"accepted \d{4}-\d\d-\d\d by \S+"


def test_all_changes_are_accepted(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    assert ran("accept", "study.py") == (
        "Accepted 6 steps.\n"
        "  train[0..3]: helpers.loss: constant 3 -> 4\n"
        "  best: upstream 'train[0]', 'train[1]', 'train[2]', 'train[3]' changed\n"
        "  report: upstream 'best' changed\n"
    )
    assert f"Pipeline 'study' @ {ran.folder}/cache: nothing to run, 7 cached\n" in ran("plan", "study.py")
    before = ran.content()
    ran.python("study.py")
    assert executed(ran) == []
    schema = f"{ran.folder}/cache/pipeline.schema"
    assert ran.content()[schema] == before[schema]
    assert ran("result", "cache", "best") == "5\n"


def test_who_accepted_is_in_the_note(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    ran("accept", "study.py", "train")
    notes = {row["name"]: row["note"] for row in json.loads(ran("summary", "cache", "--output", "json"))["rows"]}
    assert re.fullmatch(BY, notes["train[3]"])
    assert re.fullmatch(BY, notes["report"])
    assert notes["load"] == ""
    table = (ran.folder / "cache" / "pipeline.summary").read_text()
    assert len(re.findall(BY, table)) == 6
    assert re.search(
        rf"  cached   train\[0\.\.3\], load: done on |train\[0\.\.3\]: done on \S+, {BY}\n", ran("plan", "study.py")
    )
    # A second time takes the place of the first.
    ran.edit("helpers.py", "x + 4", "x + 5")
    ran("accept", "study.py")
    rows = json.loads(ran("summary", "cache", "--output", "json"))["rows"]
    assert all(re.fullmatch(BY, row["note"]) for row in rows if row["name"] != "load")
    # The run after it knows too.
    (ran.folder / "cache" / "train[0].step").unlink()
    ran.python("study.py")
    assert executed(ran) == ["train"]
    assert re.search(rf"cached; {BY}\n", (ran.folder / "cache" / "pipeline.summary").read_text())


def test_what_only_follows_comes_along(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    assert "  with them best, report\n" in ran("accept", "study.py", "train*")
    ran.python("study.py")
    assert executed(ran) == []


def test_what_is_not_accepted_stays_changed(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    ran.edit("study.py", "x * 2", "x * 3")
    assert ran("accept", "study.py", "--function", "train") == (
        "Accepted 4 steps.\n  train[0..3]: helpers.loss: constant 3 -> 4\n"
    )
    ran("plan", "study.py", code=3)
    assert "3 of 7 steps changed" in ran.err
    assert "load: load: constant 2 -> 3. After changed ones: best, report." in ran.err
    ran("run", "study.py", "--on-change", "rerun")
    assert executed(ran) == ["best", "load", "report"]


def test_a_step_after_one_that_stays_changed_is_not_accepted(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    before = ran.content()
    assert ran("accept", "study.py", "report", code=3) == (
        "not accepted: report: 'best' before it is new or stays changed\n"
    )
    assert ran.content() == before
    ran.edit("study.py", "load(1)))", "load(5)))")
    text = ran("accept", "study.py", "train", "best")
    assert text.startswith("Accepted 4 steps.\n")
    assert text.endswith("not accepted: best: 'load' before it is new or stays changed\n")


def test_a_dry_run_writes_nothing(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    before = ran.content()
    assert ran("accept", "study.py", "--dry-run").startswith("Would accept 6 steps.\n")
    assert ran("invalidate", "cache", "train", "--dry-run") == "Would invalidate 4 results: train[0..3]\n"
    assert ran.content() == before


def test_what_cannot_be_accepted_is_said(ran: Typist) -> None:
    before = ran.content()
    assert ran("accept", "study.py") == "Nothing changed that could be accepted.\n"
    assert ran("accept", "study.py", "load") == "Nothing changed that could be accepted.\n"
    ran("accept", "study.py", "lod", code=1)
    assert ran.err == "ezpyp: No step is called 'lod'. Did you mean 'load'?\n"
    ran("accept", "study.py", "--function", "fit", code=1)
    assert ran.err == "ezpyp: No step is of a function 'fit'. There are: train, load, best, report.\n"
    ran("accept", "study.py", "--args", "other_cache", code=1)
    assert "other_cache holds no results yet" in ran.err
    assert ran.content() == before
    ran.edit("study.py", '"study",', '"another",')
    ran("accept", "study.py", code=3)
    assert "belongs to pipeline 'study', not to 'another'" in ran.err


def test_the_script_gets_its_arguments(ran: Typist) -> None:
    ran.python("study.py", "my cache")
    ran.edit("helpers.py", "x + 3", "x + 4")
    assert ran("accept", "study.py", "--args", "'my cache'").startswith("Accepted 6 steps.\n")
    assert "nothing to run" in ran("plan", "study.py", "my cache")
    ran("plan", "study.py", code=3)


HOLD = """
import sys
from ezpyp.folder import lock
with lock.acquire(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_left_alone(ran: Typist) -> None:
    import subprocess
    import sys

    ran.edit("helpers.py", "x + 3", "x + 4")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ran.folder / "cache")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=interpreter(ran.folder).environment(),
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = ran.content()
        ran("accept", "study.py", code=3)
        assert "The cache is in use by " in ran.err
        ran("invalidate", "cache", "load", code=3)
        assert "The cache is in use by " in ran.err
        ran("accept", "study.py", "--dry-run")
        assert ran.content() == before
        holder.communicate()
    assert ran("accept", "study.py").startswith("Accepted 6")


def test_an_accepted_change_is_noticed_when_it_is_undone(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    ran("accept", "study.py")
    ran.edit("helpers.py", "x + 4", "x + 3")
    ran("plan", "study.py", code=3)
    assert "helpers.loss: constant 4 -> 3" in ran.err


# ----- invalidate


def test_invalid_results_are_made_anew(ran: Typist) -> None:
    assert ran("invalidate", "cache", "train[2]") == "Invalidated 1 results: train[2]\n"
    assert ran.err == ("ezpyp: steps after them keep their results: best, report. For them too: --descendants.\n")
    assert re.search(r"  run      train\[2\]: invalidated \d{4}-\d\d-\d\d by \S+\n", ran("plan", "study.py"))
    assert "train[2]" in (ran.folder / "cache" / "pipeline.summary").read_text()
    ran("result", "cache", "train[2]", code=1)
    ran.python("study.py")
    assert executed(ran) == ["train"]
    assert [path.name.partition("@")[0] for path in (ran.folder / "cache" / "old").glob("*.step")] == ["train[2]"]
    assert "nothing to run" in ran("plan", "study.py")


def test_and_what_follows_them_if_asked(ran: Typist) -> None:
    assert ran("invalidate", "cache", "train", "--descendants") == (
        "Invalidated 6 results: train[0..3], best, report\n"
    )
    assert ran.err == ""
    assert ran("invalidate", "cache", "train") == "None of the 4 steps has a result: a run makes them anyway.\n"
    ran.python("study.py")
    assert executed(ran) == ["best", "report", "train", "train", "train", "train"]


def test_of_what_is_invalid_one_version_is_kept(ran: Typist) -> None:
    for _ in range(3):
        ran("invalidate", "cache", "load")
        ran.python("study.py")
    assert executed(ran) == ["load"] * 3
    assert len(list((ran.folder / "cache" / "old").glob("load@*.step"))) == 1


# ----- in one process: every order of interruption, every graph


Calls = Callable[[Pipeline, Any], None]


class Folder:
    """A cache folder whose script is `calls`, run in line; `edition` stands for what the step's code is."""

    def __init__(self, folder: Path, calls: Calls) -> None:
        self.path = folder / "cache"
        self._calls = calls
        self._book = folder / "executions"

    def pipeline(self, edition: dict[str, int], **options: Any) -> Pipeline:
        session._folders.clear()
        pipeline = Pipeline(self.path, "accept", executor="inline", **options)

        def step(book: str, label: str, edition: int, *inputs: str) -> str:
            with open(book, "a") as file:
                file.write(f"{label}\n")
            return f"{label}{edition}"

        made = as_pickle_step(pipeline)(step)

        def call(name: str, *inputs: Any) -> Any:
            return made(str(self._book), name, edition.get(name, 0), *inputs, name=name)

        self._calls(pipeline, call)
        return pipeline

    def run(self, edition: dict[str, int], on_change: str = "refuse") -> list[str]:
        """Run; what was executed."""
        self.pipeline(edition, on_change=on_change).execute()
        lines = self._book.read_text().split() if self._book.exists() else []
        self._book.unlink(missing_ok=True)
        return sorted(lines)

    def prospect(self, edition: dict[str, int], on_change: str = "refuse") -> prospect.Prospect:
        pipeline = self.pipeline(edition)
        pipeline.organize_steps()
        organised = pipeline._organised("looking")
        return prospect.look(
            organised, str(self.path), kind="files", choices=Choices({"on_change": on_change}), selection=Selection()
        )

    def accept(self, edition: dict[str, int], *names: str) -> acceptance.Acceptance:
        survey = self.prospect(edition).survey
        chosen = acceptance.choose(survey, lambda name: not names or name in names)
        acceptance.accept(survey, str(self.path), FileStore(self.path), chosen)
        return chosen


def diamond(pipeline: Pipeline, call: Any) -> None:
    top = call("a")
    call("d", call("b", top), call("c", top))
    call("e")


class Killed(BaseException):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, survived: int, act: Callable[[], object]) -> bool:
    """Act, but for the process being killed after so many operations on files. Whether it was."""
    left = survived

    def guard(original: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return original(*args, **kwargs)

        return guarded

    with monkeypatch.context() as patch:
        for module, operation in (
            *((filestore, each) for each in ("link_whole", "remove", "write_whole")),
            (acceptance, "write_whole"),
        ):
            patch.setattr(module, operation, guard(getattr(module, operation)))
        try:
            act()
        except Killed:
            return True
    return False


def test_a_killed_acceptance_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is killed: a run is refused or runs nothing, and a second acceptance ends the work."""
    folder = Folder(tmp_path, diamond)
    assert folder.run({}) == ["a", "b", "c", "d", "e"]
    edition, kills = 0, 0
    while True:
        edition += 1
        changed = {"a": edition}
        if not killed_after(monkeypatch, kills, lambda changed=changed: folder.accept(changed)):  # type: ignore[misc]
            break
        kills += 1
        found = folder.prospect(changed)
        assert found.objection or "run" not in found.verdicts, kills
        assert {r.name for r in found.survey.scan.records.values() if r.outcome.status is Status.DONE} == set("abcde")
        folder.accept(changed)
        assert folder.run(changed) == [], kills
    assert kills == 5  # four records and the schema
    assert folder.run(changed) == []
    assert runs.open(folder.path)["d"] == "d0"


def test_a_killed_invalidation_is_as_before_or_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path, diamond)
    folder.run({})

    def invalidate() -> None:
        acceptance.invalidate(str(folder.path), acceptance.results_of(str(folder.path), ["b", "c"]))

    kills = 0
    while killed_after(monkeypatch, kills, invalidate):
        kills += 1
        executed = folder.run({})
        assert set(executed) <= {"b", "c"}
        assert runs.open(folder.path)["d"] == "d0"
        invalidate()
        assert folder.run({}) == ["b", "c"], kills
    assert kills > 6
    assert folder.run({}) == ["b", "c"]


def test_an_invalid_result_is_not_found_on_the_shelf(tmp_path: Path) -> None:
    folder = Folder(tmp_path, diamond)
    folder.run({})
    assert folder.run({"b": 1}, "rerun") == ["b", "d"]
    assert folder.run({}, "rerun") == []  # from the shelf
    acceptance.invalidate(str(folder.path), acceptance.results_of(str(folder.path), ["b"]))
    assert folder.run({}) == ["b"]
    acceptance.invalidate(str(folder.path), acceptance.results_of(str(folder.path), ["e"]))
    void = {s for s, r in FileStore(folder.path).records().records.items() if r.fingerprint.endswith(surveys.VOID)}
    assert [stem.partition("@")[0] for stem in void if stem.startswith("old/e")] == ["old/e"]
    assert folder.prospect({}).reasons(1)[0].startswith("invalidated ")
    assert folder.run({}) == ["e"]


def test_the_same_result_twice_in_a_second_is_kept_once(tmp_path: Path) -> None:
    where = FileStore(tmp_path)
    outcome = Outcome(step=0, status=Status.DONE, when=1000.0, codec="pickle")
    for content in (b"first", b"second"):
        where.put("f", Record(name="f", fingerprint="0" * 32, outcome=outcome), [content])
        resume.shelve(["f"], where.records().records, where, 1)
    (kept,) = where.records().records.values()
    assert where.get(kept) == b"second"


def test_results_that_moved_are_accepted_where_they_are(tmp_path: Path) -> None:
    """Automatic names follow the order of the calls: accepted steps keep the files that they have until a run."""

    def pipeline(values: list[str], offset: int) -> Pipeline:
        session._folders.clear()
        made = Pipeline(tmp_path / "cache", "moved", executor="inline")

        def f(x: str) -> str:
            return x + str(offset)

        as_pickle_step(made)(f).map(values)
        return made

    def survey(values: list[str], offset: int) -> surveys.Survey:
        made = pipeline(values, offset)
        made.organize_steps()
        return surveys.survey(made._organised("looking"), str(tmp_path / "cache"), FileStore(tmp_path / "cache"))

    pipeline(["a", "b", "c"], 1).execute()
    now = survey(["c", "a", "b"], 2)
    chosen = acceptance.choose(now)
    assert acceptance.accept(now, now.wanted["0"][0]["cache_location"], FileStore(tmp_path / "cache"), chosen) == 3
    assert [runs.open(tmp_path / "cache")[f"f[{k}]"] for k in range(3)] == ["a1", "b1", "c1"]
    again = pipeline(["c", "a", "b"], 2)
    summary = again.execute()
    assert (summary.cached, summary.done) == (3, 3)
    assert [step.result() for step in again.steps] == ["c1", "a1", "b1"]


def test_of_200_random_graphs_runs_what_was_not_accepted(tmp_path: Path) -> None:
    """Edit some steps, accept some of the edits: what runs is the edited rest with its descendants."""
    for number in range(200):
        rng = random.Random(number)
        size = rng.randint(1, 8)
        parents = [sorted(rng.sample(range(k), rng.randint(0, min(k, 3)))) for k in range(size)]

        def calls(pipeline: Pipeline, call: Any, parents: list[list[int]] = parents) -> None:
            made: list[Any] = []
            for k, each in enumerate(parents):
                made.append(call(f"s{k}", *(made[p] for p in each)))

        place = tmp_path / str(number)
        place.mkdir()
        folder = Folder(place, calls)
        folder.run({})
        edited = set(rng.sample(range(size), rng.randint(0, min(3, size - 1))))
        accepted = {k for k in edited if rng.random() < 0.6}
        edition = {f"s{k}": 1 for k in edited}
        open_ = set(edited)
        for k in range(size):
            if k in accepted and not open_.intersection(parents[k]):
                open_.discard(k)
            elif open_.intersection(parents[k]):
                open_.add(k)
        chosen = folder.accept(edition, *(f"s{k}" for k in accepted)) if accepted else None
        assert folder.run(edition, "rerun") == sorted(f"s{k}" for k in open_), number
        if chosen is not None:
            assert set(chosen.left) == {f"s{k}" for k in accepted & open_}, number
        assert "run" not in folder.prospect(edition).verdicts
