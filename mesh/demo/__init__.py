"""``mesh demo``: real processes on this machine that find each other, talk, lose one of them and leave."""

from __future__ import annotations

import json
import sys

from .conductor import run_demo
from .report import DemoOptions, DemoReport, DemoStep

__all__ = ["DemoOptions", "DemoReport", "DemoStep", "run", "run_demo"]


def run(*, nodes: int, as_json: bool, keep: bool = False) -> int:
    """Run the demo for the command line.

    Progress goes to stdout for people, and to stderr when stdout carries the JSON document.

    Returns:
        The exit code: 0, or 1 if anything was lost, came twice, went unnoticed or was left behind.
    """
    out = sys.stdout
    stream = sys.stderr if as_json else out

    def progress(step: DemoStep) -> None:
        print(f"{step.at_s:6.2f} s  {'' if step.ok else 'FAILED: '}{step.text}", file=stream, flush=True)

    report = run_demo(DemoOptions(nodes=nodes, keep=keep), progress)
    if as_json:
        print(json.dumps(report.document()), file=out, flush=True)
    else:
        from mesh.cli.output import print_table  # loads rich, which only people's output needs

        print(file=out)
        print_table(("WHAT", "SEEN"), report.rows(), empty="")
        for problem in report.problems:
            print(f"FAILED: {problem}", file=out)
    return 0 if report.ok else 1
