"""What a process may use, read from trees of groups as the kernel shows them, and from a real group where one can be made here."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.system.limits import count_allowed, count_cores, count_kills, describe_exhausted, find_memory

SECOND = "31 23 0:28 {root} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = "3{i} 31 0:3{i} {root} {at}/{names} rw - cgroup cgroup rw,{names}\n"
OTHERS = "23 1 254:1 / / rw,relatime - ext4 /dev/root rw\nshort\n9 9 - -\n"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write what the kernel says of a process: the lines of its groups, their mounts, and files below the mounts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    def make(cgroup, mounts, files):
        process, at = tmp_path / "process", tmp_path / "groups of a machine"
        process.mkdir(exist_ok=True)
        (process / "cgroup").write_text(cgroup)
        (process / "mountinfo").write_text(OTHERS + mounts.replace("AT", str(at).replace(" ", "\\040")))
        for name, text in files.items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_text(text)
        return process

    return make


def second(root="/", at="AT"):
    return SECOND.format(root=root, at=at)


def first(root="/", at="AT", names=("memory", "cpu,cpuacct")):
    return "".join(FIRST.format(i=i, root=root, at=at, names=name) for i, name in enumerate(names))


def test_the_smallest_limit_of_a_group_and_of_all_above_it_counts(make):
    files = {
        "a/cpu.max": "400000 100000\n",
        "a/b/cpu.max": "max 100000\n",
        "a/b/c/cpu.max": "3200000 400000\n",
        "a/memory.max": "max\n",
        "a/b/memory.max": "3000000\n",
        "a/b/c/memory.high": "2000000\n",
        "other/cpu.max": "100000 100000\n",
        "other/memory.max": "1\n",
    }
    process = make("0::/a/b/c\n", second(), files)
    assert (count_cores(process), find_memory(process)) == (4, 2e6)


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("290000 100000", 2), ("6500000 100000", 64)])
def test_a_part_of_a_core_is_not_counted_but_for_the_first(make, limit, cores):
    assert count_cores(make("0::/\n", second(), {"cpu.max": limit})) == cores


@pytest.mark.parametrize("limit", ["", "max", "max 100000", "100000", "100000 0", "-1 100000", "² 100000", "1e5 100000"])
def test_what_is_no_limit_limits_nothing(make, limit):
    whole = find_memory(make("", "", {}))
    process = make("0::/\n", second(), {"cpu.max": limit, "memory.max": "max" if limit else ""})
    assert (count_cores(process), find_memory(process)) == (64, whole)
    assert count_cores(process / "not there") == 64


def test_fewer_cores_by_affinity_than_by_time_are_those_that_count(make, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert count_cores(make("0::/\n", second(), {"cpu.max": "400000 100000"})) == 1


@pytest.mark.parametrize("root", ["/", "/docker/1a2b"])  # the whole tree, as on a host; the container's part of it, as in a container
def test_groups_of_version_1_are_found_by_controller(make, root):
    below = "docker/1a2b/" if root == "/" else ""
    files = {
        f"cpu,cpuacct/{below}cpu.cfs_quota_us": "250000\n",
        f"cpu,cpuacct/{below}cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/docker/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/docker/cpu.cfs_period_us": "100000\n",
        f"memory/{below}memory.limit_in_bytes": "1000000\n",
        f"memory/{below}memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n" if root == "/" else "1000000\n",
    }
    lines = "5:memory:/docker/1a2b\n4:cpu,cpuacct:/docker/1a2b\n1:name=systemd:/docker/1a2b\n0::/docker/1a2b\n"
    process = make(lines, first(root) + second(at="AT/unified"), files)
    assert (count_cores(process), find_memory(process), count_kills(process)) == (2, 1e6, 3)


@pytest.mark.parametrize("own", ["/", "/../other/scope", "/kubepods/pod1/1a2b"])
def test_a_container_that_is_told_another_name_than_it_is_shown_has_the_limits_that_it_is_shown(make, own):
    files = {"cpu.max": "200000 100000\n", "memory.max": "2000000\n", "memory.events": "low 0\noom 4\noom_kill 2\noom_group_kill 1\n"}
    process = make(f"0::{own}\n", second(root="/kubepods/pod1" if own.startswith("/kube") else "/"), files)
    assert (count_cores(process), find_memory(process), count_kills(process)) == (2, 2e6, 2)


def test_of_a_group_that_is_shown_by_its_name_no_other_group_that_is_mounted_counts(make):
    files = {
        "memory.max": "3000000\n",
        "memory.events": "oom_kill 2\n",
        "box/cpu.max": "100000 100000\n",
        "box/memory.max": "1000000\n",
        "box/memory.events": "oom_kill 9\n",
    }
    process = make("0::/user\n", second(root="/docker/box", at="AT/box") + second(), files)
    assert (count_cores(process), find_memory(process), count_kills(process)) == (64, 3e6, 2)


def test_what_was_killed_elsewhere_below_a_group_above_is_not_counted(make):
    """A limit above may be why: the kernel counts it in the group of the process that it killed."""
    files = {"user/memory.events": "oom 9\noom_kill 7\n", "user/mine/memory.events": "oom 1\noom_kill 1\n"}
    assert count_kills(make("0::/user/mine\n", second(), files)) == 1
    process = make("0::/user/mine/threads\n", second(), {"user/mine/threads/memory.events": ""})  # a threaded group has none
    assert count_kills(process) == 1


@pytest.fixture
def group():
    """A real group of version 1 with the time of one core and a half."""
    group = Path("/sys/fs/cgroup/cpu") / f"rlhf-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("150000")
    except OSError:
        pytest.skip("no group of processes can be made here")
    yield group
    group.rmdir()


def test_a_real_group_leaves_a_process_the_cores_whose_time_it_has(group):
    script = "from data.system.limits import count_cores; print(count_cores())"
    command = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
    done = subprocess.run(["sh", "-c", command, sys.executable, script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1 <= count_allowed()


def test_a_stage_in_such_a_group_gets_as_many_threads_where_nothing_else_says_how_many(group):
    script = """
from pipeline.launch.environment import stage_environment
print([stage_environment("", offline=True, alone=alone)[0].get("OMP_NUM_THREADS") for alone in (True, False)])
"""
    command = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "$1"'
    told = {}
    for given in ("", "7"):
        environment = os.environ | {"OMP_NUM_THREADS": given}
        told[given] = subprocess.run(["sh", "-c", command, sys.executable, script], env=environment, capture_output=True, text=True).stdout
    assert told == {"": "['1', None]\n" if count_allowed() > 1 else "[None, None]\n", "7": "['7', '7']\n"}


def test_threads_and_open_files_that_a_limit_refuses_are_told_with_what_to_raise():
    script = """
import resource
from data.system.limits import describe_exhausted
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError as error:
    found = error
held.clear()
print(describe_exhausted(found))
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "found as many open files as a limit allows, needed one more; raise `ulimit -n`\n"
    for error in (RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")):
        assert "needed one more; raise `ulimit -u`" in describe_exhausted(error)
    assert describe_exhausted(BlockingIOError(errno.EAGAIN, "write could not complete without blocking")) == ""
    assert describe_exhausted(ValueError("can't start new thread")) == describe_exhausted(OSError(errno.EIO, "")) == ""


def test_where_memory_for_stacks_is_limited_too_a_thread_that_cannot_start_is_told_with_that():
    script = """
import os, resource, threading
from data.system.limits import describe_exhausted
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
threading.stack_size(512_000_000)  # which has no room at once: a thread that starts and then finds no memory is waited for without end
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(describe_exhausted(error), flush=True)
os._exit(0)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "needed one more; raise `ulimit -v`, `ulimit -u`" in said
