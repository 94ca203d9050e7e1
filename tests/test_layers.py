"""The walls of the house: who imports whom, and what nobody below the doors may call."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "broker"
MODULES = sorted(ROOT.rglob("*.py"))

# Who may import whom. Anyone may import config, errors and budget besides, and the protocols of system.
ANYONE = {"config", "errors", "budget", "system"}
LAYERS: dict[str, set[str]] = {
    "cli": {"server", "client", "admin", "session", "access", "core", "journal"},
    "server": {"admin", "session", "access", "core", "journal", "stomp"},
    "client": {"stomp"},
    "admin": {"access", "core", "journal"},
    "session": {"access", "core", "journal", "stomp"},
    "access": {"journal"},
    "core": {"journal"},
    "journal": set(),
    "stomp": set(),
    "config": set(),
    "budget": set(),
    "errors": set(),
    "system": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
OUTSIDE = {"server", "client", "cli"}  # the shell: it makes the doors, and may go through them itself
REAL_DOORS = {"SystemClock", "SystemDisk", "SystemRng"}

# Modules that reach the clock, the disk, the network or chance.
DOOR_MODULES = {
    "asyncio", "fcntl", "glob", "http.client", "http.server", "mmap", "multiprocessing", "os", "pathlib",
    "queue", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl",
    "tempfile", "threading", "time", "urllib.request", "uuid",
}  # fmt: skip
NEVER_MODULES = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "subprocess",
    "logging.config",
    "xmlrpc",
    "ctypes",
    "code",
}
NEVER_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
# Why each lies to a parser of untrusted input: reliability of numbers and lines.
NEVER_METHODS = {
    "splitlines": "splits on VT, NEL and U+2028 too; split bytes on LF",
    "isdigit": "is true of characters that int() refuses; use re.fullmatch",
    "isnumeric": "is true of characters that int() refuses; use re.fullmatch",
    "isdecimal": "is true of Arabic digits; use re.fullmatch",
    "system": "starts a shell",
    "popen": "starts a shell",
}
WALL_CLOCK = {"now", "utcnow", "today"}  # of datetime and date

# Functions whose int() never sees a text: layer/file.py:function.
INT_OF_NO_TEXT = {
    "config/settings.py:show": "a setting that was checked",
    "config/values.py:_count": "a number of TOML",
    "config/values.py:_millis": "a time that was read",
}


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def findings(layer: str, name: str, source: str) -> Iterator[str]:
    """What is wrong with one module; `name` as in INT_OF_NO_TEXT."""
    tree = ast.parse(source)
    yield from _imports(layer, name, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _call(layer, node)
    yield from _numbers(layer, name, tree)


def _imports(layer: str, name: str, tree: ast.Module) -> Iterator[str]:
    depth = name.count("/")  # how many packages the module lies in, below broker
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module(layer, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                module = node.module or ""
                yield from _module(layer, module)
                for alias in node.names:
                    if f"{module}.{alias.name}" in NEVER_MODULES | DOOR_MODULES:
                        yield from _module(layer, f"{module}.{alias.name}")
            elif node.level == depth + 1:  # from the root of the package
                names = [node.module] if node.module else [alias.name for alias in node.names]
                for target in names:
                    yield from _broker(layer, target.split(".")[0], [alias.name for alias in node.names])
            elif node.level > depth + 1:
                yield f"line {node.lineno}: imports from outside the package"


def _module(layer: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    if top == "broker":
        yield from _broker(layer, module.split(".")[1] if "." in module else "__init__", [])
    elif top not in sys.stdlib_module_names:
        yield f"imports {module}, which is not in the standard library"
    if module in NEVER_MODULES or top in NEVER_MODULES:
        yield f"imports {module}"
    if {module, top} & DOOR_MODULES and layer not in OUTSIDE | {"system"}:
        yield f"imports {module}: {layer} is handed its doors"


def _broker(layer: str, target: str, names: list[str]) -> Iterator[str]:
    if target in ("__version__", "__init__") or target == layer:
        return
    if target not in LAYERS:
        yield f"imports {target}, which is no layer"
    elif target not in LAYERS[layer] | ANYONE:
        yield f"{layer} imports {target}: arrows point down only"
    elif target == "system" and layer not in OUTSIDE:
        for name in REAL_DOORS & set(names):
            yield f"{layer} imports {name}: only the protocols of system are for it"
    elif layer in ("errors", "system", "config", "budget") and target not in ("errors", "config"):
        yield f"{layer} imports {target}: what everybody imports stands on its own"


def _call(layer: str, node: ast.Call) -> Iterator[str]:
    where = f"line {node.lineno}"
    if isinstance(node.func, ast.Name):
        if node.func.id in NEVER_CALLS:
            yield f"{where}: calls {node.func.id}()"
        if node.func.id in ("open", "input", "print") and layer not in OUTSIDE | {"system", "config"}:
            yield f"{where}: calls {node.func.id}()"
    elif isinstance(node.func, ast.Attribute):
        method = node.func.attr
        on = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if method in NEVER_METHODS:
            yield f"{where}: calls {method}(), which {NEVER_METHODS[method]}"
        if method in WALL_CLOCK and on in ("datetime", "date") and layer not in OUTSIDE:
            yield f"{where}: reads the clock by {method}()"
        if on == "re" and method in ("match", "search", "compile", "fullmatch") and node.args:
            pattern = node.args[0]
            if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str | bytes):
                text = pattern.value if isinstance(pattern.value, str) else pattern.value.decode("latin-1")
                if re.search(r"(?<!\\)\$\)*$", text):
                    yield f"{where}: `$` also matches before a final line feed; use fullmatch"
    for keyword in node.keywords:
        if keyword.arg == "shell":
            yield f"{where}: passes shell="


def _numbers(layer: str, name: str, tree: ast.Module) -> Iterator[str]:
    """int() of what may be text: only where the same function checks it by a regular expression."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if f"{name}:{function.name}" in INT_OF_NO_TEXT or "fullmatch" in ast.unparse(function):
            continue
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id="int"), args=[argument, *_]) if not _is_number(argument):
                    yield f"line {node.lineno}: int() with no fullmatch in {function.name}"


def _is_number(argument: ast.expr) -> bool:
    """Arithmetic, a comparison, an exit code, a clock: what int() does not parse."""
    if isinstance(argument, ast.BinOp | ast.Compare | ast.BoolOp | ast.UnaryOp):
        return True
    if isinstance(argument, ast.Call):
        called = ast.unparse(argument.func)
        return called in ("round", "len", "bool") or called.endswith((".monotonic", ".time", ".wall_ms"))
    text = ast.unparse(argument)
    return text.startswith("Exit.") or text.endswith((".exit_code", ".clean", ".value"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_keeps_to_its_layer_and_goes_through_the_doors(path: Path) -> None:
    found = list(findings(layer_of(path), path.relative_to(ROOT).as_posix(), path.read_text()))
    assert not found, "\n".join([f"broker/{path.relative_to(ROOT).as_posix()}:", *found])


def test_each_package_of_the_tree_is_a_known_layer() -> None:
    assert {layer_of(path) for path in MODULES} <= set(LAYERS)


def test_layers_have_no_circle() -> None:
    def reach(layer: str) -> set[str]:
        found = set(LAYERS[layer])
        for below in LAYERS[layer]:
            found |= reach(below)
        return found

    for layer in LAYERS:
        assert layer not in reach(layer)


def test_no_module_is_called_utils() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "util", "helpers", "misc", "common")]


BAD = {
    "core up to session": ("core", "core/a.py", "from ..session import Session"),
    "core to stomp": ("core", "core/a.py", "from ..stomp.frames import Frame"),
    "core to stomp, absolute": ("core", "core/a.py", "import broker.stomp"),
    "client to core": ("client", "client/a.py", "from ..core import Broker"),
    "cli to stomp": ("cli", "cli/a.py", "from ..stomp import Parser"),
    "session to server": ("session", "session/a.py", "from .. import server"),
    "errors to core": ("errors", "errors.py", "from .core import Broker"),
    "real disk below the shell": ("journal", "journal/a.py", "from ..system import Disk, SystemDisk"),
    "no such layer": ("core", "core/a.py", "from ..helpers import x"),
    "third party": ("server", "server/a.py", "import requests"),
    "clock": ("core", "core/a.py", "import time"),
    "disk": ("journal", "journal/a.py", "from os import fsync"),
    "chance": ("session", "session/a.py", "import random"),
    "network": ("session", "session/a.py", "import asyncio"),
    "wall clock by datetime": ("core", "core/a.py", "from datetime import datetime\ndatetime.now()"),
    "open": ("journal", "journal/a.py", "open('x')"),
    "pickle": ("server", "server/a.py", "import pickle"),
    "logging.config": ("server", "server/a.py", "from logging import config"),
    "processes": ("server", "server/a.py", "import subprocess"),
    "eval": ("cli", "cli/a.py", "eval('1')"),
    "shell": ("cli", "cli/a.py", "run('x', shell=True)"),
    "splitlines": ("stomp", "stomp/a.py", "'a'.splitlines()"),
    "isdigit": ("stomp", "stomp/a.py", "'a'.isdigit()"),
    "dollar": ("stomp", "stomp/a.py", "import re\nre.match(rb'^[0-9]+$', x)"),
    "bare int": ("stomp", "stomp/a.py", "def f(value):\n    return int(value)"),
    "bare int of a slice": ("session", "session/a.py", "def f(value):\n    return int(value[2:])"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_banned_is_found(case: str) -> None:
    assert list(findings(*BAD[case]))


GOOD = {
    "down": ("session", "session/a.py", "from ..core.queue import Queue\nfrom ..stomp import Frame"),
    "protocols": ("journal", "journal/a.py", "from ..system import Clock, Disk"),
    "own layer": ("core", "core/a.py", "from .queue import Queue\nfrom . import topics"),
    "standard library": ("core", "core/a.py", "import struct\nfrom collections import deque"),
    "int behind a check": (
        "stomp",
        "stomp/a.py",
        "def f(v):\n    if NUMBER.fullmatch(v) is None:\n        raise ValueError\n    return int(v)",
    ),
    "int of arithmetic": ("core", "core/a.py", "def f(v):\n    return int(v * 1000)"),
    "a dollar sign": ("stomp", "stomp/a.py", r"import re" + "\n" + r"re.compile(r'\$')"),
    "shell": ("server", "server/a.py", "import asyncio, os, time\nfrom ..system import SystemDisk"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_allowed_is_not_found(case: str) -> None:
    assert not list(findings(*GOOD[case]))
