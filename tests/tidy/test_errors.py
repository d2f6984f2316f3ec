"""The error tree is complete, drawn, and public."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re

import pytest
from support import ROOT

from transport.errors import MeshError

_LAYERS = ("transport", "gossip", "state", "mesh")


def _errors() -> list[type[MeshError]]:
    """Every class of the tree, after importing every module that may define one."""
    for layer in _LAYERS:
        package = importlib.import_module(layer)
        for module in pkgutil.walk_packages(package.__path__, f"{layer}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: list[type[MeshError]] = []
    waiting: list[type[MeshError]] = [MeshError]
    while waiting:
        error = waiting.pop()
        found.append(error)
        waiting.extend(error.__subclasses__())
    ours = {error for error in found if error.__module__.partition(".")[0] in _LAYERS}
    return sorted(ours, key=lambda error: error.__qualname__)


@pytest.mark.parametrize("module", ["transport/errors.py", "mesh/errors.py"])
def test_the_drawn_tree_names_each_class(module: str) -> None:
    """The module docstring draws the tree, and no class of the module is missing from the picture."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    drawn = set(re.findall(r"\w+", ast.get_docstring(tree) or ""))

    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in drawn] == []


def test_each_error_is_public() -> None:
    """Users can catch every error by a name from mesh.errors, whichever layer raises it."""
    public = importlib.import_module("mesh.errors")

    hidden = [
        f"{error.__module__}.{error.__qualname__}"
        for error in _errors()
        if getattr(public, error.__name__, None) is not error and not error.__name__.startswith("_")
    ]

    assert hidden == []


def test_each_error_says_what_it_means() -> None:
    """Each error has a docstring of its own."""
    assert [error.__qualname__ for error in _errors() if not error.__dict__.get("__doc__")] == []
