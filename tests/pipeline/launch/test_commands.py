"""The hardware block becomes commands: on one machine, on the nodes of a hostfile, in a SLURM allocation."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.launch.commands import Host, commands_by_hand, read_hostfile, stage_commands
from stages.blocks import HardwareSettings

SPEC = Path("/store/runs/ppo-1234/spec.json")
TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run"]


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two nodes\nnode0 slots=4 address=10.0.0.1\n\nnode1 slots=4  # the second\n")
    return path


def argv(hardware):
    (command,) = stage_commands("ppo", SPEC, hardware, "marker")
    assert command.node is None
    return command.argv


def test_one_process_is_plain_python_and_more_are_torchrun():
    assert argv(HardwareSettings()) == [sys.executable, "-P", "-m", "stages.ppo", str(SPEC)]
    local = ["--standalone", "--local-addr=localhost"]  # this machine's own name may have no address
    assert argv(HardwareSettings(processes=2)) == [*TORCHRUN, "--nproc-per-node=2", *local, "-m", "stages.ppo", str(SPEC)]
    assert argv(HardwareSettings(engine="deepspeed"))[4] == "--nproc-per-node=1"
    assert "--max-restarts=3" in argv(HardwareSettings(processes=2, restarts=3))


def test_a_hostfile_is_read_as_deepspeed_and_mpi_write_it(hostfile):
    assert read_hostfile(hostfile) == [Host("node0", "10.0.0.1", 4), Host("node1", "node1", 4)]


@pytest.mark.parametrize("line", ["node0 slots=many", "node0 slots 4", "node0 gpus=4", "=3"])
def test_a_line_that_is_no_node_is_told_with_its_place(tmp_path, line):
    (tmp_path / "hosts").write_text(f"node0\n{line}\n")
    with pytest.raises(ConfigError, match=r"hosts:2: found .*, needed a line like: node0 slots=8 address=10.0.0.1"):
        read_hostfile(tmp_path / "hosts")


def test_every_node_is_reached_by_the_remote_shell_and_told_who_it_is(hostfile, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hardware = HardwareSettings(nodes=2, processes=4, hostfile=str(hostfile))
    first, second = stage_commands("ppo", SPEC, hardware, "marker")
    assert (first.node, second.node) == ("node0", "node1")
    assert second.argv[:3] == ["ssh", "-o", "BatchMode=yes"] and second.argv[-2] == "node1"
    line = shlex.split(second.argv[-1])
    assert line[:5] == ["cd", str(Path.cwd()), "&&", "exec", "env"] and line[line.index("pipeline.launch.node") + 1] == "marker-1"
    assert "hf_secret" not in str(second.argv)  # a command line is for everybody to see, and in the log
    torchrun = line[line.index("--") + 1 :]
    assert torchrun[:4] == TORCHRUN and torchrun[-3:] == ["-m", "stages.ppo", str(SPEC)]
    assert {"--nproc-per-node=4", "--nnodes=2", "--rdzv-conf=is_host=0", "--local-addr=node1"} <= set(torchrun)
    meeting = [word for word in torchrun if word.startswith("--rdzv-endpoint=10.0.0.1:")]
    assert meeting and all(word in shlex.split(first.argv[-1]) for word in meeting)
    assert "--rdzv-conf=is_host=1" in first.argv[-1]


def test_a_path_with_a_quote_reaches_the_other_nodes_shell_as_it_is(hostfile):
    hardware = HardwareSettings(nodes=2, processes=4, hostfile=str(hostfile), remote_shell="sh -c {command}")
    command = stage_commands("ppo", Path("/store/it's $(touch x)/spec.json"), hardware, "marker")[0]
    assert shlex.split(command.argv[-1])[-1] == "/store/it's $(touch x)/spec.json"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 3}, "found 2 nodes, needed hardware.nodes = 3"),
        ({"nodes": 2, "processes": 8}, "node0 slots=4, needed hardware.processes = 8"),
    ],
)
def test_a_hostfile_that_contradicts_the_recipe_is_refused(hostfile, changes, said):
    with pytest.raises(ConfigError, match=said):
        stage_commands("ppo", SPEC, HardwareSettings(hostfile=str(hostfile), **{"processes": 4} | changes), "marker")


def test_several_nodes_without_a_way_to_them_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=r"hardware.nodes: found 2, .* give a hostfile, use `rlhf run --slurm`, .* `rlhf launch-command"):
        stage_commands("ppo", SPEC, HardwareSettings(nodes=2), "marker")


def test_in_an_allocation_srun_starts_torchrun_on_every_node(monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho gpu7\necho gpu8\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[7-8]")
    command = argv(HardwareSettings(nodes=2, processes=8))
    assert command[:5] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert command[5:9] == TORCHRUN and any(word.startswith("--rdzv-endpoint=gpu7:") for word in command)


def test_by_hand_each_node_has_its_own_line(hostfile):
    hardware = HardwareSettings(nodes=2, processes=4, hostfile=str(hostfile))
    places = commands_by_hand("ppo", SPEC, hardware)
    assert [where for where, _ in places] == ["node0", "node1"]
    assert all(command[:4] == TORCHRUN for _, command in places)
    ((where, command),) = commands_by_hand("ppo", SPEC, HardwareSettings(nodes=2))
    assert where == "each of 2 nodes" and any("=HEAD:" in word for word in command)
