"""What another launcher left in the environment: removed, told, and without effect on a stage."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stages.blocks import HardwareSettings
from stages.process.places import clear_leftovers, find_misplacement, find_missing_gpus, needs_launcher
from tests.waiting import wait_until

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
OTHERS = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_USE_FSDP": "true", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1"}
OWN = {"CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "2", "MY_RANK": "3", "WORLD_SIZES": "4"}


def test_what_launchers_leave_goes_and_what_users_set_stays():
    environment = TORCHRUN | {"PET_NNODES": "2"} | OTHERS | OWN
    assert clear_leftovers(environment) == sorted([*TORCHRUN, "PET_NNODES", *OTHERS])
    assert environment == OWN
    assert clear_leftovers(environment) == []


def test_a_process_of_torchruns_keeps_its_place_alone():
    environment = TORCHRUN | OTHERS | OWN
    assert clear_leftovers(environment, launched=True) == sorted(OTHERS)
    assert environment == TORCHRUN | OWN


@pytest.mark.parametrize(
    ("hardware", "launcher"), [({}, False), ({"processes": 2}, True), ({"nodes": 2}, True), ({"engine": "deepspeed"}, True)]
)
def test_several_processes_and_deepspeed_need_a_launcher(hardware, launcher):
    assert needs_launcher(HardwareSettings(**hardware)) == launcher


def test_a_launcher_that_starts_another_number_of_processes_is_told():
    hardware = HardwareSettings(nodes=2, processes=2)
    assert find_misplacement(hardware, {"WORLD_SIZE": "4"}) is None
    assert find_misplacement(hardware, {"WORLD_SIZE": "2"}).startswith(
        "WORLD_SIZE: found 2, needed hardware.processes x hardware.nodes = 4"
    )
    assert find_misplacement(hardware, {}).startswith("WORLD_SIZE: found none, ")


@pytest.mark.parametrize(
    ("hardware", "num_gpus", "told"),
    [
        (
            {"device": "cuda"},
            0,
            "hardware.device: found cuda, but torch finds 0 GPUs here, with CUDA_VISIBLE_DEVICES='' in the environment",
        ),
        ({"processes": 8}, 1, "hardware.processes: found 8, but torch finds 1 GPUs here, with CUDA_VISIBLE_DEVICES=''"),
        ({"processes": 8}, 0, None),  # on CPUs
        ({"processes": 8, "device": "cpu"}, 1, None),
        ({"processes": 2, "nodes": 4, "device": "cuda"}, 2, None),
    ],
)
def test_gpus_that_are_hidden_or_too_few_are_told(hardware, num_gpus, told):
    found = find_missing_gpus(HardwareSettings(**hardware), num_gpus, {"CUDA_VISIBLE_DEVICES": ""})
    assert found is None if told is None else found.startswith(told)


class Recorder(http.server.BaseHTTPRequestHandler):
    """A hub that remembers what was asked."""

    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    do_GET = do_POST = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.slow
def test_a_stage_by_hand_ignores_what_is_left_over_and_tells_nobody_that_it_runs(make_stage, hub):
    """Today's launchers left: without the mend it would wait for a second process for ever, in fp16."""
    stage = make_stage("sft", judge=None, epochs=1, rows=16, eval_samples=0)
    address = f"http://127.0.0.1:{hub.server_port}"
    online = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "CI")} | {"HF_ENDPOINT": address}
    # A start of its own: the warm server's Python was told to stay offline when it imported the hub's client.
    command = [sys.executable, "-P", "-m", "stages.sft", str(stage.spec_path)]
    done = subprocess.run(command, env=online | TORCHRUN | OTHERS, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    notes = [event["message"] for event in stage.events() if event["event"] == "note"]
    assert notes[:1] == [f"ignored in the environment, which another launcher left there: {', '.join(sorted(TORCHRUN | OTHERS))}"]
    assert (stage.result.world_size, stage.result.precision) == (1, "float32")
    asked = [path for path in hub.asked if "telemetry" in path]
    assert asked == [], json.dumps(hub.asked)


@pytest.mark.slow
def test_a_stage_that_waits_for_a_process_that_never_comes_ends_at_the_first_signal(make_stage):
    stage = make_stage("sft", hardware=HardwareSettings(processes=2, device="cpu", precision="float32", threads=1))
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-P", "-m", "stages.sft", str(stage.spec_path)]
    with subprocess.Popen(command, env=stage.environment() | place, stderr=subprocess.DEVNULL) as process:
        wait_until(stage.spec.checkpoint_dir.exists, 120)
        time.sleep(2)  # by now it waits, in native code
        assert process.poll() is None
        process.terminate()
        try:
            assert process.wait(timeout=20) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        finally:
            process.kill()
