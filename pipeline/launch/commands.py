"""The hardware block -> the commands that start a stage: plain Python, torchrun, torchrun on every node, srun.

local   one machine: Python, or torchrun for several processes or DeepSpeed
hosts   several machines of a hostfile: torchrun on each, reached by `hardware.remote_shell`
slurm   inside an allocation: torchrun on each node, by srun
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError, SlurmError
from stages.blocks import HardwareSettings
from stages.process.places import needs_launcher
from stages.spec import StageName

_PYTHON = [sys.executable, "-P", "-m"]
_FIRST_PORT, _PORTS = 20_000, 10_000
_HOST_LINE = re.compile(r"(?P<name>[^\s=]+)(?P<fields>(\s+\w+=\S+)*)")


@dataclass(frozen=True)
class Host:
    """One line of a hostfile."""

    name: str  # as the remote shell knows it
    address: str  # as the other nodes reach it
    slots: int | None  # processes


@dataclass(frozen=True)
class Command:
    """One process to start for a stage."""

    argv: list[str]
    node: str | None = None  # a host that runs it under pipeline.launch.node, which is told what to do by a pipe; None: it runs here
    restarts: int = 0  # how often it starts the stage again by itself


def choose_launcher(hardware: HardwareSettings) -> Literal["local", "hosts", "slurm"]:
    """Say how the processes of a stage are started.

    Raises:
        ConfigError: several nodes, and no way to start processes there.
    """
    if hardware.nodes == 1:
        return "local"
    if hardware.hostfile is not None:
        return "hosts"
    if "SLURM_JOB_ID" in os.environ:
        return "slurm"
    message = f"hardware.nodes: found {hardware.nodes}, but no hardware.hostfile and no SLURM allocation; give a hostfile, use "
    raise ConfigError([message + "`rlhf run --slurm`, or start the stages by hand with `rlhf launch-command STAGE`"])


def stage_commands(stage: StageName, spec_path: Path, hardware: HardwareSettings, marker: str) -> list[Command]:
    """Build the commands that start a stage, one per process that this machine starts.

    Args:
        stage: which stage.
        spec_path: its spec, where all nodes read it.
        hardware: nodes, processes, engine.
        marker: goes into the environment of a hostfile's processes, with the node's number: each node ends its own.
    """
    launcher, restarts = choose_launcher(hardware), hardware.restarts
    program = [f"stages.{stage}", str(spec_path)]
    if launcher == "local":
        if not needs_launcher(hardware):
            return [Command([*_PYTHON, *program])]
        # Else processes would meet at this machine's own name, which in a container or behind a VPN often has no address.
        meeting = ["--standalone", "--local-addr=localhost"]
        return [Command([*_torchrun(hardware), *meeting, "-m", *program], restarts=restarts)]
    if launcher == "slurm":
        srun = ["srun", f"--nodes={hardware.nodes}", f"--ntasks={hardware.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        return [Command([*srun, *node_command(stage, spec_path, hardware, _first_of_allocation())], restarts=restarts)]
    hosts = read_hostfile(Path(str(hardware.hostfile)))
    if len(hosts) != hardware.nodes:
        raise ConfigError([f"{hardware.hostfile}: found {len(hosts)} nodes, needed hardware.nodes = {hardware.nodes}; make them agree"])
    for host in hosts:
        if host.slots not in (None, hardware.processes):
            found = f"{hardware.hostfile}: found {host.name} slots={host.slots}, needed hardware.processes = {hardware.processes}"
            raise ConfigError([f"{found}; every node starts that many processes"])
    commands: list[Command] = []
    for host in hosts:
        torchrun = node_command(stage, spec_path, hardware, hosts[0].address, _place(host, hosts))
        commands.append(Command(_remote(hardware, host, torchrun, f"{marker}-{len(commands)}"), host.name, restarts))
    return commands


def commands_by_hand(stage: StageName, spec_path: Path, hardware: HardwareSettings) -> list[tuple[str, list[str]]]:
    """Say where to type which command to start a stage without the pipeline, with HEAD for the first node's address if it is not known."""
    if hardware.nodes == 1:
        (command,) = stage_commands(stage, spec_path, hardware, marker="")
        return [("", command.argv)]
    if hardware.hostfile is None:
        return [(f"each of {hardware.nodes} nodes", node_command(stage, spec_path, hardware, "HEAD"))]
    hosts = read_hostfile(Path(hardware.hostfile))
    return [(host.name, node_command(stage, spec_path, hardware, hosts[0].address, _place(host, hosts))) for host in hosts]


def node_command(stage: StageName, spec_path: Path, hardware: HardwareSettings, first: str, place: Sequence[str] = ()) -> list[str]:
    """Build what runs on each of several nodes: torchrun, meeting at the first node's address.

    Args:
        stage: which stage.
        spec_path: its spec, where all nodes read it.
        hardware: nodes, processes, restarts.
        first: address of the first node.
        place: torchrun's options that differ from node to node.
    """
    run_id = spec_path.parent.name
    port = _FIRST_PORT + int(hashlib.sha256(run_id.encode()).hexdigest(), 16) % _PORTS  # two runs may share a node
    meeting = [f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={first}:{port}", f"--rdzv-id={run_id}"]
    return [*_torchrun(hardware), *meeting, *place, "-m", f"stages.{stage}", str(spec_path)]


def _place(host: Host, hosts: list[Host]) -> list[str]:
    # Said outright: a name does not always tell torchrun which node it is on.
    return [f"--rdzv-conf=is_host={int(host is hosts[0])}", f"--local-addr={host.address}"]


def _first_of_allocation() -> str:
    """Ask SLURM for the first node of this job."""
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    try:
        names = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SlurmError(f"{shlex.join(command)}: {error}; needed the nodes of this job; run inside of one", is_here=True) from error
    if not names:
        raise SlurmError(f"{shlex.join(command)}: found no node, needed the nodes of this job; run inside of one", is_here=True)
    return names[0]


def _torchrun(hardware: HardwareSettings) -> list[str]:
    restarts = [f"--max-restarts={hardware.restarts}"] if hardware.restarts else []
    return [*_PYTHON, "torch.distributed.run", f"--nproc-per-node={hardware.processes}", *restarts]


def _remote(hardware: HardwareSettings, host: Host, command: list[str], marker: str) -> list[str]:
    """Wrap a node's command: the remote shell gets one line for the other machine's shell."""
    agent = [*_PYTHON, "pipeline.launch.node", marker, "--", *command]
    # The agent is told of the environment down its pipe; but what Python itself needs to start must be there before.
    needed = [f"{name}={os.environ[name]}" for name in ("LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ]
    line = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(['env', *needed, *agent])}"
    filled = {"{host}": host.name, "{command}": line}
    return [filled.get(word, word.replace("{host}", host.name)) for word in shlex.split(hardware.remote_shell)]


def read_hostfile(path: Path) -> list[Host]:
    """Read lines such as `node0 slots=8 address=10.0.0.1`, as DeepSpeed and MPI have them; the address is the name by default.

    Raises:
        ConfigError: it cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"hardware.hostfile: {path}: {error}; give a file that lists the nodes"]) from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _HOST_LINE.fullmatch(text)
        fields = dict(field.split("=", 1) for field in found["fields"].split()) if found else {}
        if not found or fields.keys() - {"slots", "address"} or not re.fullmatch("[0-9]{1,4}", fields.get("slots", "1")):
            raise ConfigError([f"{path}:{number}: found {text!r:.60}, needed a line like: node0 slots=8 address=10.0.0.1"])
        slots = fields.get("slots")
        hosts.append(Host(found["name"], fields.get("address", found["name"]), int(slots) if slots else None))
    return hosts
