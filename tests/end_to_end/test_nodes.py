"""Two nodes, which are two network namespaces of this machine: the artifacts of one node, and faults that end within a minute."""

import itertools
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.waiting import wait_until

LIMIT_S = 60.0  # from a fault to the end of the run
EPOCHS = "sft.epochs=6"  # 36 steps, a checkpoint every second
SHORT = ("sft.epochs=1", "rm.epochs=1", "ppo.iterations=2")  # half of the steps, by each of which two nodes could go apart
_numbers = itertools.count()


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Nodes:
    """Two namespaces that reach each other as 10.77.0.1 and 10.77.0.2, and the options that run a recipe on them."""

    def __init__(self, directory):
        self.names = [f"rlhf{os.getpid()}-{next(_numbers)}" for _ in range(2)]
        for name in self.names:
            ip("netns", "add", name)
        ends = [f"rl{os.getpid()}{index}" for index in range(2)]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for index, (name, end) in enumerate(zip(self.names, ends, strict=True)):
            ip("link", "set", end, "netns", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                ip("-n", name, "link", "set", link, "up")
        hostfile = directory / "hosts"
        hostfile.write_text("".join(f"{name} slots=1 address=10.77.0.{index + 1}\n" for index, name in enumerate(self.names)))
        values = {"nodes": 2, "hostfile": hostfile, "remote_shell": "ip netns exec {host} sh -c {command}", "engine": "deepspeed"}
        self.options = [word for key, value in values.items() for word in ("--set", f"hardware.{key}={value}")]

    def processes(self, index):
        found = subprocess.run(["ip", "netns", "pids", self.names[index]], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def remove(self):
        for name in self.names:
            for pid in self.processes(self.names.index(name)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture
def make_nodes():
    """make_nodes(directory of the hostfile): two nodes that are gone after the test."""
    made = []

    def make(directory):
        directory.mkdir(exist_ok=True)
        try:
            made.append(Nodes(directory))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not allowed here: {getattr(error, 'stderr', error)}")
        return made[-1]

    yield make
    for nodes in made:
        nodes.remove()


def content_ids(pipeline):
    return {artifact.kind: artifact.content_id for artifact in Store(pipeline.store_root).list()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_leave_the_artifacts_of_one(make_pipeline, make_nodes, tmp_path):
    short = [word for setting in SHORT for word in ("--set", setting)]
    one = make_pipeline(tmp_path / "one", "--set", "hardware.processes=2", "--set", "hardware.engine=deepspeed", *short, warm=True)
    one.run()
    two = make_pipeline(tmp_path / "two", *make_nodes(tmp_path).options, *short, warm=True, GLOO_SOCKET_IFNAME="eth0")
    two.run()
    assert content_ids(two) == content_ids(one) and len(content_ids(one)) == 4
    assert {artifact.manifest.world_size for artifact in Store(two.store_root).list()} == {2}


def find_workers(pids, part):
    """Ids of those processes whose command line holds the part."""
    found = []
    for pid in pids:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if part in words:
                found.append(pid)
    return found


def find_rank(nodes):
    """The second rank: the process that torchrun started there, and the one that runs the stage for it (see tests/warm)."""
    (started,) = [pid for pid in find_workers(nodes.processes(1), b"stages.sft") if b"torch.distributed.run" not in _words(pid)]
    return started, next(pid for pid in nodes.processes(1) if Path(f"/proc/{pid}/comm").read_text() == "stages.sft\n")


def kill_rank(nodes, _process):
    os.kill(find_rank(nodes)[0], signal.SIGKILL)


def freeze_rank(nodes, _process):
    for pid in find_rank(nodes):
        os.kill(pid, signal.SIGSTOP)


def kill_node(nodes, _process):
    for pid in nodes.processes(1):
        os.kill(pid, signal.SIGKILL)


def kill_launcher(nodes, _process):
    (launcher,) = find_workers(find_workers(nodes.processes(0), b"torch.distributed.run"), b"-P")[-1:]
    os.kill(launcher, signal.SIGKILL)


def cut_network(nodes, _process):
    ip("-n", nodes.names[1], "link", "set", "eth0", "down")


def terminate(_nodes, process):
    process.terminate()


def _words(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


# Two runs at once, each of which waits for a silence while the other one works.
FAULTS = (
    (
        (freeze_rank, 1, "rank 1 has not been heard of for 30 s"),
        (kill_rank, 1, "rank 1 was killed by SIGKILL"),
        (terminate, 143, "the same command goes on from the last checkpoint"),
    ),
    (
        (kill_node, 1, "its launcher was killed by SIGKILL, or the node is gone"),
        (kill_launcher, 1, "its launcher was killed by SIGKILL, or the node is gone"),
        (cut_network, 1, "has not been heard of for 30 s"),
    ),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_fault_ends_the_run_within_a_minute_and_the_next_run_goes_on(make_pipeline, make_nodes, tmp_path):
    """A run, hit by one fault after the other, finishes in the end; that last start of the second one imports all anew on both nodes."""

    def make(number, **start):
        options = ("--until", "sft", "--set", EPOCHS)
        return make_pipeline(tmp_path / f"run-{number}", *nodes[number].options, *options, GLOO_SOCKET_IFNAME="eth0", **start)

    nodes = [make_nodes(tmp_path / f"run-{number}") for number in range(2)]
    hit = [make(number, warm=True) for number in range(2)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(hit_by_faults, hit, nodes, FAULTS))
    hit[0].run()
    make(1).run()
    for pipeline, faults in zip(hit, FAULTS, strict=True):
        (resumed,) = pipeline.resumed_steps().values()
        assert len(resumed) == len(faults) + 1 and resumed == sorted(set(resumed))
        assert Store(pipeline.store_root).verify("sft@v1") == []


def hit_by_faults(pipeline, nodes, faults):
    """Start it, and let a fault end it once it has saved something new, for each of the faults."""
    try:
        for fault, exit_code, said in faults:
            saved, told = pipeline.saved_steps(), len(pipeline.output_path.read_text()) if pipeline.output_path.exists() else 0
            process = pipeline.start()

            def output(told=told):
                return pipeline.output_path.read_text()[told:]

            # The store names one run; a checkpoint newer than the one that it goes on from.
            wait_until(lambda saved=saved, process=process: pipeline.saved_steps() != saved or process.poll() is not None, 180, output)
            assert process.poll() is None, output()
            started_s = time.monotonic()
            fault(nodes, process)
            process.wait(timeout=LIMIT_S)
            print(f"{fault.__name__}: ended after {time.monotonic() - started_s:.1f} s: {output().splitlines()[-2:]}")
            assert process.returncode == exit_code, output()
            assert said in output() and "Traceback" not in output().split("error:")[-1], output()
            wait_until(lambda: not pipeline.processes() + nodes.processes(0) + nodes.processes(1), 5)
            ip("-n", nodes.names[1], "link", "set", "eth0", "up")
    finally:
        pipeline.kill_all()
