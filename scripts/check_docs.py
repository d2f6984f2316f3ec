"""What the documents show is true: run the blocks marked for it, and check every `mesh` command they mention.

A fenced block right after the line ``<!-- ci: run -->`` is executed in an empty directory: ``sh`` and ``console``
blocks by bash (of a console block, the lines after ``$``), ``python`` blocks by Python.  In every other ``sh`` or
``console`` block, each line that starts with ``mesh`` must name a command and options that exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120.0
_FENCE = re.compile(r"^```(\w*)\s*$")
_RUN = "<!-- ci: run -->"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it stands, its language, its text, and whether it is to be executed."""

    where: str
    language: str
    text: str
    run: bool


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file."""
    language: str | None = None
    run = False
    start = 0
    body: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if language is not None:
            if line.startswith("```"):
                yield Block(f"{path}:{start}", language, "\n".join(body) + "\n", run)
                language, run = None, False
            else:
                body.append(line)
        elif fence := _FENCE.match(line):
            language, start, body = fence.group(1), number, []
        elif line.strip() == _RUN:
            run = True
        elif line.strip():
            run = False


def commands(block: Block) -> list[str]:
    """The command lines of a shell block, prompts removed, continuation lines joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def execute(block: Block) -> str:
    """Run a block in an empty directory and return what went wrong, or nothing."""
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(commands(block))]
    with tempfile.TemporaryDirectory(prefix="peermesh-docs-") as work:
        environment = {**os.environ, "XDG_STATE_HOME": work}
        try:
            done = subprocess.run(
                command, cwd=work, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"still running after {TIMEOUT_S:g} s"
    return "" if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def unknown(line: str, helps: dict[str, str]) -> str:
    """What a shown ``mesh`` command line names that does not exist, or nothing."""
    words = shlex.split(line, comments=True)
    if not words or words[0] != "mesh" or len(words) == 1:
        return ""
    name = words[1]
    if name.startswith("-"):
        return ""
    if name not in helps:
        done = subprocess.run(["mesh", name, "--help"], capture_output=True, text=True, check=False)
        helps[name] = done.stdout if done.returncode == 0 else ""
    if not helps[name]:
        return f"no command `mesh {name}`"
    for word in words[2:]:
        option = word.split("=")[0]
        if option in {"|", ">", ">>", "&&", "&", ";"}:
            break
        if option.startswith("--") and option not in helps[name] and option != "--help":
            return f"`mesh {name}` has no option {option}"
    return ""


def main() -> int:
    """Check README.md and docs/ and return the exit status."""
    os.environ["COLUMNS"] = "200"  # help texts must not be cut in the middle of an option
    helps: dict[str, str] = {}
    executed = checked = failed = 0
    for path in [Path("README.md"), *sorted(Path("docs").rglob("*.md"))]:
        if not path.exists():
            print(f"{path}: missing")
            failed += 1
            continue
        for block in blocks(path):
            problems = []
            if block.run:
                executed += 1
                problems.append(execute(block))
            elif block.language in {"sh", "bash", "console"}:
                lines = commands(block)
                checked += len(lines)
                problems.extend(unknown(line, helps) for line in lines if line.startswith("mesh"))
            for problem in filter(None, problems):
                failed += 1
                print(f"{block.where}: {problem}")
    print(f"documents: {executed} blocks executed, {checked} command lines checked, {failed} problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
