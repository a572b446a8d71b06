"""Runs a peer's export in a process of its own, whose memory is gone when the peer is measured."""

import json
import subprocess
import sys
from pathlib import Path

from experiments import peers


def in_a_process(module: str, cell: peers.Cell, path: Path) -> None:
    """Runs `python -m module CELL PATH`.

    Raises:
        ImportError: the exporter is not installed.
        RuntimeError: the export failed; with the last line of its errors.
    """
    command = [sys.executable, "-m", module, json.dumps(cell._asdict()), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        name, _, message = reason.partition(": ")
        if name in ("ImportError", "ModuleNotFoundError"):
            raise ImportError(message)
        raise RuntimeError(f"the export failed: {reason}")
