"""Behaviours as transcripts: commands in, effects out (after etcd/raft's and CockroachDB's data-driven tests).

A transcript is a text file of steps with blank lines between them::

    # why the next step is there
    command word word
    ----
    what it printed

A test calls :func:`check_transcript` with a function that carries out one command and returns what to print.
``python tests/datadriven_runner.py --rewrite [pytest arguments]`` runs the tests and writes what they print into the
transcripts instead of comparing it; the reviewer then reads the diff.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent / "datadriven"
_REWRITE = "PEERMESH_REWRITE_TRANSCRIPTS"
_NOTHING = "ok"


@dataclass
class Step:
    """One command with the comment above it and what it should print."""

    comment: list[str]
    command: str
    expected: list[str]


def transcripts(name: str) -> list[Path]:
    """The files of one core, for ``pytest.mark.parametrize``."""
    return sorted((_ROOT / name).glob("*.txt"))


def transcript_id(path: Path) -> str:
    """A test id: the file's name without the suffix."""
    return path.stem


def parse(text: str) -> list[Step]:
    """Read a transcript.

    Raises:
        ValueError: A step is not comments, one command, ``----`` and output.
    """
    steps = []
    for block in text.strip().split("\n\n"):
        lines = block.strip("\n").split("\n")
        comment = [line for line in lines if line.startswith("#")]
        rest = lines[len(comment) :]
        if lines[: len(comment)] != comment or (rest and (len(rest) < 2 or rest[1] != "----")):
            raise ValueError(f"not a step: {block!r}")
        steps.append(Step(comment, rest[0] if rest else "", rest[2:]))
    return steps


def write(steps: list[Step]) -> str:
    """The text of a transcript."""
    blocks = []
    for step in steps:
        body = [step.command, "----", *step.expected] if step.command else []
        blocks.append("\n".join([*step.comment, *body]))
    return "\n\n".join(blocks) + "\n"


def check_transcript(path: Path, execute: Callable[[str], list[str]]) -> None:
    """Carry out each command and compare, or rewrite the file when that was asked for."""
    steps = parse(path.read_text(encoding="utf-8"))
    wrong = []
    for step in steps:
        if step.command:
            printed = execute(step.command) or [_NOTHING]
            if printed != step.expected:
                wrong.append("\n".join([step.command, "---- expected", *step.expected, "---- printed", *printed]))
            step.expected = printed
    if os.environ.get(_REWRITE):
        path.write_text(write(steps), encoding="utf-8")
    else:
        assert not wrong, f"{path.name} (rewrite with tests/datadriven_runner.py --rewrite):\n" + "\n\n".join(wrong)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--rewrite" in arguments:
        arguments.remove("--rewrite")
        os.environ[_REWRITE] = "1"
    sys.exit(pytest.main(["-p", "no:randomly", "-q", *(arguments or ["-k", "transcript"])]))
