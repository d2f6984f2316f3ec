"""What a figure was measured on, without which it means nothing."""

from __future__ import annotations

import datetime as dt
import os
import platform
import ssl
from pathlib import Path
from typing import Any

import psutil

from mesh.cli.work import installed_version


def machine() -> dict[str, Any]:
    """The machine, the versions that matter, and how busy it was with other things."""
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "peermesh": installed_version(),
        "load_before": round(os.getloadavg()[0], 2),
        # Figures of a busy machine are lower for everybody; judge the ratio then.
        "busy_before_percent": psutil.cpu_percent(interval=0.5),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
