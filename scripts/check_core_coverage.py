"""Every line and branch of every core is taken by the tests, or this says which is not.

Usage: check_core_coverage.py COVERAGE_JSON

A core is a module with the line ``# core: no I/O`` (CONTRIBUTING.md).  Shells have no such rule; their share is
printed for orientation only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MARKER = "# core: no I/O"


def main(report_path: str) -> int:
    """Print what is not covered and return the exit status."""
    files: dict[str, dict[str, Any]] = json.loads(Path(report_path).read_text(encoding="utf-8"))["files"]
    cores = [name for name in sorted(files) if MARKER in Path(name).read_text(encoding="utf-8").splitlines()]
    known = {Path(name).as_posix() for name in files}
    unseen = [
        path.as_posix()
        for package in ("transport", "gossip", "state", "mesh")
        for path in sorted(Path(package).rglob("*.py"))
        if path.as_posix() not in known and MARKER in path.read_text(encoding="utf-8").splitlines()
    ]
    failed = bool(unseen)
    for name in unseen:
        print(f"{name}: no test imports this core")
    for name in cores:
        gaps = _gaps(files[name])
        if gaps:
            failed = True
            print(f"{name}: {gaps}")
    shells = [files[name]["summary"] for name in files if name not in cores]
    lines = sum(summary["num_statements"] for summary in shells)
    covered = sum(summary["covered_lines"] for summary in shells)
    share = f"{covered / lines:.0%}" if lines else "none"
    verdict = "NOT fully covered" if failed else "100 % of lines and branches"
    print(f"coverage of {len(cores)} cores: {verdict}; lines of the other modules: {share}")
    return 1 if failed else 0


def _gaps(file: dict[str, Any]) -> str:
    parts = []
    if file["missing_lines"]:
        parts.append(f"lines {', '.join(map(str, file['missing_lines']))}")
    if file.get("missing_branches"):
        arrows = (f"{start}->{'exit' if end < 0 else end}" for start, end in file["missing_branches"])
        parts.append(f"branches {', '.join(arrows)}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
