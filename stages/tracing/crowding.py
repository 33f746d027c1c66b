"""What other programs do on this machine while a plan measures it: what is measured takes longer by that."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_COUNTS = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal; idle and iowait are none


@dataclass(frozen=True)
class Load:
    """What was computed up to a moment.

    Args:
        clock_s: The moment.
        busy_s: Of all cores, whoever kept them busy.
        own_s: Of this process and those that it started and that have ended.
        cores: Of the machine; 0 where its kernel does not tell.
    """

    clock_s: float
    busy_s: float
    own_s: float
    cores: int


def read_load(stat: Path = Path("/proc/stat")) -> Load:
    """Read what was computed up to now."""
    busy_s, cores = 0.0, 0
    try:
        first, *rows = stat.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        pass
    else:
        fields = first.split()[1:]
        busy_s = sum(int(fields[place]) for place in _COUNTS if place < len(fields)) / os.sysconf("SC_CLK_TCK")
        cores = sum(row.startswith("cpu") for row in rows)
    return Load(time.perf_counter(), busy_s, sum(os.times()[:4]), cores)


def count_crowded(before: Load, after: Load, wanted: int) -> float:
    """Say for how many of the cores that were wanted there was no room beside what others computed, on average.

    Args:
        before: What had been computed when it began.
        after: When it ended.
        wanted: Cores that were wanted.
    """
    if not after.cores:
        return 0.0
    others = (after.busy_s - before.busy_s - after.own_s + before.own_s) / max(after.clock_s - before.clock_s, 1e-9)
    return max(others + wanted - after.cores, 0.0)
