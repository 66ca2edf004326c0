"""Identity of functions: what does not matter changes nothing, what matters does, and the change is named."""

from __future__ import annotations

import builtins
import functools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ezpyp.identity.code import Follower
from ezpyp.identity.fingerprint import (
    UserModules,
    code_digest,
    digest_value,
    explain,
    follow,
)
from ezpyp.identity.graph import Code
from ezpyp.identity.modules import source_path

#: Makes a module of the given name from source and loads it, as import would.
Write = Callable[[str, str], ModuleType]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> ModuleType:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        module = ModuleType(name)
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        return module

    return make


CONSTANTS = "K = 3\nUNUSED = 1\n"

HELPERS = '''
import dataclasses
import functools
import logging
import math
import threading

import constants
from constants import K

log = logging.getLogger("x")
lock = threading.Lock()
SCALE = {"a": [1.0, 2.0]}

def times(count):
    def around(function):
        @functools.wraps(function)
        def wrapper(*args):
            return sum(function(*args) for _ in range(count))
        return wrapper
    return around

def deep(x):
    return x * K + constants.K

def g(x, power=2):
    """Raise and add."""
    with lock:
        log.info("g")  # say so
        return deep(x) ** power

@times(2)
def decorated(x):
    return x + 1

class Base:
    offset = 1.5

    def shift(self, x):
        return x + self.offset

@dataclasses.dataclass
class Model(Base):
    lr: float = 0.1

    def loss(self, x):
        return self.shift(x) * self.lr

    @property
    def name(self):
        return "m"

    @staticmethod
    def zero():
        return 0

    @functools.lru_cache
    def kept(self):
        return 7

def adder(k):
    def add(x):
        return x + k
    return add

add_one = adder(1)

def never_used(x):
    return x - 1
'''

STUDY = """
import helpers
from helpers import Model

def train(x, lr=0.1, *, steps=5):
    rows = [helpers.g(x) for x in range(3)]
    def inner(y):
        return helpers.decorated(y) + Model(lr).loss(y) + helpers.add_one(y)
    return sum(map(inner, rows)) + helpers.SCALE["a"][0] + x**2
"""

#: (file, what is replaced, by what, what `explain` says); no text where nothing changed.
EDITS = {
    "comment": ("helpers", "# say so", "# tell it", []),
    "docstring": ("helpers", '"""Raise and add."""', '"""Other words."""', []),
    "docstring removed": ("helpers", '    """Raise and add."""\n', "", []),
    "docstring added": ("study", "    rows =", '    "Doc."\n    rows =', []),
    "reformatted": ("helpers", "return deep(x) ** power", "return (deep( x )\n            **  power)", []),
    "moved": ("helpers", "def g(x", "\n\n\n# moved\n\ndef g(x", []),
    "unused helper": ("helpers", "return x - 1", "return x - 2", []),
    "unused constant": ("constants", "UNUSED = 1", "UNUSED = 2", []),
    "another function before": ("helpers", "def deep", "def shallow(x):\n    return x\n\ndef deep", []),
    "import order": ("helpers", "import logging\nimport math\n", "import math\nimport logging\n", []),
    "pass": ("study", "    def inner(y):\n", "    def inner(y):\n        pass\n", []),
    "global constant": (
        "constants",
        "K = 3",
        "K = 4",
        ["helpers.K: 3 -> 4", "constants.K: 3 -> 4"],
    ),
    "global container": (
        "helpers",
        '"a": [1.0, 2.0]',
        '"a": [1.0, 2.5]',
        ["helpers.SCALE: {'a': [1.0, 2.0]} -> {'a': [1.0, 2.5]}"],
    ),
    "constant": ("study", "x**2", "x**3", ["study.train: constant 2 -> 3"]),
    "constant of a helper's helper": (
        "helpers",
        "return x * K",
        "return 2 + x * K",
        ["helpers.deep: code changed: return x * K + constants.K -> return 2 + x * K + constants.K"],
    ),
    "default": ("study", "lr=0.1", "lr=0.2", ["study.train: default of lr 0.1 -> 0.2"]),
    "keyword default": ("study", "steps=5", "steps=6", ["study.train: default of steps 5 -> 6"]),
    "default of a helper": ("helpers", "power=2", "power=3", ["helpers.g: default of power 2 -> 3"]),
    "closure": ("helpers", "adder(1)", "adder(2)", ["helpers.adder.<locals>.add: closure value k 1 -> 2"]),
    "decorator": (
        "helpers",
        "return sum(function",
        "return 1 + sum(function",
        [
            (
                "helpers.times.<locals>.around.<locals>.wrapper: code changed: "
                "return sum((function(*args) for _ in range(count))) -> "
                "return 1 + sum((function(*args) for _ in range(count)))"
            )
        ],
    ),
    "decorated": ("helpers", "return x + 1\n", "return x + 2\n", ["helpers.decorated: constant 1 -> 2"]),
    "decorator's option": (
        "helpers",
        "@times(2)",
        "@times(3)",
        [
            "helpers.decorated: constant 2 -> 3",
            "helpers.times.<locals>.around.<locals>.wrapper: closure value count 2 -> 3",
        ],
    ),
    "method": (
        "helpers",
        "* self.lr",
        "/ self.lr",
        ["helpers.Model.loss: code changed: return self.shift(x) * self.lr -> return self.shift(x) / self.lr"],
    ),
    "property": ("helpers", 'return "m"', 'return "n"', ["helpers.Model.name: constant 'm' -> 'n'"]),
    "static method": ("helpers", "return 0", "return 1", ["helpers.Model.zero: constant 0 -> 1"]),
    "remembering method": ("helpers", "return 7", "return 8", ["helpers.Model.kept: constant 7 -> 8"]),
    "method of a base": (
        "helpers",
        "return x + self.offset",
        "return self.offset - x",
        ["helpers.Base.shift: code changed: return x + self.offset -> return self.offset - x"],
    ),
    "class attribute": ("helpers", "offset = 1.5", "offset = 2.5", ["helpers.Base.offset: 1.5 -> 2.5"]),
    "field": ("helpers", "lr: float = 0.1", "lr: float = 0.3", ["helpers.Model.lr: 0.1 -> 0.3"]),
    "class decorator": (
        "helpers",
        "@dataclasses.dataclass\n",
        "@dataclasses.dataclass(order=True)\n",
        ["helpers.Model: code changed: @dataclasses.dataclass -> @dataclasses.dataclass(order=True)"],
    ),
    "new helper": (
        "helpers",
        "return deep(x) ** power",
        "return never_used(x) ** power",
        [
            "helpers.g: code changed: return deep(x) ** power -> return never_used(x) ** power",
            "helpers.deep is no longer used",
            "helpers.K is no longer used",
            "constants.K is no longer used",
            "helpers.never_used is used now",
        ],
    ),
}


def _write_all(write: Write, **changed: str) -> ModuleType:
    write("constants", changed.get("constants", CONSTANTS))
    write("helpers", changed.get("helpers", HELPERS))
    return write("study", changed.get("study", STUDY))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_counts_and_is_named(write: Write, edit: tuple[str, str, str, list[str]]) -> None:
    file, old, new, expected = edit
    before = follow(_write_all(write).train)
    source = {"constants": CONSTANTS, "helpers": HELPERS, "study": STUDY}[file]
    assert source.count(old) == 1
    after = follow(_write_all(write, **{file: source.replace(old, new)}).train)
    kept = json.loads(json.dumps(dict(before.parts)))
    assert sorted(explain(kept, after.parts)) == sorted(expected)
    assert (before.digest == after.digest) == (not expected)
    assert before.fallback == after.fallback == ""
    assert before.not_followed == after.not_followed == ()


def test_what_is_made_twice_is_the_same(write: Write) -> None:
    one, other = follow(_write_all(write).train), follow(_write_all(write).train)
    assert one == other


def test_a_module_in_a_folder_without_init_is_found_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "outer" / "plain" / "deeper" / "deep.py"
    deep.parent.mkdir(parents=True)
    deep.touch()
    (tmp_path / "outer" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert source_path("outer.plain.deeper.deep") == str(deep)
    assert source_path("outer.plain.deeper") is source_path("outer.plain") is source_path("outer.plain.no.deep") is None
    assert "outer" not in sys.modules


def test_moving_code_to_another_module_changes_nothing(write: Write) -> None:
    source = "def g(x):\n    return x + K\nK = 2\ndef f(x):\n    return g(x)\n"
    one = follow(write("first", source).f)
    assert follow(write("second", "import os\n\n" + source).f).digest == one.digest
    write("apart", "def g(x):\n    return x + K\nK = 2\n")
    assert follow(write("third", "from apart import g\ndef f(x):\n    return g(x)\n").f).digest == one.digest


def test_a_script_may_change_folder_and_be_moved(tmp_path: Path) -> None:
    source = "import os, ezpyp.identity.fingerprint as e\nK = 1\ndef f(): return K\nos.chdir('/')\nc = e.follow(f)\n"
    source += "print(c.digest, *c.parts, c.fallback)\n"
    said = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "script.py").write_text(source)
        done = subprocess.run(
            [sys.executable, "-P", "script.py"],
            cwd=tmp_path / place,
            env={"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert said.pop().split()[1:] == ["f", "K"]


def test_which_name_stands_for_which_function_counts(write: Write) -> None:
    source = "def g(): return 1\ndef h(): return 2\na, b = g, h\ndef f(): return a() - b()\n"
    one = follow(write("m", source).f)
    other = follow(write("m", source.replace("g, h", "h, g")).f)
    assert one.digest != other.digest
    assert explain(one.parts, other.parts) == ["m.f: a is m.h, was m.g", "m.f: b is m.g, was m.h"]


def test_who_leads_to_what_counts(write: Write) -> None:
    source = """
def u(): return 1
def v(): return 2
x = u
def p(): return x()
def f(): return p(), u(), v()
"""
    one = follow(write("m", source).f)
    other = follow(write("m", source.replace("x = u", "x = v")).f)
    assert one.digest != other.digest
    assert explain(one.parts, other.parts) == ["m.p: x is m.v, was m.u"]


def test_a_base_made_when_it_runs_is_followed(write: Write) -> None:
    source = """
def made():
    class Base:
        def g(self): return 1
    return [Base]
C = type("C", tuple(made()), {})
def f(): return C().g()
"""
    one = follow(write("m", source).f)
    other = follow(write("m", source.replace("return 1", "return 2")).f)
    assert "m.made.<locals>.Base.g: constant 1 -> 2" in explain(one.parts, other.parts)


def test_helpers_may_come_after(write: Write) -> None:
    module = write("late", "def f(x):\n    return g(x)\n")
    before = follow(module.f)
    vars(module)["g"] = write("later", "def g(x):\n    return x\n").g
    after = follow(module.f)
    assert explain(before.parts, after.parts) == ["later.g is used now"]
    assert before.digest != after.digest


def test_mutual_recursion_ends(write: Write) -> None:
    source = "def f(x):\n    return g(x - 1) if x else 0\ndef g(x):\n    return f(x - 1) if x else 1\n"
    one = follow(write("m", source).f)
    assert set(one.parts) == {"m.f", "m.g"}
    assert one.digest != follow(write("m", source).g).digest
    assert one.digest != follow(write("m", source.replace("else 1", "else 2")).f).digest


def test_two_lambdas_on_a_line_are_told_apart(write: Write) -> None:
    source = "a, b, c = (lambda x: x + 1), (lambda x: x + 2), [(lambda: lambda y: y), lambda: lambda y: -y]\n"
    module = write("m", source)
    found = [module.a, module.b, *module.c, module.c[0](), module.c[1]()]
    codes = [follow(each) for each in found]
    shown = [code.parts["m.<lambda>"]["shown"] for code in codes[:4]]
    assert shown == ["lambda x: x + 1", "lambda x: x + 2", "lambda: lambda y: y", "lambda: lambda y: -y"]
    assert len({code.digest for code in codes}) == 6
    assert not any(code.fallback for code in codes)
    moved = write("m", f"\n\n# moved\n{source}")
    assert [follow(each).digest for each in (moved.a, moved.b)] == [code.digest for code in codes[:2]]


def test_equal_lambdas_are_the_same(write: Write) -> None:
    module = write("m", "pair = (lambda x: x + 1), (lambda x: x + 1)\n")
    assert follow(module.pair[0]).digest == follow(module.pair[1]).digest


def test_names_bound_inside_are_not_read(write: Write) -> None:
    source = """
a = b = c = d = e = f_ = h = i = k = m = 1
def f(a, *b, **c):
    d = 1
    import math as e
    with open(a) as f_: pass
    for h in b: pass
    try: pass
    except OSError as i: pass
    def k(m): return m + a + (lambda h: h)(1)
    return [d for d in c], (z := 1), z, k, e, f_, h
z = 2
"""
    assert set(follow(write("m", source).f).parts) == {"m.f", "math"}


def test_names_read_anywhere_inside_are_found(write: Write) -> None:
    source = """
a, b, c, d, e, f_, g, h, i, k, l = range(11)
def f(x):
    def inner(y=a):
        return lambda: b + y
    class Local:
        z = c
        def method(self): return d
    print([e for _ in [f_] if g], f"{h:{i}}")
    global k
    k += 1
    match x:
        case {"p": int(l)}: pass
        case str(): return l
    return inner, Local
"""
    parts = follow(write("m", source).f).parts
    assert set(parts) - {"m.f"} == {f"m.{name}" for name in ("a", "b", "c", "d", "e", "f_", "g", "h", "i", "k")}


def test_a_name_declared_global_is_read_past_the_function_around(write: Write) -> None:
    source = "n = 1\ndef f():\n    n = 2\n    def g():\n        global n\n        return n\n    return g\n"
    assert "m.n" in follow(write("m", source).f).parts


def test_attributes_of_modules_are_followed_by_name(write: Write) -> None:
    write("tools", "A = 1\nB = 2\ndef used(): return A\ndef other(): return B\n")
    parts = follow(write("m", "import tools as t\ndef f():\n    return t.used()\n").f).parts
    assert set(parts) == {"m.f", "tools.used", "tools.A"}
    assert parts["m.f"]["uses"] == {"t.used": "tools.used"}


def test_a_module_used_as_a_whole_is_said_not_to_be_followed(write: Write) -> None:
    write("tools", "A = 1\n")
    code = follow(write("m", "import tools\ndef f(name):\n    return getattr(tools, name)\n").f)
    assert code.not_followed == ("tools (a module used as a whole)",)
    tools = sys.modules["tools"]
    assert follow(len, uses=[tools]).digest == follow(len, uses=[tools]).digest


def test_uses_adds_what_cannot_be_seen(write: Write) -> None:
    tools = write("tools", "def a(): return 1\nclass B:\n    x = 1\n")
    module = write("m", "def f(name):\n    return eval(name)\n")
    plain, with_a = follow(module.f), follow(module.f, uses=[tools.a])
    with_all = follow(module.f, uses=[tools, 3])
    assert len({plain.digest, with_a.digest, with_all.digest}) == 3
    assert {"tools.a", "tools.B", "tools.B.x"} <= set(with_all.parts)
    tools = write("tools", "def a(): return 2\nclass B:\n    x = 1\n")
    assert explain(with_a.parts, follow(module.f, uses=[tools.a]).parts) == ["tools.a: constant 1 -> 2"]


def test_an_import_inside_of_a_loaded_module_is_followed_by_name(write: Write) -> None:
    write("tools", "A = 1\ndef used(): return A\ndef other(): return 2\n")
    source = "def f():\n    import tools\n    from tools import A as a\n    return tools.used() + a\n"
    parts = follow(write("m", source).f).parts
    assert set(parts) == {"m.f", "tools.used", "tools.A"}


def test_an_import_inside_of_a_module_not_loaded_counts_as_a_whole(write: Write, tmp_path: Path) -> None:
    def code(lazy: str, further: str) -> Code:
        (tmp_path / "lazy_one.py").write_text(lazy)
        (tmp_path / "lazy_two.py").write_text(further)
        source = "def f():\n    import lazy_one\n    import this_is_not_there\n    return lazy_one.g()\n"
        return follow(write("m", source).f)

    one = code("import lazy_two\ndef g(): return 1\n", "K = 1\n")
    assert set(one.parts) >= {"m.f", "lazy_one", "lazy_two"}
    assert one.not_followed == ("this_is_not_there (a module that was not found)",)
    assert one.digest == code("# moved\nimport lazy_two\ndef g():\n    return 1\n", "K = 1\n").digest
    assert one.digest != code("import lazy_two\ndef g(): return 2\n", "K = 1\n").digest
    other = code("import lazy_two\ndef g(): return 1\n", "K = 2\n")
    assert explain(one.parts, other.parts) == ["lazy_two: code changed"]
    assert "lazy_one" not in sys.modules


def test_relative_imports_inside_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "relatives"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("def f():\n    from . import two\n    from .two import K\n    return two.g() + K\n")
    (package / "two.py").write_text("K = 1\ndef g(): return K\ndef other(): return 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    script = "import relatives.one, ezpyp.identity.fingerprint as f; print(*f.follow(relatives.one.f).parts)"
    loaded = "import relatives.two; " + script
    assert _python(script, tmp_path).split() == ["relatives.one.f", "relatives.two"]
    assert _python(loaded, tmp_path).split() == ["relatives.one.f", "relatives.two.K", "relatives.two.g"]


def _python(script: str, folder: Path) -> str:
    path = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


# -- values around a function


def test_values_without_identity_are_named_and_do_not_stop(write: Write) -> None:
    source = """
import sqlite3
conn = sqlite3.connect(":memory:")
TABLE = {"a": [conn]}
def make(handle):
    return lambda: handle
held = make(conn)
def f():
    return conn, TABLE, held()
"""
    code = follow(write("m", source).f)
    assert code.not_followed == (
        "m.TABLE (dict holding sqlite3.Connection)",
        "m.conn (sqlite3.Connection)",
        "m.make.<locals>.<lambda>[handle] (sqlite3.Connection)",
    )
    assert code.digest == follow(write("m", source).f).digest


def test_loggers_locks_and_typing_never_count(write: Write) -> None:
    source = """
import logging, threading, typing
log, lock, event, cond = logging.getLogger("{0}"), threading.RLock(), threading.Event(), threading.Condition()
Rows, T, missing = list[int], typing.TypeVar("T"), object()
held = {"log": log, "k": 1}
def f():
    return log, lock, event, cond, Rows, T, missing, held
"""
    one = follow(write("m", source).f)
    assert set(one.parts) == {"m.f", "m.held"}
    assert one.not_followed == ()
    assert one.digest == follow(write("m", source.replace("{0}", "other")).f).digest


def test_names_that_every_module_has_do_not_count(write: Write) -> None:
    assert set(follow(write("m", "def f(): return __name__, __file__\n").f).parts) == {"m.f"}


def test_large_arrays_count_by_content(write: Write) -> None:
    source = "import numpy as np\nA = np.zeros(100_000)\ndef f():\n    return A.sum()\n"
    module = write("m", source)
    one = follow(module.f)
    module.A[77] = 1
    other = follow(module.f)
    assert one.digest != other.digest
    assert explain(one.parts, other.parts) == ["m.A: content changed (ndarray(float64 100000))"]


def test_packages_are_recorded_and_do_not_count(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import numpy as np\nfrom pandas import DataFrame\nimport math\ndef f(): return np.sum, DataFrame, math.pi\n"
    )
    module = write("m", source)
    one = follow(module.f)
    assert one.packages == {"numpy": np.__version__, "pandas": sys.modules["pandas"].__version__}
    monkeypatch.setattr(np, "__version__", "99")
    other = follow(module.f)
    assert other.packages["numpy"] == "99"
    assert other.digest == one.digest


def test_another_library_under_the_same_name_counts(write: Write) -> None:
    one = follow(write("m", "from math import sin as g\nimport json as j\ndef f(): return g, j\n").f)
    other = follow(write("m", "from math import cos as g\nimport json as j\ndef f(): return g, j\n").f)
    third = follow(write("m", "from math import sin as g\nimport pickle as j\ndef f(): return g, j\n").f)
    assert len({one.digest, other.digest, third.digest}) == 3
    assert explain(one.parts, other.parts) == [
        "m.f: g is math.cos, was math.sin",
        "math.sin is no longer used",
        "math.cos is used now",
    ]


def test_user_modules_may_be_more_or_fewer(write: Write) -> None:
    write("tools", "def g(): return 1\n")
    module = write("m", "import tools\nimport colorsys\ndef f(): return tools.g(), colorsys.rgb_to_yiq(1, 1, 1)\n")
    assert set(follow(module.f).parts) == {"m.f", "tools.g", "colorsys"}
    fewer = follow(module.f, user_modules=UserModules(never=("tools",)))
    assert set(fewer.parts) == {"m.f", "tools", "colorsys"}
    more = follow(module.f, user_modules=UserModules(also=("colorsys",)))
    assert set(more.parts) == {"m.f", "tools.g", "colorsys.rgb_to_yiq"}


# -- other things that can be called


def test_partials_methods_and_callable_objects_count_with_what_they_hold(write: Write) -> None:
    source = """
from functools import partial
def f(x, k): return x * k
class Scale:
    def __init__(self, k): self.k = k
    def __call__(self, x): return x * self.k
    def method(self, x): return f(x, self.k)
partials = [partial(f, k=1), partial(f, k=2)]
objects = [Scale(1), Scale(2)]
methods = [each.method for each in objects]
"""
    module = write("m", source)
    found = [*module.partials, *module.objects, *module.methods]
    codes = [follow(each) for each in found]
    assert len({code.digest for code in codes}) == 6
    assert all("m.f" in code.parts for code in codes)
    again = write("m", source)
    assert [follow(each).digest for each in (*again.partials, *again.objects, *again.methods)] == [
        code.digest for code in codes
    ]
    edited = write("m", source.replace("return x * k", "return x + k"))
    assert not {follow(each).digest for each in edited.partials} & {code.digest for code in codes}


def test_builtins_count_by_name() -> None:
    codes = [follow(each) for each in (len, abs, str.upper, dict.fromkeys, np.add, np.mean, np.ndarray.sum)]
    assert len({code.digest for code in codes}) == 7
    assert [next(iter(code.parts)) for code in codes[:5]] == [
        "builtins.len",
        "builtins.abs",
        "builtins.str.upper",
        "builtins.dict.fromkeys",
        "numpy.add",
    ]


def test_what_says_that_it_wraps_leads_there(write: Write) -> None:
    source = """
KEPT = []
def around(function):
    place = len(KEPT)
    KEPT.append(function)
    def wrapper(): return KEPT[0]()
    wrapper.__wrapped__ = function
    return wrapper
@around
def g(): return 1
del KEPT[:]
def f(): return g()
"""
    one, other = (follow(write("m", source.replace("return 1", f"return {n}")).f) for n in (1, 2))
    assert explain(one.parts, other.parts) == ["m.g: constant 1 -> 2"]


def test_single_dispatch_leads_to_every_implementation(write: Write) -> None:
    source = """
import functools
@functools.singledispatch
def g(x): return x
@g.register
def g_int(x: int): return x + 1
def f(x): return g(x)
"""
    parts = follow(write("m", source).f).parts
    assert {"m.g", "m.g_int"} <= set(parts)


def test_libraries_that_wrap_lead_to_what_they_wrap(write: Write) -> None:
    source = """
import contextlib, functools
@contextlib.contextmanager
def opened(): yield K
@functools.cache
def kept(): return K
K = 1
def f():
    with opened() as k: return k + kept()
"""
    assert {"m.opened", "m.kept", "m.K"} <= set(follow(write("m", source).f).parts)


# -- ezpyp's own objects


class _Decorated:
    """Stands for what ezpyp's decorators give."""

    def __init__(self, function: Any, **options: Any) -> None:
        if function is not None:
            self.__wrapped__ = function
        self.options = options

    def step(self, **options: Any) -> Callable[[Any], _Decorated]:
        return lambda function: _Decorated(function, **options)


_Decorated.__module__ = "ezpyp.front.pipeline"


def test_ezpyp_and_its_options_do_not_count(write: Write) -> None:
    def codes(options: str) -> list[Code]:
        source = f"pipeline = Decorated(None)\n@pipeline.step({options})\ndef g(x): return x\n"
        source += "def f(x): return g(x), pipeline\n"
        builtins.Decorated = _Decorated  # type: ignore[attr-defined]
        module = write("m", source)
        return [follow(module.f), follow(module.g)]

    try:
        (f, g), (other_f, other_g) = codes(""), codes("retry=3")
    finally:
        del builtins.Decorated  # type: ignore[attr-defined]
    assert set(f.parts) == {"m.f", "m.g"}
    assert set(g.parts) == {"m.g"}
    assert (f.digest, g.digest) == (other_f.digest, other_g.digest)
    assert f.not_followed == ()


# -- where the source cannot be believed


def test_a_source_edited_meanwhile_is_not_believed(write: Write, tmp_path: Path) -> None:
    module = write("m", "def f(x):\n    return x + 1\ndef g(x):\n    return x\n")
    before = follow(module.f)
    (tmp_path / "m.py").write_text("def f(x):\n    return x + 100\ndef g(x):\n    return x\n")
    after, other = follow(module.f), follow(module.g)
    assert before.fallback == other.fallback == ""
    assert after.fallback == "m.f: its source does not compile to the code that runs"
    assert after.digest != before.digest
    assert explain(before.parts, after.parts) == ["m.f: code changed"]


def test_code_without_source_counts_by_its_bytecode() -> None:
    def made(source: str) -> Any:
        names: dict[str, Any] = {"helper": functools.partial(max, 1), "K": 2}
        exec(source, names)
        return names["f"]

    one = follow(made("def f(x): return helper(x) + K"))
    assert one.fallback == "f: no source was found"
    assert {"helper", "K"} <= set(one.parts)
    assert one.digest == follow(made("\n\ndef f(x):\n    return helper(x) + K")).digest
    assert one.digest != follow(made("def f(x): return helper(x) - K")).digest
    assert one.digest != follow(made("def f(x): return helper(x) + K + 1")).digest
    inner = [follow(made(f"def f(x): return [x + {n} for x in x]")).digest for n in (1, 2)]
    assert inner[0] != inner[1]


# -- looked at once


def test_a_follower_looks_at_each_function_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _write_all(write)
    follower = Follower()
    looked: list[str] = []
    real = Follower._function

    def look(self: Follower, value: Any) -> Any:
        looked.append(value.__qualname__)
        return real(self, value)

    monkeypatch.setattr(Follower, "_function", look)
    first = follower.follow(module.train)
    assert follower.follow(module.train) is first
    helpers = sys.modules["helpers"]
    assert follower.follow(helpers.g).digest == follow(helpers.g).digest
    assert looked.count("deep") == 2  # once by the follower, once by the new one just above
    assert looked.count("train") == 1


# -- from memory


def test_code_digest_reads_no_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(x, k=1):\n    return [x + 1 for x in x] + [lambda: 2]\n"
    one = write("m", source).f
    monkeypatch.setattr(builtins, "open", None)
    monkeypatch.setattr("linecache.getlines", None)
    assert code_digest(one) == code_digest(one)
    monkeypatch.undo()
    changes = [("x + 1", "x + 2"), ("lambda: 2", "lambda: 3"), ("k=1", "k=2"), ("k=1", "j=1")]
    others = [code_digest(write("m", source.replace(*change)).f) for change in changes]
    assert len({code_digest(one), *others}) == 5
    assert code_digest(write("m", f"\n\n{source}").f) == code_digest(one)


def test_code_digest_sees_through_partials_methods_and_objects(write: Write) -> None:
    source = """
from functools import partial
def f(x): return x
class C:
    def __init__(self, k): self.k = k
    def __call__(self): return self.k
    def m(self): return 1
"""
    module = write("m", source)
    parts = [module.f, functools.partial(module.f, 1), functools.partial(module.f, 2)]
    parts += [module.C(1), module.C(2), module.C(1).m, module.C, len, sqlite3.connect(":memory:").execute]
    digests = [code_digest(each) for each in parts]
    assert len(set(digests)) == len(parts)
    again = write("m", source)
    assert [code_digest(functools.partial(again.f, 1)), code_digest(again.C(2))] == [digests[1], digests[4]]


def test_functions_in_values_count_by_what_they_do(write: Write) -> None:
    source = "K = 1\ndef f(x): return x + K\n"
    one = digest_value({"f": write("m", source).f})
    assert one == digest_value({"f": write("m", "# moved\n" + source).f})
    assert one != digest_value({"f": write("m", source.replace("K = 1", "K = 2")).f})
