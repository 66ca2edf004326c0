"""What a run would do and why, as a person asks for it: real scripts, edited between the questions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ezpyp.folder import admission, surveys
from ezpyp.folder import schema as schemas
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage import opening
from tests.conftest import Launcher, interpreter, least_cost

HELPERS = """
    K = 3
    def loss(x):
        return x + 3
    def scale(x):
        return x * K
"""

STUDY = """
    import logging
    import sys
    import helpers
    from ezpyp import Pipeline, as_pickle_step

    log = logging.getLogger("study")
    print("looking at the script", *sys.argv[1:])
    pipeline = Pipeline("cache", "study")

    @as_pickle_step(pipeline)
    def train(lr):
        print("training with", lr)
        return helpers.loss(lr)

    @as_pickle_step(pipeline)
    def best(losses):
        return min(losses)

    @as_pickle_step(pipeline)
    def report(x):
        return x

    @as_pickle_step(pipeline)
    def other(x):
        open("other_ran", "a").write("x")
        if x == 7:
            print("seven it is")
            raise ValueError(f"no {x}")
        return x

    report(best(train.map(range(12))))
    others = other.map(range(47))
    report(others[7], name="last")
    pipeline.execute()
"""


class Typist:
    """Types commands in a folder, as a person does."""

    def __init__(self, launcher: Launcher) -> None:
        self.folder = launcher.folder
        self._launcher = launcher
        self.err = ""

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text), encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def python(self, *words: str, code: int = 0) -> str:
        """Run a script; what it said."""
        # Two edits within a second would leave Python itself with the compiled file of the first.
        done = self._launcher.run(0, self.folder / words[0], *words[1:], env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == code, done.stdout + done.stderr
        self.err = done.stderr
        return done.stdout

    def __call__(self, *words: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """Type `ezpyp …`; standard output, with standard error in `err`."""
        done = subprocess.run(
            [sys.executable, "-c", "from ezpyp.cli.main import main; main()", *words],
            cwd=self.folder,
            env=self._launcher.environment({"PYTHONDONTWRITEBYTECODE": "1", **(env or {})}),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.err = done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def content(self) -> dict[str, tuple[int, bytes]]:
        """Every file below the folder, with its time."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def typed(tmp_path: Path) -> Typist:
    typist = Typist(interpreter(tmp_path))
    typist.write("helpers.py", HELPERS)
    typist.write("study.py", STUDY)
    return typist


@pytest.fixture
def ran(typed: Typist) -> Typist:
    """After a first run, in which one step failed and one was skipped."""
    typed.python("study.py", code=1)
    return typed


def verdicts(text: str) -> dict[str, tuple[str, list[str]]]:
    return {each["name"]: (each["verdict"], each["reasons"]) for each in json.loads(text)["steps"]}


# ----- plan


def test_a_plan_before_the_first_run_writes_nothing(typed: Typist) -> None:
    before = typed.content()
    text = typed("plan", "study.py", "--fast")
    assert typed.content() == before
    assert not (typed.folder / "cache").exists()
    assert text.splitlines() == [
        f"Pipeline 'study' @ {typed.folder}/cache: 62 to run",
        "phase 0: 59 to run",
        "  run      train[0..11], other[0..46]: new",
        "phase 1: 2 to run",
        "  run      best, last: new",
        "phase 2: 1 to run",
        "  run      report: new",
    ]
    assert typed.err == "looking at the script --fast\n"


def test_a_plan_says_what_is_cached_failed_and_skipped_and_changes_nothing(ran: Typist) -> None:
    before = ran.content()
    text = ran("plan", "study.py")
    assert ran.content() == before
    assert re.sub(r"\d{4}-\d\d-\d\d", "DAY", text).splitlines() == [
        f"Pipeline 'study' @ {ran.folder}/cache: 2 to run, 60 cached",
        "phase 0: 1 to run, 58 cached",
        "  run      other[7]: failed before: ValueError: no 7",
        "  cached   train[0..11], other[0..6,8..46]: done on DAY",
        "phase 1: 1 to run, 1 cached",
        "  run      last: was skipped because 'other[7]' failed",
        "  cached   best: done on DAY",
        "phase 2: nothing to run, 1 cached",
        "  cached   report: done on DAY",
    ]


def test_a_changed_plan_is_blocked_until_it_is_allowed(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    before = ran.content()
    found = verdicts(ran("plan", "study.py", "--output", "json", code=3))
    assert "62 steps changed" in ran.err
    assert ran.content() == before
    assert found["train[3]"] == ("blocked", ["helpers.loss: constant 3 -> 4"])
    assert found["report"] == ("blocked", ["upstream 'best' changed"])
    assert found["other[3]"] == ("cached", [])
    assert found["other[7]"] == ("run", ["failed before: ValueError: no 7"])
    for allowed in (
        json.loads(ran("plan", "study.py", "--on-change", "rerun", "--output", "json")),
        json.loads(ran("plan", "study.py", "--output", "json", env={"EZPYP_ON_CHANGE": "rerun"})),
    ):
        assert allowed["refused"] is None
        assert allowed["counts"] == {"run": 16, "blocked": 0, "cached": 46, "left out": 0}
        assert [each["run"] for each in allowed["phases"]] == [13, 2, 1]
    assert "  run      train[0..11]: helpers.loss: constant 3 -> 4\n" in ran("plan", "study.py", "--on-change=rerun")


def test_what_a_plan_says_is_what_a_run_does(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    plan = verdicts(ran("plan", "study.py", "--on-change", "rerun", "--output", "json"))
    ran("run", "study.py", "--on-change", "rerun", code=1)
    rows = json.loads(ran("summary", "cache", "--output", "json"))["rows"]
    journal = max((ran.folder / "cache" / "journal").iterdir()).read_text(encoding="utf-8")
    ended = {json.loads(line)["name"] for line in journal.splitlines() if '"event":"StepEnded"' in line}
    assert ended == {name for name, (verdict, _) in plan.items() if verdict == "run"}
    assert len(rows) == len(plan)


def test_a_part_of_the_plan_is_asked_for(ran: Typist) -> None:
    plan = verdicts(ran("plan", "study.py", "--only", "train", "--output", "json"))
    assert plan["other[7]"][0] == "left out"
    assert plan["train[0]"][0] == "cached"
    assert verdicts(ran("plan", "study.py", "--until", "last", "--output", "json"))["other[7]"][0] == "run"
    assert verdicts(ran("plan", "study.py", "--from", "other[7]", "--output", "json"))["last"][0] == "run"
    ran("plan", "study.py", "--only", "nothing", code=1)
    assert "No step is called 'nothing'" in ran.err


def test_new_and_gone_steps_are_told(ran: Typist) -> None:
    ran.edit("study.py", "other.map(range(47))", "other.map(range(1, 48))")
    text = ran("plan", "study.py", code=3)
    assert "  blocked  other[46]: new\n" in text
    assert text.endswith("gone: other[0]\n")
    assert "1 new: other[46]. 1 gone: other[0]. Let steps join and leave: --on-change extend." in ran.err
    text = ran("plan", "study.py", "--on-change", "extend")
    assert "  run      other[46]: new\n" in text


def test_many_reasons_are_cut_short(typed: Typist) -> None:
    script = """
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "many")
        @as_pickle_step(pipeline)
        def fail(x):
            raise ValueError(x)
        fail.map(range(30))
        pipeline.execute()
    """
    typed.write("many.py", script)
    typed.python("many.py", code=1)
    lines = typed("plan", "many.py").splitlines()
    assert len(lines) == 2 + 12 + 1
    assert lines[-1] == "  run      18 more, for 18 other reasons: --output json"


def test_a_torn_result_is_a_reason(ran: Typist) -> None:
    path = ran.folder / "cache" / "train[3].step"
    path.write_bytes(path.read_bytes()[:-1])
    text = ran("plan", "study.py")
    assert "  run      train[3]: its result is not usable: torn: 4 bytes where 'train[3]' wrote 5\n" in text
    assert f"wrong: {path}: torn" in text


STAGES = """
    import sys
    from ezpyp import Pipeline, as_pickle_step

    first = Pipeline("~/first_cache", "first")
    @as_pickle_step(first)
    def count(x):
        return x
    number = count({number})
    first.execute()
    print("first is", number.result(), number.get_status(), first.get_result("count"))

    second = Pipeline("second_cache", "second")
    @as_pickle_step(second)
    def each(x):
        return x * {factor}
    each.map(range(number.result()))
    summary = second.execute({asked})
    print("second:", summary.done, summary.cached, [row.status for row in summary.rows])

    third = Pipeline("third_cache", "third")
    as_pickle_step(third)(each.function)(0)
    third.execute()
"""


def test_a_script_goes_on_after_what_is_finished(typed: Typist) -> None:
    env = {"HOME": str(typed.folder)}
    typed.write("stages.py", STAGES.format(number=3, factor=2, asked=""))
    assert typed("plan", "stages.py", env=env).startswith(f"Pipeline 'first' @ {typed.folder}/first_cache: 1 to run\n")
    assert not (typed.folder / "first_cache").exists()
    typed("run", "stages.py", env=env)
    typed.write("stages.py", STAGES.format(number=3, factor=5, asked=""))
    assert typed("plan", "stages.py", env=env, code=3).startswith(
        f"Pipeline 'second' @ {typed.folder}/second_cache: 3 blocked\n"
    )
    assert "first is 3 0 3\n" in typed.err
    assert "second:" not in typed.err
    typed.write("stages.py", STAGES.format(number=3, factor=2, asked='only="each[1]"'))
    assert "Pipeline 'third'" in typed("plan", "stages.py", env=env)
    assert "second: 3 3 [<Status.DONE: 0>, <Status.DONE: 0>, <Status.DONE: 0>]" in typed.err
    # Under other names the results would have to be moved first.
    typed.write("stages.py", STAGES.format(number=3, factor=2, asked="").replace("range(", "reversed(range(", 1))
    typed.edit("stages.py", "number.result()))", "number.result())))")
    assert "Pipeline 'second'" in typed("plan", "stages.py", env=env)
    # What a step of the first pipeline is may be asked for too.
    assert "'count' is done since" in typed("why", "stages.py", "count", env=env)


def test_what_keeps_a_script_from_being_planned_is_one_line(typed: Typist) -> None:
    typed.write("study.py", "from ezpyp import Pipeline\nPipeline('cache', 'empty').execute()\n")
    typed("plan", "study.py", code=3)
    assert typed.err == "ezpyp: Pipeline 'empty' has no steps. Call a decorated function to add one.\n"
    typed.write("study.py", "x = 1\n")
    typed("plan", "study.py", code=3)
    assert "came to its end without execute()" in typed.err
    typed.write("study.py", STUDY)
    (typed.folder / "cache").mkdir()
    (typed.folder / "cache" / "pipeline.schema").write_text("torn")
    typed("plan", "study.py", code=1)
    assert "is not a schema that ezpyp wrote" in typed.err


def test_a_folder_that_cannot_be_written_can_be_planned(ran: Typist) -> None:
    folder, before = ran.folder / "cache", ran.content()
    folder.chmod(0o555)
    try:
        assert "60 cached" in ran("plan", "study.py")
        assert "'best' is done since" in ran("why", "cache", "best")
        assert "no difference" in ran("diff", "cache", "study.py")
    finally:
        folder.chmod(0o755)
    assert ran.content() == before  # root may write all the same


BIG = """
    from ezpyp import Pipeline, as_pickle_step
    pipeline = Pipeline("cache", "big", executor="inline")
    @as_pickle_step(pipeline)
    def add(x, y):
        return x + y
    @as_pickle_step(pipeline)
    def total(numbers):
        return sum(numbers)
    total(add.product(x=range(100), y=range(100)))
    pipeline.execute()
"""


def test_ten_thousand_steps_are_planned_in_two_seconds(typed: Typist) -> None:
    def cost(says: str, code: int = 0) -> float:
        def plan() -> None:
            assert says in typed("plan", "big.py", code=code)

        return least_cost(plan, 2, patience=25)

    typed.write("big.py", BIG)
    assert cost("  run      add[0..9999]: new\n") < 2
    typed.python("big.py")
    assert cost("nothing to run, 10,000 cached\n  cached   add[0..9999]: done on ") < 2
    typed.edit("big.py", "x + y", "x - y")
    assert cost("  blocked  add[0..9999]: add: code changed: return x + y -> return x - y\n", code=3) < 2


# ----- why


def test_the_chain_of_reasons_leads_to_what_was_edited(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    for source in ("study.py", "cache"):
        lines = ran("why", source, "report").splitlines()
        assert re.fullmatch(
            rf"'report' is done since \d{{4}}-\d\d-\d\d \d\d:\d\d: \S+ s on rank 0 of \S+, 5 bytes in "
            rf"{re.escape(str(ran.folder))}/cache/report\.step",
            lines[0],
        )
        assert lines[1:] == [
            "A run is refused, for it would replace results or change the plan:",
            "  report: upstream 'best' changed",
            "  best: upstream 'train[0]', 'train[1]', 'train[2]', 'train[3]', 'train[4]' and 7 more changed",
            "  train[0..11]: helpers.loss: constant 3 -> 4",
        ]
    content = json.loads(ran("why", "study.py", "report", "--output", "json"))
    assert content["verdict"] == "blocked"
    assert content["chain"][0] == {"name": "report", "reasons": ["upstream 'best' changed"]}
    assert content["chain"][2] == {"name": "train[0]", "reasons": ["helpers.loss: constant 3 -> 4"]}


def test_the_reason_of_a_failure_is_told_with_all_that_helps(ran: Typist) -> None:
    text = ran("why", "cache", "other[7]")
    lines = text.splitlines()
    assert lines[0].startswith("'other[7]' failed on ")
    assert lines[0].endswith(": ValueError: no 7")
    assert '    raise ValueError(f"no {x}")' in text
    assert "its last output:\n  seven it is\nits inputs:\n  x: 7\n" in text
    assert text.endswith("A run makes it now:\n  other[7]: failed before: ValueError: no 7\n")


def test_a_skip_names_the_failure_to_blame(ran: Typist) -> None:
    text = ran("why", "cache", "last")
    assert re.match(
        r"'last' was skipped on .* because 'other\[7\]' failed\.\n'other\[7\]' failed on .*: ValueError: no 7\n", text
    )
    assert "  seven it is\n" in text
    assert text.endswith("  last: was skipped because 'other[7]' failed\n  other[7]: failed before: ValueError: no 7\n")


def test_where_the_inputs_of_a_failure_lie(typed: Typist) -> None:
    script = """
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "inputs")
        @as_pickle_step(pipeline)
        def load(path):
            return path
        @as_pickle_step(pipeline)
        def fail(data, factor):
            raise ValueError(data)
        fail(load("a.nc"), factor=2)
        pipeline.execute()
    """
    typed.write("inputs.py", script)
    typed.python("inputs.py", code=1)
    text = typed("why", "cache", "fail")
    assert f"  factor: 2\n  'load': {typed.folder}/cache/load.step\n" in text


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (("study.py", "range(12)", "[*range(11), 20]"), "argument lr: 11 -> 20"),
        (("helpers.py", "return x + 3", "return x + 3 * K"), "helpers.loss: code changed: "),
        (("study.py", "def train(lr)", "def train(lr, mode='a')"), "train: "),
    ],
)
def test_what_changed_is_named(ran: Typist, edit: tuple[str, str, str], reason: str) -> None:
    ran.edit(*edit)
    assert f"\n  train[11]: {reason}" in ran("why", "study.py", "train[11]")


def test_a_file_is_named(typed: Typist) -> None:
    script = """
        from ezpyp import File, Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "files")
        @as_pickle_step(pipeline)
        def read(path):
            return open(path).read()
        read(File("data.txt"))
        pipeline.execute()
    """
    typed.write("files.py", script)
    typed.write("data.txt", "one")
    typed.python("files.py")
    typed.write("data.txt", "two!")
    assert "  read: input data.txt changed\n" in typed("why", "files.py", "read")


def test_a_version_stands_for_the_code_and_edits_are_shown(typed: Typist) -> None:
    script = """
        import logging
        from ezpyp import Pipeline, as_pickle_step
        log = logging.getLogger("x")
        class Client:
            def __getstate__(self):
                raise TypeError("no")
        client = Client()
        pipeline = Pipeline("cache", "version")
        @as_pickle_step(pipeline, version="3")
        def f(x):
            client
            return x * 3
        f(1)
        pipeline.execute()
    """
    typed.write("version.py", script)
    typed.python("version.py")
    assert "version '3' stands for the code\n" in typed("why", "version.py", "f")
    typed.edit("version.py", "x * 3", "x * 4")
    text = typed("why", "version.py", "f")
    assert (
        "A run takes this result as it is.\nversion '3' stands for the code; edited since: f: constant 3 -> 4\n" in text
    )
    assert "not followed, for they have no lasting identity: client" in text


def test_what_is_made_anew_leads_to_why(typed: Typist) -> None:
    script = """
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "anew")
        @as_pickle_step(pipeline, always=True)
        def now():
            return 1
        @as_pickle_step(pipeline)
        def follow(x):
            return x
        follow(now())
        pipeline.execute()
    """
    typed.write("anew.py", script)
    typed.python("anew.py")
    assert typed("why", "cache", "follow").endswith(
        "A run makes it now:\n  follow: made anew after 'now'\n  now: always=True\n"
    )


def test_a_folder_without_its_script_tells_what_it_knows(ran: Typist) -> None:
    (ran.folder / "study.py").rename(ran.folder / "renamed.py")
    text = ran("why", "cache", "other[7]")
    assert "  seven it is\n" in text
    assert f"What a run would do is not known: The script {ran.folder}/study.py cannot be read" in text
    (ran.folder / "study.py").write_text("1 / 0")
    assert "ZeroDivisionError: division by zero" in ran("why", "cache", "best")
    (ran.folder / "study.py").write_text("x = 1")
    assert "runs no pipeline 'study'" in ran("why", "cache", "best")


def test_a_moved_folder_is_held_against_its_script(ran: Typist) -> None:
    (ran.folder / "cache").rename(ran.folder / "elsewhere")
    assert "A run takes this result as it is.\n" in ran("why", "elsewhere", "best")


def test_many_steps_are_explained_at_once(ran: Typist) -> None:
    text = ran("why", "study.py", "train")
    assert text.count("A run takes this result as it is.\n") == 10
    assert "2 more steps that 'train' means" in ran.err
    assert len(json.loads(ran("why", "study.py", "train", "--output", "json"))) == 10
    ran("why", "study.py", "trian", code=1)
    assert "Did you mean 'train" in ran.err
    ran.edit("study.py", 'report(others[7], name="last")', "")
    assert ran("why", "cache", "last").startswith("'last' was skipped on ")


# ----- diff


def test_differences_of_a_script_and_a_folder(ran: Typist) -> None:
    assert ran("diff", "cache", "study.py") == (f"Pipeline 'study' @ {ran.folder}/cache: no difference, 62 as before\n")
    ran.edit("helpers.py", "x + 3", "x + 4")
    ran.edit("study.py", "other.map(range(47))", "other.map(range(1, 48))")
    ran.edit("study.py", "others[7]", "others[6]")
    text = ran("diff", "cache", "study.py")
    assert text.splitlines()[:4] == [
        f"Pipeline 'study' @ {ran.folder}/cache: 1 new, 1 gone, 14 changed, 46 moved, 47 as before",
        "  new      other[46]",
        "  gone     other[0]",
        "  changed  train[0..11]: helpers.loss: constant 3 -> 4",
    ]
    content = json.loads(ran("diff", "cache", "study.py", "--output", "json"))
    assert content["moved"]["other[0]"] == "other[1]"
    assert content["changed"]["best"][0].startswith("upstream 'train[0]'")
    assert (content["new"], content["gone"]) == (["other[46]"], ["other[0]"])


def test_a_folder_of_another_pipeline_is_not_compared(ran: Typist) -> None:
    (ran.folder / "cache").rename(ran.folder / "theirs")
    ran.edit("study.py", '"study")', '"another")')
    ran("diff", "theirs", "study.py", code=3)
    assert "belongs to pipeline 'study', not to 'another'" in ran.err


# ----- run, and the refusal


def test_the_refusal_word_for_word(typed: Typist) -> None:
    """Message 1: numbers and names vary, nothing else."""
    script = """
        import helpers
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "study")
        @as_pickle_step(pipeline)
        def train(lr):
            return helpers.loss(lr)
        @as_pickle_step(pipeline)
        def load(x):
            return x
        load.map(range(48))
        train.map(range(12))
        pipeline.execute()
    """
    typed.write("study.py", script)
    typed.python("study.py")
    typed.edit("helpers.py", "x + 3", "x + 4")
    typed.python("study.py", code=3)
    told = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d \(\d+\.\d s of", "2026-11-20 14:02 (3.1 GPU-hours of", typed.err)
    assert (
        "12 of 60 steps changed since 2026-11-20 14:02 (3.1 GPU-hours of results): train[0..11]: helpers.loss: "
        "constant 3 -> 4. Run them again: --on-change rerun. Keep their results: ezpyp accept study.py 'train*'. "
        "Start apart: another cache folder. Nothing was run."
    ) in told
    typed("plan", "study.py", code=3)
    assert "Keep their results: ezpyp accept study.py 'train*'." in typed.err
    # What the message offers works, as it is written.
    typed("accept", "study.py", "train*")
    assert "12 cached" in typed("plan", "study.py") or "nothing to run, 60 cached" in typed("plan", "study.py")
    typed.edit("helpers.py", "x + 4", "x + 5")
    assert "12 to run" in typed("plan", "study.py", "--on-change", "rerun")
    typed("run", "study.py", "--on-change", "rerun")
    assert "nothing to run, 60 cached" in typed("plan", "study.py")


def test_steps_that_only_follow_are_named_apart(ran: Typist) -> None:
    ran.edit("helpers.py", "x + 3", "x + 4")
    ran("plan", "study.py", code=3)
    assert (
        "train[0..11]: helpers.loss: constant 3 -> 4. After changed ones: best, report. Run them again: "
        "--on-change rerun. Keep their results: ezpyp accept study.py 'train*'."
    ) in ran.err


def test_gpu_hours_are_what_gpus_have_cost(tmp_path: Path) -> None:

    from ezpyp import Pipeline, as_pickle_step
    from ezpyp.storage.filestore import FileStore

    def survey(offset: int) -> surveys.Survey:
        pipeline = Pipeline(tmp_path / "cache", "gpus")

        def train(x: int) -> int:
            return x + offset

        as_pickle_step(pipeline, gpus=2)(train).map([1, 2])
        pipeline.organize_steps()
        organised = pipeline._organised("looking")
        return surveys.survey(organised, str(tmp_path / "cache"), FileStore(tmp_path / "cache"))

    first = survey(1)
    (tmp_path / "cache" / SCHEMA_FILE).write_bytes(b"".join(schemas.encoded(first.wanted)))
    for stem, fingerprint in zip(first.plan.stems, first.identity.fingerprints, strict=True):
        outcome = Outcome(step=0, status=Status.DONE, seconds=2790.0, codec="pickle")
        record = opening.Record(name=stem, fingerprint=fingerprint, outcome=outcome)
        FileStore(tmp_path / "cache").put(stem, record, [b"x"])
    assert "(3.1 GPU-hours of results)" in admission.objection(survey(2), "cache")
    assert admission.objection(survey(2)._replace(before=None), "cache") == ""


def test_a_run_takes_what_is_asked_for(ran: Typist) -> None:
    def count() -> int:
        path = ran.folder / "other_ran"
        number = len(path.read_text())
        path.unlink(missing_ok=True)
        path.touch()
        return number

    assert count() == 47
    ran.edit("study.py", "return x\n\nreport", "return x + 0\n\nreport")
    ran("run", "study.py", "--on-change", "rerun", "--only", "other[1]", "--only=other[2]")
    assert count() == 2
    ran("run", "--until", "other[3]", "study.py")
    assert count() == 1
    ran("run", "study.py", "--from", "other[7]", code=1)
    assert count() == 1
    ran("run", "study.py", "--on-change", "maybe", code=2)
    assert "--on-change maybe: choose one of refuse, extend, rerun." in ran.err


def test_what_stands_after_the_script_is_its_own(typed: Typist) -> None:
    typed.write("echo.py", "import os, sys\nprint(sys.argv[1:], os.environ.get('EZPYP_ONLY'))\n")
    assert typed("run", "echo.py", "--only", "a", "x", "--only", "b") == "['x', '--only', 'b'] a\n"
    assert typed("run", "echo.py", "--", "--only", "b") == "['--only', 'b'] None\n"
    assert typed("run", "--only", "a", "--only", "c", "echo.py") == "[] a c\n"
    assert typed("run", "echo.py", "-nice") == "['-nice'] None\n"


def test_results_of_other_folders_are_counted_in(ran: Typist) -> None:
    ran.edit("study.py", 'Pipeline("cache", "study")', 'Pipeline("fresh", "study", reuse_from=["cache"])')
    (ran.folder / "cache" / "best.step").unlink()
    text = ran("plan", "study.py")
    assert f"Pipeline 'study' @ {ran.folder}/fresh: 3 to run, 59 cached\n" in text
    assert re.search(r"  cached   report: done on \S+, from \S+/cache\n", text)
    assert not (ran.folder / "fresh").exists()
    assert re.search(r"'report' is done since .*, 5 bytes, from \S+/cache\n", ran("why", "study.py", "report"))
    assert "60 done (59 before)" in ran.python("study.py", code=1)
