"""What a user installs: exactly our packages, typed, with the command."""

from __future__ import annotations

import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator

import pytest
from support import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the checkout without touching it or the network."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_exactly_our_packages(wheel: zipfile.ZipFile) -> None:
    """Nothing else of the checkout (tests, docs, benchmarks) becomes importable on a user's machine."""
    names = {entry.partition("/")[0] for entry in wheel.namelist()}

    assert sorted(name for name in names if not name.endswith(".dist-info")) == sorted(PACKAGES)


def test_each_package_of_the_wheel_is_typed(wheel: zipfile.ZipFile) -> None:
    """A user's type checker sees the types of each package."""
    assert [package for package in PACKAGES if f"{package}/py.typed" not in wheel.namelist()] == []


def test_the_wheel_holds_every_module_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    """No module is forgotten, and none is there that is not in the checkout."""
    checkout = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "__pycache__" not in path.parts
    }

    assert {entry for entry in wheel.namelist() if entry.endswith(".py")} == checkout


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    """Installing it puts `mesh` on the path."""
    assert "mesh = mesh.cli:main" in _metadata(wheel, "entry_points.txt").splitlines()


def test_the_metadata_is_what_pyproject_says(wheel: zipfile.ZipFile) -> None:
    """Name, version, Python range, licence texts and each run-time dependency arrive."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = email.message_from_string(_metadata(wheel, "METADATA"))
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]

    assert metadata["Name"] == project["name"]
    assert metadata["Version"] == project["version"]
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert sorted(metadata.get_all("License-File", [])) == ["LICENSE", "NOTICE"]
    assert len(required) == len(project["dependencies"])
