"""Run each program in examples/ in a directory of its own; all must exit 0 within a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT_S = 60.0


def main() -> int:
    """Run them one after the other and return the exit status."""
    failed = 0
    examples = sorted(Path("examples").glob("*.py"))
    for example in examples:
        with tempfile.TemporaryDirectory(prefix="peermesh-example-") as work:
            started = time.monotonic()
            environment = {**os.environ, "XDG_STATE_HOME": work, "PYTHONWARNINGS": "error::ResourceWarning"}
            try:
                done = subprocess.run(
                    [sys.executable, str(example.resolve())],
                    cwd=work,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_S,
                    check=False,
                )
                status, output = done.returncode, done.stdout + done.stderr
            except subprocess.TimeoutExpired as error:
                status, output = -1, f"still running after {TIMEOUT_S:g} s\n{error.stdout!r}"
            print(f"{example}: exit {status}, {time.monotonic() - started:.1f} s")
            if status != 0:
                failed += 1
                print(output)
    print(f"examples: {len(examples) - failed} of {len(examples)} passed")
    return 1 if failed or not examples else 0


if __name__ == "__main__":
    sys.exit(main())
