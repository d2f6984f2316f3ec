"""Importing: each module alone, nothing heavy by accident, and no stranger of the same name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import PACKAGES, ROOT, module_name, python_files

_IMPORT_EACH_ALONE = """
import importlib, json, sys
modules, packages = json.load(sys.stdin)
failed = {}
for name in modules:
    # Our modules only: importing the libraries again for each would take a minute.
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] in packages]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException as error:  # whatever it is, the test reports it
        failed[name] = repr(error)
print(json.dumps(failed))
"""


def _python(*arguments: str, given: str = "", path: Path | None = None) -> subprocess.CompletedProcess[str]:
    prelude = [] if path is None else ["-c", f"import sys; sys.path.insert(0, {str(path)!r}); {arguments[1]}"]
    return subprocess.run(
        [sys.executable, "-W", "error", *(prelude or arguments)],
        input=given,
        capture_output=True,
        text=True,
        cwd=path or ROOT,
        check=False,
    )


def test_each_module_imports_alone() -> None:
    """No module works only because another one was imported before it."""
    modules = [module_name(path) for path in python_files(*PACKAGES) if path.name != "__main__.py"]

    done = _python("-c", _IMPORT_EACH_ALONE, given=json.dumps([modules, PACKAGES]))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_importing_mesh_stays_light() -> None:
    """A node does not pay for the command line or for what only some nodes use."""
    done = _python("-c", "import mesh, sys; print(*sorted(sys.modules))")

    assert done.returncode == 0, done.stderr
    heavy = {"typer", "rich", "click", "matplotlib", "numpy", "nats", "chaos", "mesh.cli"}
    assert heavy & set(done.stdout.split()) == set()


#: What no node may load, however it is started: 15 MiB of 60 that it does not need (docs/rfd/0003).
NOT_IN_A_NODE = {"pydantic", "pydantic_core", "pydantic_settings", "structlog", "rich", "matplotlib", "numpy"}


def test_a_node_in_a_program_stays_light() -> None:
    """Importing what runs a node brings neither the command line nor a framework."""
    done = _python("-c", "import mesh.manager, sys; print(*sorted(sys.modules))")

    assert done.returncode == 0, done.stderr
    assert (NOT_IN_A_NODE | {"typer", "click", "mesh.cli"}) & set(done.stdout.split()) == set()


def test_a_node_on_the_command_line_stays_light(tmp_path: Path) -> None:
    """`mesh up` reads its options with typer, and that is all that the command line leaves in the node."""
    command = [sys.executable, "-X", "importtime", "-m", "mesh", "up", "--json", "--no-mdns"]
    command += ["--listen", "127.0.0.1:0", "--node-id", "n1", "--data-dir", str(tmp_path / "tree")]
    with (
        (tmp_path / "imports").open("w+", encoding="utf-8") as imports,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=imports, text=True, cwd=ROOT) as node,
    ):
        assert node.stdout is not None
        ready = node.stdout.readline()
        node.terminate()
        node.communicate(timeout=20)
        imports.seek(0)
        loaded = {line.rpartition("|")[2].strip() for line in imports if line.startswith("import time:")}

    assert json.loads(ready)["event"] == "ready"
    assert "mesh.manager" in loaded
    assert NOT_IN_A_NODE & loaded == set()


@pytest.mark.parametrize("neighbour", ["transport", "gossip"])
def test_a_strangers_package_is_named(neighbour: str, tmp_path: Path) -> None:
    """If another distribution owns one of our package names, importing mesh says so in one sentence."""
    (tmp_path / neighbour).mkdir()
    (tmp_path / neighbour / "__init__.py").write_text("VERSION = '9.9'\n", encoding="utf-8")

    done = _python("-c", "import mesh", path=tmp_path)

    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "peermesh" in last
    assert str(tmp_path / neighbour) in last
