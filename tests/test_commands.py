"""Steps that are programs: what they are given, what comes of them, what makes them run again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ezpyp
from ezpyp import Completed, File, Output, Pipeline, Status, as_command_step, as_json_step, as_pickle_step
from ezpyp.testing import commands
from tests.test_offspring import wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Launcher


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Node-local scratch; relative paths of commands refer to where the test is, as from a prompt."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ezpyp.programs.words.main_script", lambda: str(tmp_path / "script.py"))
    monkeypatch.setattr("ezpyp.work.worker.main_script", lambda: str(tmp_path / "script.py"))
    return folder


def run(build: Callable[[Pipeline], Any], cache: str = "cache", **options: Any) -> tuple[Pipeline, Any]:
    pipeline = Pipeline(cache, "commands", **options)
    steps = build(pipeline)
    pipeline.execute(raise_on_failure=False)
    return pipeline, steps


def program(name: str, body: str) -> Path:
    path = Path(name)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def note(step: Any) -> str:
    """What is said of a failed step."""
    with pytest.raises(ezpyp.StepFailed) as caught:
        step.result()
    return str(caught.value)


def test_how_a_program_is_told_of_a_stop_is_no_part_of_it() -> None:
    run(lambda p: p.command("touch", ["touch", "left"], outputs="left"))
    pipeline = Pipeline("cache", "commands")
    pipeline.command("touch", ["touch", "left"], outputs="left", stop_signal="TERM")
    assert pipeline.execute(raise_on_failure=False).cached == 1


# ----- what a program is given


ECHO = [sys.executable, "-c", "import sys; open('args', 'w').write(repr(sys.argv[1:]))"]


def words_of(*given: Any) -> list[str]:
    """What a program gets for these arguments."""
    _, step = run(lambda p: p.command("echo", [*ECHO, *given], outputs="args", track=False))
    found: list[str] = eval(Path(step.result()).read_text(encoding="utf-8"))
    return found


def test_texts_and_numbers_are_written_plainly() -> None:
    assert words_of("--x", 0.3, 7, True, "two words; $HOME *") == ["--x", "0.3", "7", "True", "two words; $HOME *"]


def test_numpy_scalars_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert words_of(numpy.float64(0.5), numpy.int32(3)) == ["0.5", "3"]


def test_a_file_is_its_path_from_the_folder_of_the_script(tmp_path: Path) -> None:
    Path("in.txt").write_text("x")
    assert words_of(File("in.txt"), Path("as/it/is")) == [str(tmp_path / "in.txt"), "as/it/is"]


def test_relative_paths_refer_to_the_folder_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    program("sim", 'cat "$1" linked > out')
    Path("in.txt").write_text("content")
    monkeypatch.chdir("elsewhere")
    _, step = run(lambda p: p.command("sim", ["./sim", File("in.txt")], inputs={"linked": "in.txt"}, outputs="out"))
    assert Path(step.result()).read_text() == "contentcontent"


def test_a_tuple_is_one_argument_and_a_list_several() -> None:
    assert words_of(("--x=", 3), ["a", ["b", 2]], ()) == ["--x=3", "a", "b", "2", ""]


def test_results_of_steps_are_written() -> None:
    def build(p: Pipeline) -> Any:
        number = as_json_step(p)(lambda: 1.5)()
        files = as_pickle_step(p)(made).map(["a", "b"])
        return p.command("echo", [*ECHO, number, ("--n=", number), files], outputs="args")

    _, step = run(build)
    first, second, *paths = eval(Path(step.result()).read_text())
    assert (first, second) == ("1.5", "--n=1.5")
    assert [Path(path).read_text() for path in paths] == ["a", "b"]


def made(name: str) -> File:
    Path(f"{name}.txt").write_text(name)
    return File(f"{name}.txt")


def test_failed_members_of_a_list_are_left_out() -> None:
    def build(p: Pipeline) -> Any:
        numbers = as_json_step(p)(lambda x: 1 // x).map([1, 0, 2], allow_failure=True)
        return p.command("echo", [*ECHO, numbers], outputs="args")

    _, step = run(build)
    assert eval(Path(step.result()).read_text()) == ["1", "0"]


@pytest.mark.parametrize("strange", [None, {"a": 1}, object])
def test_what_cannot_be_written_is_refused_at_the_call(strange: Any) -> None:
    with pytest.raises(TypeError, match=r"The command 'sim' has .*cannot be written as text"):
        Pipeline("cache", "commands").command("sim", ["true", strange])


@pytest.mark.parametrize("strange", ["a\0b", b"a\0b", Path("a\0b"), "\ud800"])
def test_texts_that_no_program_can_be_given_are_refused_at_the_call(strange: Any) -> None:
    with pytest.raises(TypeError, match=r"The command 'sim' has .*, which has (a zero byte|a character)"):
        Pipeline("cache", "commands").command("sim", ["true", strange])


def test_long_arguments_are_taken_in_time_and_refused_by_the_kernel() -> None:
    started = time.process_time()
    _, step = run(lambda p: p.command("sim", ["true", "x" * 200_000]))
    assert "its arguments are too long for the kernel (200,015 bytes, the longest 200,000)" in note(step)
    assert time.process_time() - started < 10, "to look through them takes time that grows with their square"


def test_a_result_that_cannot_be_written_fails_the_step() -> None:
    def build(p: Pipeline) -> Any:
        return p.command("sim", ["true", as_json_step(p)(lambda: {"a": 1})()])

    _, step = run(build)
    assert "its argument 1 is {'a': 1}, which cannot be written as text" in note(step)


def test_a_step_inside_a_text_is_refused() -> None:
    pipeline = Pipeline("cache", "commands")
    step = as_json_step(pipeline)(lambda: 1)()
    with pytest.raises(TypeError, match=r"\('--mesh=', step\)"):
        pipeline.command("sim", ["true", f"--mesh={step}"])


@pytest.mark.parametrize("command", ["./sim --x 3", [], 7])
def test_what_is_no_list_is_refused(command: Any) -> None:
    with pytest.raises(TypeError, match="give a list"):
        Pipeline("cache", "commands").command("sim", command)


# ----- where it runs


def test_it_starts_in_an_empty_folder_that_is_gone_afterwards(node: Path) -> None:
    _, step = run(lambda p: p.command("look", "ls -A; pwd > where", shell="bash", outputs="where"))
    where = Path(Path(step.result()).read_text().strip())
    assert where.parent == node
    assert list(node.iterdir()) == []


def test_inputs_are_linked_in_where_asked() -> None:
    Path("obs").mkdir()
    for name in ("obs/1.nc", "obs/2.nc", "mesh.msh"):
        Path(name).write_text(name)

    def build(p: Pipeline) -> Any:
        restart = as_pickle_step(p)(made)("r")
        links = {"mesh": "mesh.msh", "data": "obs/*.nc", "deep/restart.txt": restart}
        return p.command(
            "cat", "cat mesh data/* deep/restart.txt > all.txt", shell="bash", inputs=links, outputs="*.txt"
        )

    _, step = run(build)
    assert Path(step.result()).read_text() == "mesh.mshobs/1.ncobs/2.ncr"
    assert sorted(step.result().files) == ["all.txt"]


def test_cwd_is_a_folder_of_the_users() -> None:
    Path("mine").mkdir()
    pipeline, step = run(lambda p: p.command("touch", ["touch", "left"], cwd="mine", outputs="left"))
    assert pipeline.get_status(step) is Status.DONE
    assert Path("mine/left").exists()
    Path("mine/left").unlink()
    run(lambda p: p.command("touch", ["touch", "left"], cwd="mine", outputs="left"))
    assert Path("mine/left").exists()


def test_its_environment_is_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWAY", "1")
    monkeypatch.setenv("PMI_RANK", "3")
    build = '[ "$MINE" = 4 ] && [ -z "${AWAY+x}" ] && [ -z "${PMI_RANK+x}" ] && [ "$OMP_NUM_THREADS" = 1 ]'
    pipeline, step = run(lambda p: p.command("env", ["sh", "-c", build], env={"MINE": 4, "AWAY": None}))
    assert pipeline.get_status(step) is Status.DONE


def test_bash_stops_at_the_first_thing_that_goes_wrong() -> None:
    _, step = run(lambda p: p.command("pipe", "false | true; echo no > out", shell="bash", outputs="out"))
    assert "its shell ended with exit code 1" in note(step)
    _, step = run(lambda p: p.command("unset", "echo $NO_SUCH", shell="bash", stdout="out"), "other")
    assert "NO_SUCH: unbound variable" in note(step)


def test_a_shell_line_quotes_what_is_no_text() -> None:
    Path("with blank.txt").write_text("x")
    words = ["cat", File("with blank.txt"), "> out; echo", 3, ">> out"]
    _, step = run(lambda p: p.command("cat", words, shell="bash", outputs="out"))
    assert Path(step.result()).read_text() == "x3\n"


# ----- what comes of it


def test_the_record_says_what_it_took_and_left() -> None:
    command = [sys.executable, "-c", "x = bytearray(300 << 20); x[::4096] = x[::4096]; sum(range(10**6))"]
    _, step = run(lambda p: p.command("eat", command))
    done = step.result()
    assert isinstance(done, Completed)
    assert done.exit_code == 0
    assert done.command[0] == sys.executable
    assert done.seconds > 0
    assert done.cpu_seconds > 0
    assert 250 << 20 < done.peak_memory < 600 << 20
    assert done.outputs == {}


def test_memory_and_time_of_its_children_count() -> None:
    line = f"{sys.executable} -c 'x = bytearray(300 << 20); x[::4096] = x[::4096]; sum(range(3 * 10**6))'; true"
    _, step = run(lambda p: p.command("eat", line, shell="bash"))
    assert step.result().peak_memory > 250 << 20
    assert step.result().cpu_seconds > 0.02


def test_peak_memory_is_not_that_of_the_helper() -> None:
    ballast = bytearray(200 << 20)
    ballast[::4096] = ballast[::4096]
    _, step = run(lambda p: p.command("sleep", ["sleep", "0.2"]))
    assert 0 < step.result().peak_memory < 50 << 20, len(ballast)


def test_outputs_are_moved_into_the_cache(tmp_path: Path, node: Path) -> None:
    line = (
        "mkdir -p plots/deep; echo 1 > a.txt; echo 2 > plots/x.png; echo 3 > plots/deep/y.png; echo 4 > 1.nc; echo > no"
    )
    _, step = run(lambda p: p.command("make", line, shell="bash", outputs=["a.txt", "plots", "*.nc"]))
    done = step.result()
    assert Path(done["a.txt"]) == tmp_path / "cache/files/make/a.txt"
    assert Path(done["plots"], "deep/y.png").read_text() == "3\n"
    assert [Path(each).read_text() for each in done["*.nc"]] == ["4\n"]
    assert sorted(done.files) == ["1.nc", "a.txt", "plots/deep/y.png", "plots/x.png"]
    assert list(node.iterdir()) == []
    with pytest.raises(KeyError, match=r"no output 'b.txt'.*a.txt"):
        done["b.txt"]
    with pytest.raises(TypeError, match="name one"):
        os.fspath(done)


def test_a_folder_that_was_left_is_one_where_results_are_taken_over() -> None:
    line = "mkdir -p plots/deep; echo 1 > plots/x; echo 2 > plots/deep/x; echo 3 > x"
    for cache, more in (("cache", {}), ("other", {"reuse_from": "cache"})):
        _, step = run(lambda p: p.command("make", line, shell="bash", outputs=["plots", "x"]), cache, **more)
        plots = Path(step.result()["plots"])
        assert plots == Path(cache, "files/make/plots").absolute()
        assert [(plots / name).read_text() for name in ("x", "deep/x")] == ["1\n", "2\n"]


def test_an_output_from_another_file_system_keeps_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_rename(*_: Any) -> None:
        raise OSError(18, "cross-device")

    monkeypatch.setattr("ezpyp.model.outputs.os.rename", no_rename)
    line = "printf '#!/bin/sh\\necho ran' > tool; chmod +x tool"
    _, step = run(lambda p: p.command("make", line, shell="bash", outputs="tool"))
    assert os.access(step.result(), os.X_OK)


def test_one_output_of_several_can_be_handed_on() -> None:
    def build(p: Pipeline) -> Any:
        both = p.command("both", "echo 1 > a; echo 2 > b", shell="bash", outputs=["a", "b"])
        return p.command("cat", ["cat", Output(both, "b")], stdout="out")

    _, step = run(build)
    assert Path(step.result()).read_text() == "2\n"


def test_a_missing_output_fails_the_step_by_name() -> None:
    _, step = run(lambda p: p.command("make", commands.write("b.txt"), outputs="a.txt"))
    assert "its output 'a.txt' is not there when it ends" in note(step)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ln -s nowhere out", "its output 'out' is a link to nowhere, which is not there"),
        ("mkdir run; echo 1 > run/a; ln -s run out", "its output 'out' is a link to a folder"),
        ("mkfifo out", "its output 'out' is no file, but a pipe"),
        ("mkdir out; touch out/a; mkfifo out/b", "its output 'out/b' is no file, but a pipe"),
    ],
)
def test_an_output_that_cannot_be_kept_fails_the_step_by_name(line: str, words: str, node: Path) -> None:
    _, step = run(lambda p: p.command("make", line, shell="bash", outputs="out"))
    assert words in note(step)
    assert "Again, alone: " in note(step)
    assert os.path.lexists(next(node.iterdir()) / "out")
    assert not Path("cache/files/make").exists()


def test_an_output_that_is_a_link_to_a_file_is_that_file() -> None:
    Path("far").write_text("far")
    line = f"echo near > real; ln -s real near; ln -s {Path('far').resolve()} far"
    _, step = run(lambda p: p.command("make", line, shell="bash", outputs=["near", "far"]))
    assert [Path(step.result()[name]).read_text() for name in ("near", "far")] == ["near\n", "far"]
    assert not any(path.is_symlink() for path in Path("cache/files/make").iterdir())
    assert Path("far").read_text() == "far"


def test_all_of_the_folder_may_be_an_output_but_not_what_was_linked_in() -> None:
    Path("in").write_text("in")
    line = "mkdir -p sub; echo 1 > a; echo 2 > sub/b"
    _, step = run(
        lambda p: p.command("make", line, shell="bash", inputs={"in": File("in"), "sub/in": File("in")}, outputs=".")
    )
    assert sorted(step.result().files) == ["a", "sub/b"]


@pytest.mark.parametrize("renames", [True, False])
def test_outputs_stay_in_the_folder_where_one_cannot_be_kept(
    renames: bool, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full: nothing of what was computed is lost, and nothing is left in the cache."""

    def digest(path: str) -> str:
        if path.endswith("/c"):
            raise OSError(28, "No space left on device")
        return "0" * 32

    monkeypatch.setattr("ezpyp.model.outputs.content_of", digest)
    if not renames:
        monkeypatch.setattr("ezpyp.model.outputs._done", lambda *_: False)
    line = "mkdir sub; for k in a sub/b c d; do echo $k > $k; done"
    _, step = run(lambda p: p.command("make", line, shell="bash", outputs=["a", "sub", "c", "d"]))
    assert "No space left on device" in note(step)
    (kept,) = node.iterdir()
    assert [(kept / name).read_text() for name in ("a", "sub/b", "c", "d")] == ["a\n", "sub/b\n", "c\n", "d\n"]
    assert not Path("cache/files/make").exists()


def test_a_failure_says_all_there_is_to_say(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Message 6."""
    program("sim", "echo fine; for i in $(seq 30); do echo $i >&2; done; touch core; kill -SEGV $$")

    def build(p: Pipeline) -> Any:
        @as_command_step(p)
        def sim(x: float) -> list[Any]:
            return ["./sim", x]

        return sim.map([0.3, 0.4])

    _, steps = run(build)
    (kept,) = node.glob("*sim_1")
    told = note(steps[1])
    wanted = (
        rf"\./sim ended with signal 11 \(segmentation fault\) on {os.uname().nodename} after [\d.]+ s\. "
        rf"Its last words: 30  Folder kept: {re.escape(str(kept))}\.  "
        r"Again, alone: ezpyp run script.py --only 'sim\[1\]'"
    )
    assert re.search(wanted, told), told
    assert (kept / "core").exists()
    output = capsys.readouterr().out
    assert "[FAIL] 'sim[1]' (x=0.4) ./sim ended with signal 11" in output
    shown = output.partition("its output ends with:\n")[2].splitlines()
    assert [line.strip() for line in shown[:20]] == [str(k) for k in range(11, 31)]


def test_a_name_of_a_file_beside_the_script_is_told_of() -> None:
    Path("a b.txt").write_text("here")
    _, (text, file, absent) = run(
        lambda p: [
            p.command("text", ["cat", "a b.txt"]),
            p.command("file", ["cat", File("a b.txt")]),
            p.command("absent", ["cat", "c.txt"]),
        ]
    )
    assert "a b.txt is in the script's folder, not in that of the step: give File('a b.txt')." in note(text)
    assert file.get_status() == Status.DONE
    assert "script's folder" not in note(absent)


def test_codes_that_are_no_failure() -> None:
    _, (one, two) = run(
        lambda p: [
            p.command("one", commands.fail(3), ok_codes=(0, 3)),
            p.command("two", commands.fail(4, "why"), ok_codes=(0, 3)),
        ]
    )
    assert one.result().exit_code == 3
    assert "ended with exit code 4" in note(two)
    assert "Its last words: why" in note(two)


OTHER_MACHINE = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0" + bytes(200)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#!/nowhere/python -s\n", "sim is there, but not what runs it (#!/nowhere/python -s)"),
        (b"echo no first line\n", "sim is no program for this machine"),
        (OTHER_MACHINE, "sim is no program for this machine"),
    ],
)
def test_what_cannot_be_started_says_so(content: bytes, words: str, tmp_path: Path) -> None:
    program("sim", "")
    Path("sim").write_bytes(content)
    _, step = run(lambda p: p.command("sim", ["./sim"]))
    assert "./sim cannot be started: " in note(step)
    assert words in note(step)


def test_a_program_that_may_not_be_run_is_refused_before_the_run() -> None:
    Path("data").write_text("no program")
    with pytest.raises(ezpyp.InitializationError, match=r"\./data may not be run.*chmod \+x \./data"):
        run(lambda p: p.command("sim", ["./data"]))


def test_a_program_made_by_a_step_may_not_be_one() -> None:
    _, step = run(lambda p: p.command("sim", [p.command("make", commands.write("data"), outputs="data")]))
    assert "may not be run. Is it executable" in note(step)


def test_a_program_that_is_not_there_is_refused_before_the_run() -> None:
    with pytest.raises(ezpyp.InitializationError, match=r"Step 'sim' reads './sim'.*no program \./sim in"):
        run(lambda p: p.command("sim", ["./sim"]))
    with pytest.raises(ezpyp.InitializationError, match="no program no-such-tool in any folder of its PATH"):
        run(lambda p: p.command("sim", ["no-such-tool"]))


def test_standard_output_goes_to_the_log_or_to_a_file(tmp_path: Path) -> None:
    _, (logged, filed) = run(
        lambda p: [p.command("a", ["echo", "to the log"]), p.command("b", ["echo", "to a file"], stdout="out.txt")]
    )
    assert filed.result()["out.txt"].path == str(tmp_path / "cache/files/b/out.txt")
    assert Path(filed.result()).read_text() == "to a file\n"
    logs = "".join(path.read_text() for path in Path("cache/logs").iterdir())
    assert logs == "to the log\n"
    assert logged.result().outputs == {}


def alive(pids: str) -> list[int]:
    """Of the processes in a file, those that are left: asked in a step, while the run goes on."""
    return wait_until_gone([int(pid) for pid in Path(pids).read_text().split()], 0)


def test_standard_output_may_go_into_a_folder() -> None:
    _, (own, there, nowhere) = run(
        lambda p: [
            p.command("a", ["echo", "hi"], stdout="logs/out.txt"),
            p.command("b", ["echo", "ho"], stdout="out.txt", cwd="."),
            p.command("c", ["echo", "ha"], stdout="nowhere/out.txt", cwd="."),
        ]
    )
    assert Path(own.result()).read_text() == "hi\n"
    assert Path("out.txt").read_text() == "ho\n"
    assert there.get_status() == Status.DONE
    assert "echo cannot be started: nowhere/out.txt: No such file or directory" in note(nowhere)


ASKS = """
from ezpyp import Pipeline

pipeline = Pipeline("cache", "asks")
pipeline.command("ask", ["sh", "-c", "read answer </dev/tty"])
pipeline.command("read", ["cat"])
pipeline.execute()
"""


def test_a_program_that_asks_at_the_terminal_does_not_wait_for_ever(python: Launcher) -> None:
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0), open(theirs, "rb", buffering=0) as terminal:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *python.command(0, ASKS)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            cwd=python.folder,
            env=python.environment(),
            timeout=60,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert re.search(r"/dev/tty.*No such device", done.stdout), done.stdout
    assert "[PASS] 'read'" in done.stdout


def test_a_timeout_ends_it_with_all_that_it_started(node: Path) -> None:
    def build(p: Pipeline) -> Any:
        step = p.command("fork", commands.fork(), timeout=1)
        return step, as_json_step(p)(lambda: alive(next(map(str, node.glob("*/pids")))))()

    _, (step, look) = run(build)
    assert "ran longer than its timeout of 1 s" in note(step)
    assert look.result() == []


def test_what_it_leaves_running_is_ended_with_it() -> None:
    def build(p: Pipeline) -> Any:
        step = p.command("fork", commands.fork(wait=False), outputs="pids")
        return as_json_step(p)(lambda done: alive(done["pids"]))(step)

    _, look = run(build)
    assert look.result() == []


def test_retries_have_folders_of_their_own(node: Path) -> None:
    run(lambda p: p.command("bad", ["sh", "-c", "touch x; exit 1"], retry=1))
    assert sorted(each.name.split(".")[-2] for each in node.iterdir()) == ["1", "2"]


# ----- what makes it run again


def runs(name: str) -> int:
    path = Path(name)
    return len(path.read_text().splitlines()) if path.exists() else 0


def counted(**options: Any) -> Callable[[Pipeline], Any]:
    counter = Path("count").absolute()
    return lambda p: p.command("sim", ["./sim", "--x", 1], env={"COUNT": str(counter)}, **options)


def test_a_rebuilt_program_runs_again_and_a_touched_one_does_not() -> None:
    program("sim", "echo >> $COUNT")
    for _ in range(2):
        run(counted())
    os.utime("sim", (1, 1))
    run(counted())
    assert runs("count") == 1
    program("sim", "echo >> $COUNT # 2")
    with pytest.raises(ezpyp.SchemaConflictError, match="sim"):
        run(counted())
    run(counted(), on_change="rerun")
    assert runs("count") == 2


@pytest.mark.parametrize("absolute", [False, True])
def test_a_program_may_be_a_path(absolute: bool) -> None:
    program("sim", "echo 1 > out")

    def build(p: Pipeline) -> Any:
        return p.command("sim", [Path("sim").absolute() if absolute else Path("sim")], outputs="out")

    run(build)
    program("sim", "echo 2 > out")
    _, step = run(build, on_change="rerun")
    assert Path(step.result()).read_text() == "2\n"


def test_an_untracked_program_may_be_rebuilt() -> None:
    program("sim", "echo >> $COUNT")
    run(counted(track=False))
    program("sim", "echo >> $COUNT # 2")
    run(counted(track=False))
    assert runs("count") == 1


@pytest.mark.parametrize("change", [{"env": {"A": 1}}, {"outputs": "x"}, {"ok_codes": (0, 1)}, {"setup": "true"}])
def test_what_else_it_is_known_by(change: dict[str, Any]) -> None:
    run(lambda p: p.command("sim", ["touch", "x"]))
    with pytest.raises(ezpyp.SchemaConflictError):
        run(lambda p: p.command("sim", ["touch", "x"], **change))


def test_inputs_count() -> None:
    Path("config").write_text("1")
    counter = Path("count").absolute()

    def build(p: Pipeline) -> Any:
        return p.command("sim", ["sh", "-c", f"echo >> {counter}"], inputs="config")

    run(build)
    run(build)
    Path("config").write_text("2")
    run(build, on_change="rerun")
    assert runs("count") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": "out*"}, "sim: outputs 'out' -> 'out*'"),
        ({"env": {"A": 1}}, "no options -> env=(('A', '1'),)"),
        ({"ok_codes": (0, 3)}, "no options -> ok_codes=(0, 3)"),
    ],
)
def test_it_is_said_which_option_changed(change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(lambda p: p.command("sim", commands.write("out"), outputs="out"))
    monkeypatch.setattr("ezpyp.run.session._folders", {})  # as in another process
    with pytest.raises(ezpyp.SchemaConflictError, match=re.escape(words)):
        run(lambda p: p.command("sim", commands.write("out"), **{"outputs": "out", **change}))


def test_a_function_with_a_folder_runs_again_for_another_output() -> None:
    def build(pattern: str) -> Callable[[Pipeline], Any]:
        def made(p: Pipeline) -> Any:
            def leave() -> None:
                (ezpyp.workdir() / "a.txt").touch()
                (ezpyp.workdir() / "b.txt").touch()

            return as_json_step(p, workdir=True, outputs=pattern)(leave)()

        return made

    run(build("a.txt"))
    with pytest.raises(ezpyp.SchemaConflictError, match=r"outputs 'a\.txt' -> '\*\.txt'"):
        run(build("*.txt"))
    run(build("*.txt"), on_change="rerun")
    assert Path("cache/files/leave/b.txt").exists() or Path("cache/files/leave/2/b.txt").exists()


def test_a_program_made_by_a_step_is_known_by_that_step() -> None:
    counter = Path("count").absolute()
    Path("source").write_text(f"#!/bin/sh\necho $1 >> {counter}")

    def build(p: Pipeline) -> Any:
        tool = p.command("compile", ["install", "-m755", File("source"), "tool"], outputs="tool")
        return [p.command("sim", [tool, x]) for x in (1, 2)]

    run(build)
    run(build)
    assert counter.read_text().split() == ["1", "2"]
    Path("source").write_text(f"#!/bin/sh\necho $1 again >> {counter}")
    run(build, on_change="rerun")
    assert counter.read_text().split() == ["1", "2", "1", "again", "2", "again"]


# ----- functions that return commands


def test_a_function_of_commands_maps_and_multiplies() -> None:
    def build(p: Pipeline) -> Any:
        @as_command_step(p, stdout="out")
        def say(x: int, y: str = "b") -> list[Any]:
            return ["echo", x, y]

        return say(7), say.map([1, 2], y="c"), say.product(x=[3, 4], y=["d", "e"])

    pipeline, (one, mapped, many) = run(build)
    found = [Path(step.result()).read_text().strip() for step in (one, *mapped, *many)]
    assert found == ["7 b", "1 c", "2 c", "3 d", "3 e", "4 d", "4 e"]
    assert many[3].label == "say[6] x=4 y=e"
    assert repr(one) == "Command Step Object 'say'"
    assert [step.name for step in pipeline.steps][:2] == ["say", "say[1]"]


def test_the_code_of_the_function_does_not_count_but_what_it_returns() -> None:
    def first(p: Pipeline) -> Any:
        @as_command_step(p)
        def sim(x: int) -> list[Any]:
            return ["true", x + 1]

        return sim(1)

    def second(p: Pipeline) -> Any:
        @as_command_step(p)
        def sim(x: int) -> list[Any]:
            wanted = x + 1
            return ["true", wanted]

        return sim(1)

    run(first)
    run(second)  # else it were refused


def test_the_very_same_command_twice_is_refused() -> None:
    pipeline = Pipeline("cache", "commands")
    pipeline.command("sim", ["true", 1])
    assert pipeline.command("sim", ["true", 2]).name == "sim[1]"
    with pytest.raises(ezpyp.RepeatedStepError):
        pipeline.command("sim", ["true", 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codec": "json"}, "no option 'codec' for commands"),
        ({"shell": "zsh"}, 'there is only "bash"'),
        ({"cwd": ".", "workdir": True}, "exclude each other"),
        ({"cwd": ".", "inputs": {"a": "b"}}, "take cwd= away"),
        ({"inputs": {"../a": "b"}}, "give names for links"),
        ({"outputs": "../a"}, "is named from there"),
        ({"progress": "step"}, "put the number"),
        ({"progress": "("}, "is no pattern"),
        ({"mpi": 2, "nodes": 3}, "at least one a node"),
        ({"mpi": 4, "nodes": 2}, "Give scratch= on a file system that they share"),
        ({"env": ["A=1"]}, "give values by name"),
        ({"env": {"A=B": 1}}, "'A=B' cannot be set"),
        ({"env": {"A": "x\0y"}}, "'A' cannot be set"),
        ({"timeout": "soon"}, "is no span of time"),
        ({"timeout": 0}, "give a time over 0"),
        ({"stdout": 3}, "give the name of a file"),
        ({"setup": 3}, "give a line for the shell"),
        ({"ok_codes": "0"}, "give exit codes"),
        ({"ok_codes": None}, "give exit codes"),
        ({"mpi": "all"}, "give a number"),
        ({"outputs": 3}, "give paths or patterns"),
        ({"outputs": {"a": 1}}, "give paths or patterns"),
        ({"progress": 3}, "give a pattern"),
        ({"colour": 1}, "no option 'colour'"),
    ],
)
def test_options_are_checked_at_the_call(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        Pipeline("cache", "commands").command("sim", ["true"], **options)


# ----- how far it is


def test_progress_is_told_while_it_runs(python: Launcher, tmp_path: Path) -> None:
    """A program that waits until its progress was seen, by another process that reads the folder."""
    done = python.run(0, PROGRESS)
    assert done.stdout.splitlines()[-1] == "3 of 10 (30 %)", done.stdout + done.stderr
    shown = Path("told").read_text()
    assert "  running: sim at 3 of 10 (30 %)\n" in shown


PROGRESS = r"""
import ezpyp, os, subprocess, sys, time
from ezpyp import Pipeline

pipeline = Pipeline("cache", "progress")
line = "echo step 1 of 10; sleep 0.1; echo step 3 of 10; until [ -e $SEEN ]; do sleep 0.01; done"
seen = {"SEEN": os.path.abspath("seen")}
step = pipeline.command("sim", line, shell="bash", progress=r"step (\d+) of (\d+)", env=seen)
pipeline.initialize_schema()
if os.fork() == 0:
    while (found := ezpyp.open("cache").status.positions.get("sim")) is None or found.done < 3:
        time.sleep(0.01)
    with open("told", "w") as file:
        subprocess.run([sys.executable, "-m", "ezpyp", "status", "cache"], stdout=file)
    with open("position", "w") as file:
        file.write(str(found))
    open("seen", "w").close()
    os._exit(0)
pipeline.execute()
assert not [name for name in os.listdir("cache/logs") if name.endswith(".progress")]
print(open("position").read())
"""
