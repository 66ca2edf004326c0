"""Settings of sites, users and projects: who is heard first, and what is not understood."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.cluster import configuration
from ezpyp.cluster.configuration import KEYS, settle
from ezpyp.errors import ConfigurationError


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Variables that name a user's and a site's file, which are not there yet."""
    return {"XDG_CONFIG_HOME": str(tmp_path / "home"), "EZPYP_SITE": str(tmp_path / "site.toml")}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_more_particular_is_heard_first(tmp_path: Path, home: dict[str, str]) -> None:
    """Six say which partition: each is heard when those before it are silent."""
    project = tmp_path / "project"
    layers = [
        (tmp_path / "site.toml", 'partition = "site"\nprofile = "p"\n[profiles.p]\n', "site"),
        (tmp_path / "site.toml", 'profile = "p"\n[profiles.p]\npartition = "site p"', "site p"),
        (tmp_path / "home/ezpyp.toml", 'partition = "user"', "user"),
        (project / "ezpyp.toml", 'partition = "project"', "project"),
        (project / "ezpyp.toml", 'partition = "project"\n[profiles.p]\npartition = "project p"', "project p"),
    ]
    for path, text, said in layers:
        write(path, text)
        assert settle({}, start=str(project), environ=home)["partition"].value == said
    loud = {**home, "EZPYP_PARTITION": "variable"}
    assert settle({"partition": None}, start=str(project), environ=loud)["partition"].value == "variable"
    found = settle({"partition": "flag"}, start=str(project), environ=loud)["partition"]
    assert (found.value, found.where) == ("flag", "--partition")


def test_the_project_is_above_the_script(tmp_path: Path, home: dict[str, str]) -> None:
    write(
        tmp_path / "pyproject.toml",
        '[project]\nname = "x"\n[tool.ezpyp]\nnodes = 3\n[tool.ezpyp.profiles.big]\nnodes = 9',
    )
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert settle({}, start=str(deep), environ=home)["nodes"].value == 3
    assert settle({}, start=str(deep), profile="big", environ=home)["nodes"].value == 9
    write(tmp_path / "a" / "pyproject.toml", '[project]\nname = "no settings of ours"')
    assert settle({}, start=str(deep), environ=home)["nodes"].value == 3
    write(tmp_path / "a" / "ezpyp.toml", "nodes = 4")
    assert settle({}, start=str(deep), environ=home)["nodes"].value == 4


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "ezpyp.toml",
            'account = "a"\nparttion = "x"',
            r"ezpyp.toml:2: parttion is not known. Did you mean partition\?",
        ),
        ("ezpyp.toml", "[profiles.gpu]\nnodes = 2\ngpu-per-node = 4", r":3: gpu-per-node .* mean gpus_per_node\?"),
        ("ezpyp.toml", "\n\nxyzzy = 1", r":3: xyzzy is not known. There are: account, partition"),
        ("ezpyp.toml", 'nodes = "two"', r":1: nodes = 'two' is not a number, 1 or more"),
        ("ezpyp.toml", "nodes = true", r":1: nodes = True is not a number"),
        ("ezpyp.toml", "nodes = 0", r":1: nodes = 0 is not a number"),
        ("ezpyp.toml", 'setup = "module load x"', r":1: setup = 'module load x' is not a list of texts"),
        ("ezpyp.toml", "time = 3", r":1: time = 3 is not a text"),
        ("ezpyp.toml", "nodes = = 2", r"ezpyp.toml:1: this is not TOML"),
        ("ezpyp.toml", "profiles = 3", r":1: write \[profiles.NAME\]"),
        ("pyproject.toml", "[tool.other]\nnode = 1\n[tool.ezpyp]\nnode = 2", r"pyproject.toml:4: node .* mean nodes\?"),
        ("ezpyp.toml", 'profile = "cpo"\n[profiles.cpu]', r":1: there is no profile 'cpo'. Did you mean cpu\?"),
        ("ezpyp.toml", 'profile = "cpu"', r"nor any other. Write \[profiles.cpu\] into ezpyp.toml"),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(
    tmp_path: Path, home: dict[str, str], name: str, text: str, says: str
) -> None:
    write(tmp_path / name, text)
    with pytest.raises(ConfigurationError, match=says):
        settle({}, start=str(tmp_path), environ=home)


def test_variables_and_flags_are_checked_too(tmp_path: Path, home: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="EZPYP_NODES=two: give a number, 1 or more"):
        settle({}, start=str(tmp_path), environ={**home, "EZPYP_NODES": "two"})
    with pytest.raises(ConfigurationError, match="--profile x: there is no profile 'x'"):
        settle({}, start=str(tmp_path), profile="x", environ=home)


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1)


@given(words, words, words)
def test_what_init_writes_is_read_back(account: str, module: str, folder: str) -> None:
    environ = {"SBATCH_ACCOUNT": account, "LOADEDMODULES": module.replace(":", ""), "VIRTUAL_ENV": folder}
    found = tomllib.loads(configuration.initial(environ))
    assert found.keys() <= KEYS.keys()
    assert found["account"] == account
    assert found["setup"][-1] == f"source {folder}/bin/activate"


def test_init_without_anything_loaded_says_nothing(tmp_path: Path, home: dict[str, str]) -> None:
    path = write(tmp_path / "ezpyp.toml", configuration.initial({}))
    assert configuration.read(str(path)).values == {"": {}}
