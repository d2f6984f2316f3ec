"""What makes a core a core (CONTRIBUTING.md, "Cores and shells"); import-linter checks what it imports."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

from support import PACKAGES, ROOT, module_name, python_files

MARKER = "# core: no I/O"

_ESSAY_LINES_MIN = 3

_SET_MAKERS = {"set", "frozenset"}
_ORDERED_USES = {"list", "tuple", "enumerate", "iter", "next", "zip", "map", "filter", "dict", "deque", "reversed"}
_SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}


@functools.cache
def _cores() -> tuple[Path, ...]:
    return tuple(
        path
        for path in python_files("transport", "gossip", "state", "mesh")
        if MARKER in path.read_text(encoding="utf-8").splitlines()
    )


def test_the_contract_names_exactly_the_marked_modules() -> None:
    """import-linter's contract lists each module that calls itself a core, and no other."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    listed = next(contract["source_modules"] for contract in contracts if contract["name"] == "cores do no I/O")

    assert sorted(listed) == sorted(module_name(path) for path in _cores())


def test_cores_open_with_an_essay() -> None:
    """A core begins with its docstring, then the marker; below mesh the docstring tells the protocol's story."""
    short = []
    for path in _cores():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        docstring = ast.get_docstring(tree) or ""
        first = tree.body[1] if len(tree.body) > 1 else tree.body[0]
        lines_min = 1 if module_name(path).startswith("mesh.") else _ESSAY_LINES_MIN
        if len(docstring.splitlines()) < lines_min or MARKER not in text.splitlines()[: first.lineno]:
            short.append(str(path.relative_to(ROOT)))

    assert short == []


def test_cores_import_modules_not_package_roots() -> None:
    """A package root may drag in a shell, and with it an event loop."""
    roots = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _cores()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in PACKAGES
    ]

    assert roots == []


def test_cores_do_not_wait() -> None:
    """A core is synchronous: no async function but a protocol's declaration, no await."""
    waits = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in _cores()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith)
        or (isinstance(node, ast.AsyncFunctionDef) and not _declares(node))
    ]

    assert waits == []


def _declares(function: ast.AsyncFunctionDef) -> bool:
    """Whether the body is a docstring and ``...`` only."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)


def test_cores_never_depend_on_the_order_of_a_set() -> None:
    """Sets of strings iterate differently in each process, so a seed would not repeat a run."""
    found = [
        f"{path.relative_to(ROOT)}:{place.lineno} {ast.unparse(place)}"
        for path in _cores()
        for place in _set_iterations(ast.parse(path.read_text(encoding="utf-8")))
    ]

    assert found == []


def test_the_set_check_sees_what_it_must() -> None:
    """The check above finds each planted iteration and lets sorted and membership uses pass."""
    planted = """
class A:
    def __init__(self):
        self.peers: set[str] = set()
        self.names = {"a", "b"}
    def f(self, given: frozenset[str]):
        for a in self.peers: pass
        [b for b in self.names]
        c = list({1, 2})
        d = tuple(given)
        for e in {x for x in "ab"}: pass
        g = self.peers.pop()
        for h in self.peers | self.names: pass
        fine = sorted(self.peers), "a" in self.names, len(given), {i for i in self.peers}
        for i in sorted(self.names): pass
"""

    assert [place.lineno for place in _set_iterations(ast.parse(planted))] == [7, 8, 9, 10, 11, 12, 13]


def _set_iterations(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions of set type whose order is used, by simple inference over names in the module."""
    names = _set_names(tree)
    found: list[ast.expr] = []
    order_free: set[int] = set()  # the walk sees a call before its arguments
    for node in ast.walk(tree):
        candidates: list[ast.expr] = []
        if isinstance(node, ast.For):
            candidates.append(node.iter)
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp):
            if id(node) not in order_free:
                candidates.extend(generator.iter for generator in node.generators)
        elif isinstance(node, ast.Starred):
            candidates.append(node.value)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in {"sorted", "set", "frozenset", "any", "all", "sum", "min", "max", "len"}:
                order_free.update(map(id, node.args))
            elif name in _ORDERED_USES | {"join", "extend"}:
                candidates.extend(node.args)
            elif name == "pop" and not node.args and isinstance(node.func, ast.Attribute):
                candidates.append(node.func.value)
        found.extend(candidate for candidate in candidates if _is_set(candidate, names))
    yield from sorted(found, key=lambda place: (place.lineno, place.col_offset))


def _set_names(tree: ast.Module) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and _is_set_annotation(node.annotation):
            names.add(_last_name(node.target))
        elif isinstance(node, ast.arg) and node.annotation is not None and _is_set_annotation(node.annotation):
            names.add(node.arg)
        elif isinstance(node, ast.Assign) and _is_set(node.value, frozenset()):
            names.update(_last_name(target) for target in node.targets)
    return frozenset(names - {""})


def _last_name(target: ast.expr) -> str:
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else ""


def _is_set_annotation(annotation: ast.expr) -> bool:
    text = ast.unparse(annotation).strip("'\"")
    return text.partition("[")[0].rpartition(".")[2] in {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}


def _is_set(node: ast.expr, names: frozenset[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        return name in _SET_MAKERS | _SET_METHODS
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return _is_set(node.left, names) or _is_set(node.right, names)
    return isinstance(node, ast.Name | ast.Attribute) and _last_name(node) in names
