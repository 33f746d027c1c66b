"""How many cores and how much memory this process may use: fewer than the machine has, in a container or a job.

/proc/self/cgroup     which groups this process is in: one of version 2, or one for each controller of version 1
/proc/self/mountinfo  where the kernel shows them, from which group on
<group>/cpu.max ...   a limit; those of all groups above hold too

Affinity (taskset, cpusets, SLURM) is what Python 3.13 counts. The time that a group may compute (`docker --cpus`, Kubernetes' limits,
systemd's CPUQuota) no library that we have reads: threads on all cores of a machine then stand still together until the next period.
"""

import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


def count_cores(process: Path = PROCESS) -> int:
    """Count the cores that this process may use, a core's two threads as two.

    Of a share of a core the whole ones count, one at least: what computes in step waits for the thread that is held.

    Args:
        process: Where the kernel says which groups are its own, and where they are.
    """
    return max(min([count_allowed(), *(int(limit) for limit in _list_core_limits(process))]), 1)


def count_allowed() -> int:
    """Count the cores on which this process may run at all, whatever its share of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_memory(process: Path = PROCESS) -> float:
    """Bytes of this machine's memory, or those that a container, SLURM or systemd lets this process have.

    Args:
        process: As in `count_cores`.
    """
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits = (_read_number(group / name) for group in _list_groups(process, "memory") for name in _MEMORY)
    return min([whole, *(limit for limit in limits if limit is not None)])


def count_kills(process: Path = PROCESS) -> int:
    """Count the processes that the kernel has killed in this process's group, or below it, since memory ran out there or above.

    A group above counts those of others too: of all users of a machine, and of version 1 none of groups below.

    Args:
        process: As in `count_cores`.
    """
    files = (group / name for group in _list_groups(process, "memory") for name in ("memory.events", "memory.oom_control"))
    own: str = next((text for path in files if (text := _read(path))), "")
    return sum(map(int, re.findall(r"^oom_kill ([0-9]+)$", own, flags=re.MULTILINE)))


def describe_exhausted(error: BaseException) -> str:
    """Say which limit stands in the way of more threads, processes or open files; empty where none does."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EAGAIN and "without blocking" in str(error):  # of a pipe that nobody reads
        return ""
    is_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    if number == errno.EAGAIN or is_thread:
        where = "`ulimit -u`, or that of the container (docker --pids-limit, Kubernetes' podPidsLimit)"
        if is_thread and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:  # Python tells the two not apart
            return f"found a limit of threads or of memory, a stack for each, needed one more; raise `ulimit -v`, {where}"
        return f"found as many threads and processes as a limit allows, needed one more; raise {where}"
    if number in (errno.EMFILE, errno.ENFILE):
        return "found as many open files as a limit allows, needed one more; raise `ulimit -n`"
    return ""


# Above `high` nothing is killed, but every process of the group is held until what it has is written to a disk.
_MEMORY = ("memory.max", "memory.high", "memory.limit_in_bytes")


def _list_core_limits(process: Path) -> Iterator[float]:
    for group in _list_groups(process, "cpu"):
        quota, _, period = _read(group / "cpu.max").strip().partition(" ")
        pairs = [(quota, period), (_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())]
        yield from (int(quota) / int(period) for quota, period in pairs if _is_number(quota) and _is_number(period) and int(period))


def _list_groups(process: Path, controller: str) -> list[Path]:
    """List the directories of this process's groups that may limit what a controller shares out, each before those above it."""
    mounted = list(_list_mounts(process))
    found: list[Path] = []
    for line in _read(process / "cgroup").splitlines():
        _, names, own = [*line.split(":", 2), "", ""][:3]
        group, shown, others = PurePosixPath(own), list[Path](), list[Path]()
        for root, at, is_second, options in mounted:
            if is_second != (not names) or (names and not (controller in names.split(",") and controller in options)):
                continue
            if ".." not in group.parts and group.is_relative_to(root):
                inner = at / group.relative_to(root)
                shown += [inner, *(above for above in inner.parents if above == at or at in above.parents)]
            else:
                others.append(at)
        # In a container the kernel often shows its own group alone, as the root, while this process is told the whole name.
        # Where one is shown by that name, another root is another's group, as of a container whose tree is mounted here.
        found += shown or others
    return found


def _list_mounts(process: Path) -> Iterator[tuple[str, Path, bool, list[str]]]:
    """List (group that is shown as the root, where, whether of version 2, options) of the trees of groups."""
    for line in _read(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), [*after.split(" ", 2), "", ""][:3]
        if len(fields) > 4 and kind in ("cgroup", "cgroup2"):
            root, at = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
            yield root, Path(at), kind == "cgroup2", options.split(",")


def _read_number(path: Path) -> float | None:
    text = _read(path).strip()
    return float(text) if _is_number(text) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
