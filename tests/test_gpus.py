"""GPUs: which there are, who gets which, and how processes are bound, with an NVML of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.schedule.placement import Place, crowded, shares
from ezpyp.system import gpus
from ezpyp.system.gpus import devices, divide, share_of
from ezpyp.system.resources import Stock, environments
from tests import nvml

FOUR = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")
List = Callable[[str], None]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def lists(library: Path, monkeypatch: pytest.MonkeyPatch) -> List:
    """Have NVML list these GPUs."""
    nvml.use(library, monkeypatch)
    monkeypatch.setattr(gpus, "_has_driver", lambda: True)
    return lambda text: monkeypatch.setenv("FAKE_NVML", text)


# ----- which there are


@pytest.mark.parametrize(
    ("variable", "tokens"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", ("0",)),
        ("2,3", ("2", "3")),
        (" 2 , 0", ("2", "0")),
        ("0,-1,2", ("0",)),
        ("GPU-8932f937,MIG-c7384736", ("GPU-8932f937", "MIG-c7384736")),
    ],
)
def test_the_variable_is_never_widened(variable: str, tokens: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)
    assert devices({"CUDA_VISIBLE_DEVICES": variable}) == tokens


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("1,0", ("GPU-b2", "GPU-a1")),
        ("GPU-b", ("GPU-b2",)),
        ("GPU-", ("GPU-",)),
        ("7", ("7",)),
        ("2", ("MIG-c1",)),
        ("MIG-c2", ("MIG-c2",)),
        ("", ()),
    ],
)
def test_numbers_and_heads_of_uuids_become_uuids(lists: List, said: str, found: tuple[str, ...]) -> None:
    lists("GPU-a1 GPU-b2 GPU-c3:MIG-c1:MIG-c2")
    assert devices({"CUDA_VISIBLE_DEVICES": said}) == found


def test_numbers_stay_where_the_gpus_are_not_alike(lists: List, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA counts the fastest first."""
    lists("GPU-a GPU-b")
    monkeypatch.setenv("FAKE_NVML_MODELS", "T4 H200")
    assert devices({"CUDA_VISIBLE_DEVICES": "0"}) == ("0",)
    assert devices({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ("GPU-a",)


def test_without_a_driver_nvml_is_not_imported() -> None:
    code = (
        "import sys; from ezpyp.system import gpus; "
        "gpus._has_driver = lambda: False; print(gpus.devices({}), gpus.devices({'CUDA_VISIBLE_DEVICES': '3'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('pynvml' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "() ('3',)\nFalse\n"


def test_nvml_lists_the_gpus_by_uuid(lists: List) -> None:
    lists("GPU-a GPU-b")
    assert devices({}) == ("GPU-a", "GPU-b")


def test_the_instances_of_a_divided_gpu_replace_it(lists: List) -> None:
    lists("GPU-a:MIG-a0:-:MIG-a2 GPU-b GPU-c:-")
    assert devices({}) == ("MIG-a0", "MIG-a2", "GPU-b")


def test_a_driver_that_does_not_answer_means_no_gpus(lists: List, monkeypatch: pytest.MonkeyPatch) -> None:
    lists("GPU-a")
    monkeypatch.setenv("FAKE_NVML_BROKEN", "1")
    assert devices({}) == ()


def test_no_library_means_no_gpus(lists: List, monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")

    def refuse() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert devices({}) == ()


@pytest.mark.parametrize(
    ("environ", "variable", "found"),
    [
        ({"ROCR_VISIBLE_DEVICES": "4,5"}, "ROCR_VISIBLE_DEVICES", ("4", "5")),
        ({"HIP_VISIBLE_DEVICES": "1"}, "HIP_VISIBLE_DEVICES", ("1",)),
        ({"ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "1"}, "HIP_VISIBLE_DEVICES", ("1",)),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, "ZE_AFFINITY_MASK", ("0.0", "0.1")),
        ({"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES", ("0",)),
        ({}, "CUDA_VISIBLE_DEVICES", ()),
    ],
)
def test_the_variable_of_the_vendor(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], variable: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)
    assert (gpus.variable(environ), devices(environ)) == (variable, found)
    with gpus.granted([("7", 1.0)], environ):
        assert environ[variable] == "7"


# ----- who gets which


@pytest.mark.parametrize(
    ("have", "places", "expected"),
    [
        (0, 3, [[], [], []]),
        (1, 1, [[0]]),
        (4, 1, [[0, 1, 2, 3]]),
        (2, 2, [[0], [1]]),
        (4, 2, [[0, 1], [2, 3]]),
        (8, 3, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (1, 3, [[0], [0], [0]]),
        (2, 4, [[0], [0], [1], [1]]),
        (3, 4, [[0], [0], [1], [2]]),
    ],
)
def test_shares(have: int, places: int, expected: list[list[int]]) -> None:
    assert [list(share_of(range(have), place, places)) for place in range(places)] == expected


@given(st.integers(1, 12), st.integers(1, 12))
def test_shares_leave_nothing_out_and_overlap_only_where_they_must(have: int, places: int) -> None:
    taken = [one for place in range(places) for one in share_of(range(have), place, places)]
    assert set(taken) == set(range(have))
    assert len(taken) == max(have, places)


@given(st.lists(st.frozensets(st.integers(0, 5)), min_size=1, max_size=6))
def test_nobody_gets_what_it_does_not_see_and_none_who_sees_some_goes_without(masks: list[frozenset[int]]) -> None:
    found, overlap = divide([sorted(mask) for mask in masks])
    assert all(set(own) <= mask and bool(own) == bool(mask) for own, mask in zip(found, masks, strict=True))
    if overlap:
        assert [set(own) for own in found] == masks
    elif len(masks) <= len(frozenset().union(*masks)) and len(set(masks)) == 1:
        assert sum(map(len, found)) == len(masks[0])


@pytest.mark.parametrize(
    ("masks", "expected", "overlap"),
    [
        (["a", "b"], ["a", "b"], False),
        (["ab", "ab"], ["a", "b"], False),
        (["abcd", "abcd"], ["ab", "cd"], False),
        (["ab", "ab", "cd", "cd"], ["a", "b", "c", "d"], False),
        (["", "ab"], ["", "ab"], False),
        (["ab", "bc"], ["ab", "bc"], True),
        (["ab", "a"], ["ab", "a"], True),
    ],
)
def test_masks(masks: list[str], expected: list[str], overlap: bool) -> None:
    assert divide(masks) == (tuple(map(tuple, expected)), overlap)


def places(*masks: str, slots: int = 1, own: bool = False) -> list[Place]:
    return [
        Place(rank=k, host="n1", slots=slots, stock=Stock(gpus=tuple(mask), own_gpus=own))
        for k, mask in enumerate(masks)
    ]


def test_a_node_has_its_own_ranks_and_the_same_numbers_may_be_other_gpus() -> None:
    other = Place(rank=2, host="n2", slots=1, stock=Stock(gpus=("a", "b")))
    assert shares([*places("ab", "ab"), other]) == {0: ("a",), 1: ("b",), 2: ("a", "b")}
    only_schedules = Place(rank=0, host="n1", slots=0, stock=Stock(gpus=("a", "b")))
    assert shares([only_schedules, *places("", "ab")[1:]]) == {1: ("a", "b")}
    assert shares(places("ab", "ab", own=True)) == {0: ("a", "b"), 1: ("a", "b")}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (places("ab", "ab"), ""),
        (places("ab", slots=2), ""),
        (places("", "", slots=4), ""),
        (places("a", "b"), ""),
        (places("ab", slots=4), "n1: 4 processes share 2 GPUs. Say gpus=1"),
        (places("a", "a", "a"), "n1: 3 processes share 1 GPU. Say"),
        (places("ab", "ab", slots=2), "n1: 4 processes share 2 GPUs"),
        (places("ab", "bc"), "n1: ranks see some GPUs in common and others not. Left as it is."),
    ],
)
def test_one_warning_for_a_node_whose_gpus_are_shared(node: list[Place], said: str) -> None:
    assert [text.startswith(said) for text in crowded(node)] == [True] * bool(said)


# ----- binding


def bound(own: tuple[str, ...], have: tuple[str, ...], helpers: int = 1, **environ: str) -> list[str | None]:
    found = environments(own, have=have, helpers=helpers, cores=1, environ=environ)
    return [each.get("CUDA_VISIBLE_DEVICES") for each in found]


def test_helpers_divide_what_their_rank_has() -> None:
    assert bound(FOUR[:2], FOUR, 2) == ["GPU-a", "GPU-b"]
    assert bound(FOUR[:2], FOUR) == ["GPU-a,GPU-b"]
    assert bound(("0", "1"), ("0", "1"), 4) == ["0", "0", "1", "1"]


def test_what_is_all_a_process_sees_is_left_as_it_is() -> None:
    assert bound(FOUR, FOUR) == [None]
    assert bound((), (), 2) == [None, None]


def test_a_helper_gets_one_instance_of_a_divided_gpu() -> None:
    assert bound(("MIG-a", "MIG-b"), ("MIG-a", "MIG-b")) == ["MIG-a"]


def test_where_steps_are_granted_gpus_the_others_see_none_and_a_node_without_is_not_touched() -> None:
    def hidden(*have: str, **environ: str) -> dict[str, str]:
        (found,) = environments(
            have, have=have, helpers=1, cores=1, hidden=True, environ={"OMP_NUM_THREADS": "1", **environ}
        )
        return found

    assert hidden("0") == {"CUDA_VISIBLE_DEVICES": ""}
    assert hidden("0", ROCR_VISIBLE_DEVICES="0") == {"ROCR_VISIBLE_DEVICES": "-1"}
    assert hidden() == hidden("0", EZPYP_GPU_BIND="none") == {}


def test_the_user_can_leave_gpus_alone() -> None:
    assert bound(FOUR[:1], FOUR, EZPYP_GPU_BIND="none", CUDA_VISIBLE_DEVICES="0,1") == [None]


# ----- a CUDA that was started too early


def test_the_files_of_a_process_tell_that_cuda_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpus._LIBRARIES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "3").symlink_to("/dev/nvidiactl")  # NVML has that one too
    assert gpus.started(tmp_path) is None
    (tmp_path / "4").symlink_to("/dev/nvidia-uvm")
    assert gpus.started(tmp_path) == ""
    monkeypatch.setitem(sys.modules, "cupy", sys)
    assert gpus.started(tmp_path) == "cupy"


def test_looking_whether_there_is_a_gpu_does_not_start_cuda() -> None:
    import ezpyp

    assert ezpyp.__version__
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


# ----- the verb


def test_the_verb_shows_the_binding_that_would_be_made(lists: List, capsys: pytest.CaptureFixture[str]) -> None:
    from ezpyp.cli.main import ezpyp_command

    def say(*args: str) -> list[str]:
        ezpyp_command.main(["gpus", *args], standalone_mode=False)
        return capsys.readouterr().out.splitlines()

    lists("GPU-a GPU-b GPU-c")
    host = os.uname().nodename
    assert say() == [*(f"{host}: GPU-{each}" for each in "abc"), "rank 0: all that it sees"]
    assert say("-n", "2")[3:] == ["rank 0: CUDA_VISIBLE_DEVICES=GPU-a,GPU-b", "rank 1: CUDA_VISIBLE_DEVICES=GPU-c"]
    assert say("-n", "2", "--helpers", "2")[3] == "rank 0 helper 0: CUDA_VISIBLE_DEVICES=GPU-a"
    assert say("-n", "4")[-1].startswith(f"{host}: 4 processes share 3 GPUs.")
    assert '"variable": "CUDA_VISIBLE_DEVICES"' in "".join(say("--output", "json"))
    lists("")
    assert say("-n", "2") == [f"{host}: no GPU that may be used"]
