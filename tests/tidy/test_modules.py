"""House rules about modules, functions and what stands in them (CONTRIBUTING.md, "House rules")."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PACKAGES, ROOT, python_files

MODULE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
TEST_SLEEP_S_MAX = 0.3

_CODE = [*PACKAGES, "tests", "benchmarks", "examples", "scripts"]

# Written so that they do not match themselves.
_MARKER = re.compile(r"(?:#|//|--)\s*(?:TO[D]O|FIX[M]E|XX[X]|HAC[K])\b")
_MACHINE = re.compile(r"/wor[k]/|/roo[t]/|index-ur[l]|://[a-z.-]*(?:regist[r]y|py[p]i)")
# A comment that says something; a bare lint code does not.
_COMMENT = re.compile(r"#\s*(?!noqa)\w|#\s*noqa: [A-Z0-9, ]+ - \w")
_SKIP = re.compile(r"pytest\.mark\.(?:ski[p]|xfai[l])\b")


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _where(path: Path, node: ast.AST | int) -> str:
    line = node if isinstance(node, int) else getattr(node, "lineno", 0)
    return f"{path.relative_to(ROOT)}:{line}"


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _tracked_lines() -> Iterator[tuple[Path, int, str]]:
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # golden bytes and fuzz corpora
        for number, line in enumerate(text.splitlines(), 1):
            yield path, number, line


def test_modules_are_short() -> None:
    """A module holds one idea: at most 800 lines, and 400 is the aim."""
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in python_files(*_CODE)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MODULE_LINES_MAX
    ]

    assert long == []


def test_functions_are_short() -> None:
    """A function fits a screen: at most 70 lines, its docstring not counted."""
    long = []
    for path in python_files(*_CODE):
        for function in _functions(_tree(path)):
            first = function.body[0]
            docstring = 0
            if ast.get_docstring(function, clean=False) is not None:
                docstring = (first.end_lineno or first.lineno) - first.lineno + 1
            lines = (function.end_lineno or function.lineno) - function.lineno + 1 - docstring
            if lines > FUNCTION_LINES_MAX:
                long.append(f"{_where(path, function)} {function.name}: {lines}")

    assert long == []


def test_no_leftover_markers() -> None:
    """What is left to do stands in the tracker; an admitted limit is a comment that begins "Limit:"."""
    assert [_where(path, number) for path, number, line in _tracked_lines() if _MARKER.search(line)] == []


def test_no_machine_paths_or_registries() -> None:
    """Nothing that is committed depends on the machine it was written on."""
    assert [_where(path, number) for path, number, line in _tracked_lines() if _MACHINE.search(line)] == []


def test_each_package_is_typed() -> None:
    """Each package has its own py.typed: with one missing, mypy takes all of it for Any and says nothing."""
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


def test_broad_excepts_say_why() -> None:
    """A broad except has its reason on its line (``# noqa: BLE001 - why``), above it, or at the start of its body."""
    silent = []
    for path in python_files(*_CODE):
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.ExceptHandler) or not _is_broad(node.type):
                continue
            around = lines[node.lineno - 2 : node.body[0].lineno]
            if not any(_COMMENT.search(line) for line in around):
                silent.append(_where(path, node))

    assert silent == []


def _is_broad(type_: ast.expr | None) -> bool:
    names = type_.elts if isinstance(type_, ast.Tuple) else [type_]
    return any(name is None or ast.unparse(name) in {"Exception", "BaseException"} for name in names)


def test_queues_are_bounded() -> None:
    """An asyncio queue says how much it holds; what fills faster than it empties ends the process otherwise."""
    unbounded = [
        _where(path, node)
        for path in python_files(*PACKAGES)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"asyncio.Queue", "asyncio.PriorityQueue", "asyncio.LifoQueue", "queue.Queue"}
        and not node.args
        and not node.keywords
    ]

    assert unbounded == []


def test_loggers_have_public_names() -> None:
    """Log names are promises to operators: they begin with "mesh" and are not the module's own name."""
    odd = [
        _where(path, node)
        for path in python_files(*PACKAGES)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in {"get_logger", "getLogger"}
        and node.args
        and not (isinstance(node.args[0], ast.Constant) and re.match(r"mesh(\.|\Z)", str(node.args[0].value)))
        and path.name != "logs.py"  # where get_logger is made
    ]

    assert odd == []


def test_events_are_frozen_and_slotted() -> None:
    """What a module named events.py defines can be logged, compared and replayed: frozen, slotted dataclasses."""
    loose = []
    for path in python_files(*PACKAGES):
        if path.name != "events.py":
            continue
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef) and not any("Enum" in ast.unparse(base) for base in node.bases):
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                if "frozen=True" not in decorators or "slots=True" not in decorators:
                    loose.append(f"{_where(path, node)} {node.name}")

    assert loose == []


# --- tests ------------------------------------------------------------------------------------------------------


def _tests() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in python_files("tests"):
        if path.name.startswith("test_"):
            for function in _functions(_tree(path)):
                if function.name.startswith("test"):
                    yield path, function


def test_each_test_states_its_behaviour() -> None:
    """Each test has a docstring: one sentence that says what holds."""
    silent = [f"{_where(path, test)} {test.name}" for path, test in _tests() if not ast.get_docstring(test)]

    assert silent == []


def test_each_test_can_fail() -> None:
    """Each test asserts something, itself or through a helper whose name says that it checks."""
    toothless = []
    for path, test in _tests():
        body = ast.unparse(ast.Module(test.body, []))
        checks = re.search(r"\bassert|raises|warns|check|verify|expect|eventually|fail\(", body)
        if not checks:
            toothless.append(f"{_where(path, test)} {test.name}")

    assert toothless == []


def test_tests_do_not_wait_by_the_clock() -> None:
    """Tests wait for a condition (support.eventually), never for a while."""
    waits = []
    for path in python_files("tests"):
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name, first = ast.unparse(node.func), node.args[0]
            length = first.value if isinstance(first, ast.Constant) and isinstance(first.value, int | float) else 0
            # support and conftest poll with a deadline; that is what they are for.
            polls = path.name in {"support.py", "conftest.py"}
            if (name == "time.sleep" and not polls) or (name == "asyncio.sleep" and length >= TEST_SLEEP_S_MAX):
                waits.append(f"{_where(path, node)} {ast.unparse(node)}")

    assert waits == []


def test_no_test_is_switched_off() -> None:
    """A test runs, or says through support.require_* what the machine lacks; none is skipped or expected to fail."""
    assert [_where(path, number) for path, number, line in _tracked_lines() if _SKIP.search(line)] == []


#: Tested under another name than their own: source -> test, each for its reason.
_TESTED_BY = {
    # One suite for every implementation of the protocols that it declares.
    "transport/link.py": "tests/transport/test_link_contract.py",
    # A command is what its words do: each is run through the whole command line, against a node on a real socket.
    **dict.fromkeys(
        (
            f"mesh/cli/{name}.py"
            for name in ("app", "letters", "messages", "network", "options", "outcome", "output", "values")
        ),
        "tests/mesh/cli/test_commands.py",
    ),
    # Both ends of the control socket are tested against each other.
    **dict.fromkeys(
        (f"mesh/control/{name}.py" for name in ("client", "locate", "operations", "server")),
        "tests/mesh/control/test_control.py",
    ),
}


def test_each_module_has_its_tests() -> None:
    """Tests mirror the sources file by file; modules that only declare values have nothing to test."""
    untested = []
    for path in python_files("transport", "gossip", "state", "mesh"):
        source = path.relative_to(ROOT)
        if path.name in {"__init__.py", "__main__.py"} or _declares_only(_tree(path)):
            continue
        mirror = Path("tests") / source.parent / f"test_{source.name.lstrip('_')}"
        if not (ROOT / _TESTED_BY.get(source.as_posix(), mirror)).is_file():
            untested.append(f"{source} (expected {mirror})")

    assert untested == []


def _declares_only(tree: ast.Module) -> bool:
    """Whether no function of the module does anything (Protocols and dataclasses)."""
    for function in _functions(tree):
        rest = function.body[1:] if ast.get_docstring(function) is not None else function.body
        if not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in rest):
            return False
    return True
