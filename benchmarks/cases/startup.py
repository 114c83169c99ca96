"""What an import costs, each time in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.case import OURS, Candidate, Case

ROOT = Path(__file__).parents[2]


def imports(
    device: str,
    ours: str = "lorun",
    parts: Sequence[str] = ("lorun_kernels", "torch"),
    packages: Sequence[str] = (),
) -> Case:
    """Import `ours`, against `parts` that it imports itself and against peers from PyPI."""
    codes = {OURS: f"import {ours}", "python alone": "pass"}
    codes |= {f"import {name}": f"import {name}" for name in parts}
    codes |= {f"import {name}": _import_of_peer(name) for name in packages}
    case = Case(f"against {', '.join([*parts, *packages])}")
    for name, code in codes.items():
        case.candidates[name] = Candidate(
            lambda i, code=code: run(code),
            ours=name in (OURS, "import lorun_kernels"),
            unlike="an import has no result",
        )
    return case


def run(code: str) -> None:
    """Run code in a fresh process.

    Raises:
        ImportError: if it fails, with the last line of its message.
    """
    # -P: the source folder must not hide what is installed.
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImportError((done.stderr.strip() or "no message").splitlines()[-1])


def _import_of_peer(name: str) -> str:
    find = f"import sys; sys.path.append({str(ROOT)!r})"
    return f"{find}; from benchmarks.peers.packages import package; package({name!r})"
