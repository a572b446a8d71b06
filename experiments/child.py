"""What a process of a sweep does first: it ties its life to the sweep and takes its cores.

    python experiments/child.py PARENT CORES COMMAND…

PARENT is the sweep's process number, CORES are numbers such as 0,1, or "-" for all. Owns what must
happen between fork and exec; imports nothing that takes time.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent: int, cores: str, command: list[str]) -> None:
    """Replaces this process by `command`; on Linux the kernel kills it when `parent` ends."""
    if sys.platform.startswith("linux"):
        # Survives exec. SIGKILL: a run that went on to save would keep the next sweep waiting.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            sys.exit(1)
        if cores != "-":
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    # By which Slurm may announce to all of a job's processes that its time ends: submitit listens.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
