"""A vLLM server: started for as long as a stage needs it, or found where one runs.

It lives in an environment of its own, since its pins are not ours.
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx2

from data.secrets import redact
from data.system.death import die_with_parent
from stages.blocks import AWAKE_SHARE, LoRASettings
from stages.models.adapters import is_unmerged_adapter
from stages.models.weights import find_weights
from stages.process.context import StageContext, uses_gpu
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.process.ranks import Ranks
from stages.responses.vllm_client import VLLMEngine
from stages.rules import find_missing_server
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings
from stages.spec import EXIT_RESOURCE, EXIT_USAGE

_START_S = 3600.0  # a large model is read, and its kernels are compiled
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
_LOG_FILE, _WEIGHTS_DIR = "vllm.log", "rollout"
_MEMORY_DIR = Path("/dev/shm")
_KEY = "VLLM_API_KEY"
# What torchrun tells its workers, and what is of our environment: nothing that the server should go by.
_ALLOCATOR = "PYTORCH_ALLOC_CONF"  # as our processes have it (pipeline.launch.environment); a server that sleeps refuses it
_OURS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_", "PYTHONPATH", _ALLOCATOR)


@contextmanager
def open_vllm(context: StageContext, ranks: Ranks, settings: PPOSettings | SampleSettings, max_tokens: int) -> Generator[VLLMEngine]:
    """Start a server, or find the one that is named, for as long as this is entered; all ranks must enter it.

    Args:
        context: of the stage.
        ranks: share the prompts.
        settings: of the stage.
        max_tokens: of the longest prompt and response together.

    Raises:
        StageError: the program is not there, it ended, or nobody answers.
    """
    weights_dirs = list_weights_dirs(context.spec.events_path.parent, settings.rollout.server)
    with ExitStack() as stack:

        def start() -> tuple[str, str]:
            for weights_dir in weights_dirs:
                shutil.rmtree(weights_dir, ignore_errors=True)  # of an attempt that was killed
                weights_dir.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, weights_dir, ignore_errors=True)
            key = os.environ.get(_KEY) or secrets.token_hex(16)
            return settings.rollout.server or _start(context, settings, max_tokens, key, stack), key

        address, key = decide_in_main(context, start)
        engine = VLLMEngine(context, ranks, address, key, weights_dirs, sleeps=shares_gpu(context, settings))
        stack.callback(engine.close)
        if not _find_lora(settings):
            engine.load_from_files()
        engine.sleep(keep_weights=bool(_find_lora(settings)))
        yield engine


def list_weights_dirs(run_dir: Path, server: str | None) -> list[Path]:
    """List where weights may be handed over: in memory first, where the server is one of this machine; else beside the run."""
    beside = run_dir / _WEIGHTS_DIR
    if server is not None or not os.access(_MEMORY_DIR, os.W_OK):
        return [beside]
    name = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]  # the same for another attempt, which clears it
    return [_MEMORY_DIR / f"rlhf-{name}", beside]


def shares_gpu(context: StageContext, settings: PPOSettings | SampleSettings) -> bool:
    """Whether the server sleeps while the stage trains: unless the recipe says so, where both compute on the same GPU."""
    if isinstance(settings, SampleSettings):
        return False  # which holds policies on the CPU alone
    rollout = settings.rollout
    if rollout.sleep is not None:
        return rollout.sleep
    has_its_own = any(word.startswith("CUDA_VISIBLE_DEVICES=") for word in rollout.command)
    return rollout.server is None and not has_its_own and uses_gpu(context)


def make_command(context: StageContext, settings: PPOSettings | SampleSettings, max_tokens: int, host: str, port: int) -> list[str]:
    """Say how a server is started for this run."""
    base, hardware, lora = find_weights(_find_base(context)), context.spec.hardware, _find_lora(settings)
    command = [*settings.rollout.command, "serve", base, "--host", host, "--port", str(port), "--dtype", hardware.precision]
    command += ["--max-model-len", str(max_tokens), "--seed", str(context.spec.seed)]
    # Log-probabilities of the distribution that is sampled from, and nothing of the model's own generation config.
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--uvicorn-log-level", "warning"]
    command += ["--no-enable-prefix-caching"]  # every prompt comes once
    if lora:
        rank = next((rank for rank in _LORA_RANKS if rank >= lora.rank), lora.rank)
        command += ["--enable-lora", "--max-lora-rank", str(rank)]
    else:
        # Weights come before the first prompt. Untied: a head that is tied to the embeddings is not reloaded on a CPU.
        command += ["--load-format", "dummy", "--hf-overrides", json.dumps({"tie_word_embeddings": False})]
    if shares_gpu(context, settings):
        command += ["--enable-sleep-mode", "--gpu-memory-utilization", str(AWAKE_SHARE)]
    return command + settings.rollout.options  # of an option that stands twice the last one counts


def _start(context: StageContext, settings: PPOSettings | SampleSettings, max_tokens: int, key: str, stack: ExitStack) -> str:
    """Start a server, wait until it answers and return its address; the stack ends it."""
    base, stage = _find_base(context), context.spec.stage
    if missing := find_missing_server(stage, settings.rollout):
        raise StageError(missing, EXIT_USAGE)
    if is_unmerged_adapter(Path(base)):
        made_by = "sft.lora.merge: true" if stage == "ppo" else "lora.merge: true for the stage that made it"
        raise StageError(f"{stage}.rollout.engine = vllm serves {base}, an adapter; a whole model is needed; set {made_by}", EXIT_USAGE)
    several = context.spec.hardware.nodes > 1
    # torch's store listens at that name, but it may be another one's in /etc/hosts: so on all addresses.
    name, host = (os.environ["MASTER_ADDR"], "0.0.0.0") if several else ("127.0.0.1", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    command = make_command(context, settings, max_tokens, host, port)
    lora = _find_lora(settings)
    switch = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if lora else {}
    if not lora or shares_gpu(context, settings):
        switch |= {"VLLM_SERVER_DEV_MODE": "1"}
    log = context.spec.events_path.parent / _LOG_FILE
    context.note(f"starting vLLM: {' '.join(f'{key}={value}' for key, value in switch.items())} {shlex.join(command)}; its log: {log}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | switch | {_KEY: key}
    with log.open("wb") as stream:
        # A session of its own: a Ctrl-C is for the stage, which still needs the server to finish its step. SIGTERM if the stage is killed:
        # it then ends its engine, which nothing else would.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    stack.callback(_redact_log, log)
    stack.callback(_stop, process)
    address = f"http://{name}:{port}"
    _wait_for(address, process, log, stage)
    return address


def _find_base(context: StageContext) -> str:
    """Find whose architecture is served: the SFT model's; of answers to rank, whose policies are alike, the first one's."""
    models = context.spec.models
    return models["sft"] if "sft" in models else next(iter(models.values()))


def _find_lora(settings: PPOSettings | SampleSettings) -> LoRASettings | None:
    """Find the adapter that the server is given; None: it is given all weights, those of adapters merged."""
    return settings.lora if isinstance(settings, PPOSettings) else None


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path, stage: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise StageError(
                f"vLLM ended with exit code {process.returncode} before it answered: {_find_cause(log):.500}; see {log}; mend it, perhaps "
                f"by {stage}.rollout.options, or set {stage}.rollout.engine: torch",
                EXIT_RESOURCE,
            )
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{address}/health", timeout=5.0, trust_env=False).is_success:
                return
        time.sleep(0.5)
    raise StageError(f"vLLM did not answer at {address} within {_START_S:.0f} s; see {log}", EXIT_RESOURCE)


def _find_cause(log: Path) -> str:
    """Find the first error in a server's log: those after it are of processes that miss the one that failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    causes = (re.search(r"\w+Error: .*", line) for line in lines if " WARNING " not in line)
    return next((cause[0] for cause in causes if cause), lines[-1] if lines else "it said nothing")


def _redact_log(log: Path) -> None:
    """Blot secrets out of the log, once it is whole: by a pipe, the server could not outlive a killed stage to end its engine."""
    with suppress(OSError):
        log.write_text(redact(log.read_text(encoding="utf-8", errors="surrogateescape")), encoding="utf-8", errors="surrogateescape")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20.0)
    with suppress(ProcessLookupError):  # its engine may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
