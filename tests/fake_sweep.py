"""A sweep in a process of its own whose runs are `fake_main.py`'s."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import ablation, sweep

MAIN = Path(__file__).resolve().with_name("fake_main.py")
real_command = ablation.command  # before it is replaced


def command(run, workdir, seeds):
    """As `ablation.command`, of the stand-in."""
    return [sys.executable, "-I", "-S", str(MAIN), *real_command(run, workdir, seeds)[3:]]


if __name__ == "__main__":
    ablation.command = command
    sys.exit(sweep.main())
