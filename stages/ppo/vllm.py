"""Rollouts by a vLLM server: the policy's weights go to it as files, prompts and responses as token ids over HTTP.

    LoRA            the adapter, each time under a new name; the one before is forgotten
    all weights     reloaded in place, by the server's development endpoints

The server lives in an environment of its own, since its pins are not ours, and computes by kernels of its own: what it says of the tokens
it samples is compared with what the trainer says, and weighed (`stages.ppo.losses.compute_importance_weights`).
"""

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
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from stages.generation import Response
from stages.models.adapters import is_adapter, is_unmerged_adapter
from stages.models.weights import find_weights
from stages.ppo.learner import Learner
from stages.ppo.rollout import Sampling
from stages.process.context import StageContext
from stages.process.death import die_with_parent
from stages.process.distributed import decide_in_main
from stages.process.errors import Interrupted, StageError
from stages.process.seeds import derive_seed
from stages.settings import PPOSettings
from stages.spec import EXIT_RESOURCE, EXIT_USAGE

_START_S = 3600.0  # a large model is read, and its kernels are compiled
_ANSWER_S = 3600.0
_MAX_REQUESTS = 256  # of a rank at once; the server queues what it cannot run
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
_LOG_FILE, _WEIGHTS_DIR = "vllm.log", "rollout"
_KEY = "VLLM_API_KEY"
# What torchrun tells its workers, and what is of our environment: nothing that the server should go by.
_OURS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_", "PYTHONPATH")


class VLLMEngine:
    """A running server, as `stages.ppo.rollout.RolloutEngine`."""

    def __init__(self, context: StageContext, accelerator: Accelerator, address: str, key: str, directory: Path) -> None:
        """Connect to it.

        Args:
            context: of the stage.
            accelerator: the ranks.
            address: `http://host:port`.
            key: shown to a server that asks for one.
            directory: where weights are handed over; the server must see it.

        Raises:
            StageError: nobody answers there.
        """
        self.directory = directory.resolve()
        self._context = context
        self._accelerator = accelerator
        self._client = httpx2.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(_ANSWER_S, connect=30.0),
            limits=httpx2.Limits(max_connections=_MAX_REQUESTS, max_keepalive_connections=_MAX_REQUESTS),
            trust_env=False,  # a proxy is for what lies outside
        )
        served = self._call("GET", "/v1/models").json()["data"]
        self._base_name: str = next(model["id"] for model in served if model.get("parent") is None)
        # A server that outlives the run may know the names of an earlier attempt.
        self._run: str = broadcast_object_list([uuid.uuid4().hex[:8]])[0]
        self._num_loads = 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answer(
        self, actor: Learner, prompts: list[list[int]], sampling: Sampling, *, seed: int, greedy: bool, share: tuple[int, int]
    ) -> list[Response]:
        name = self._load_policy(actor)
        asked: dict[str, Any] = {
            "model": name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if greedy else sampling.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": sorted({sampling.stop_token_id, sampling.eos_token_id}),
            "ignore_eos": True,  # the two above, whatever the model's configuration says
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        place, stride = share

        def ask(index: int) -> Response:
            # A request and a seed for each prompt: in one request, all prompts would get the same noise.
            request = {**asked, "prompt": prompts[index], "seed": derive_seed(seed, place + index * stride)}
            (choice,) = self._call("POST", "/v1/completions", json=request).json()["choices"]
            return Response(choice["token_ids"], choice["logprobs"]["token_logprobs"])

        with ThreadPoolExecutor(min(len(prompts), _MAX_REQUESTS)) as pool:
            return list(pool.map(ask, range(len(prompts))))

    def use_loader(self, name: str) -> None:
        """Have weights read by another loader from now on."""
        overrides = {"load_config": {"load_format": name}}
        if self._accelerator.is_main_process:
            self._call("POST", "/collective_rpc", json={"method": "update_config", "kwargs": {"overrides": overrides}})

    def _load_policy(self, actor: Learner) -> str:
        """Give the server the policy's weights; returns the name that it knows them by."""
        policy: Any = actor.module.policy
        adapter, name = is_adapter(policy), self._name(self._num_loads)
        with actor.whole_weights(frozen=not adapter):
            if self._accelerator.is_main_process:
                path = self.directory / name
                if adapter:
                    policy.save_pretrained(path)
                    self._call("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
                else:
                    _save_weights(policy, path)
                    self._call("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
                    self._forget_prefixes()
                shutil.rmtree(path)
        self._accelerator.wait_for_everyone()  # nobody asks before it is there
        if adapter and self._num_loads > 0 and self._accelerator.is_main_process:
            self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": self._name(self._num_loads - 1)})
        self._num_loads += 1
        return name if adapter else self._base_name

    def _name(self, number: int) -> str:
        return f"policy-{self._run}-{number}"

    def _forget_prefixes(self) -> None:
        """Have the keys and values of the old weights thrown away."""
        answer = self._call("POST", "/reset_prefix_cache", params={"reset_running_requests": True})
        if not answer.json()["success"]:
            raise StageError(
                f"vLLM at {self._client.base_url} keeps its prefix cache while others use it; a server of this run alone is needed; "
                "start it with --no-enable-prefix-caching",
                EXIT_RESOURCE,
            )

    def _call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx2.HTTPError as error:
            if self._context.stop_requested:  # SLURM signals every process of a job, the server too
                raise Interrupted from error
            raise StageError(
                f"vLLM at {self._client.base_url}: {path}: {error or type(error).__name__}; a server that answers is needed; see its log, "
                "and run the same command to go on from the last checkpoint",
                EXIT_RESOURCE,
            ) from error
        if not response.is_success:
            needed = "a request that it accepts is needed; see its log"
            if response.status_code == httpx2.codes.NOT_FOUND:
                needed = (
                    "a vLLM that takes new weights is needed; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True (with ppo.lora) or "
                    "VLLM_SERVER_DEV_MODE=1 (without), or give no ppo.rollout.server"
                )
            raise StageError(
                f"vLLM at {self._client.base_url}: {path}: {response.status_code} {response.text:.500}; {needed}", EXIT_RESOURCE
            )
        return response


@contextmanager
def open_vllm(context: StageContext, settings: PPOSettings, accelerator: Accelerator, max_tokens: int) -> Generator[VLLMEngine]:
    """Start a server, or find the one that is named, for as long as this is entered; all ranks must enter it.

    Args:
        context: of the stage.
        settings: of the stage.
        accelerator: the ranks.
        max_tokens: of the longest prompt and response together.

    Raises:
        StageError: the program is not there, it ended, or nobody answers.
    """
    weights_dir = context.spec.events_path.parent / _WEIGHTS_DIR
    with ExitStack() as stack:

        def start() -> tuple[str, str]:
            shutil.rmtree(weights_dir, ignore_errors=True)  # of an attempt that was killed
            weights_dir.mkdir()
            stack.callback(shutil.rmtree, weights_dir, ignore_errors=True)
            key = os.environ.get(_KEY) or secrets.token_hex(16)
            return settings.rollout.server or _start(context, settings, max_tokens, key, stack), key

        address, key = decide_in_main(context, start)
        engine = VLLMEngine(context, accelerator, address, key, weights_dir)
        stack.callback(engine.close)
        if not settings.lora:  # a loader of random weights, with which our own server starts, cannot load again
            engine.use_loader("auto")
        yield engine


def make_command(context: StageContext, settings: PPOSettings, max_tokens: int, host: str, port: int) -> list[str]:
    """Say how a server is started for this run."""
    sft, hardware = find_weights(context.spec.models["sft"]), context.spec.hardware
    command = [*settings.rollout.command, "serve", sft, "--host", host, "--port", str(port), "--dtype", hardware.precision]
    command += ["--max-model-len", str(max_tokens), "--seed", str(context.spec.seed)]
    # Log-probabilities of the distribution that is sampled from, and nothing of the model's own generation config.
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--uvicorn-log-level", "warning"]
    command += ["--no-enable-prefix-caching"]  # every prompt comes once
    if settings.lora:
        rank = next((rank for rank in _LORA_RANKS if rank >= settings.lora.rank), settings.lora.rank)
        command += ["--enable-lora", "--max-lora-rank", str(rank)]
    else:
        # Weights come before the first prompt. Untied: a head that is tied to the embeddings is not reloaded on a CPU.
        command += ["--load-format", "dummy", "--hf-overrides", json.dumps({"tie_word_embeddings": False})]
    return command + settings.rollout.options


def _start(context: StageContext, settings: PPOSettings, max_tokens: int, key: str, stack: ExitStack) -> str:
    """Start a server, wait until it answers and return its address; the stack ends it."""
    program, sft = settings.rollout.command[0], context.spec.models["sft"]
    if shutil.which(program) is None:
        raise StageError(
            f"ppo.rollout.command: {program} is not a program on {socket.gethostname()}; vLLM in an environment of its own is needed; "
            "install it (the README says how) and give the path of its `vllm`, or set ppo.rollout.engine: torch",
            EXIT_USAGE,
        )
    if is_unmerged_adapter(Path(sft)):
        raise StageError(
            f"ppo.rollout.engine = vllm serves {sft}, an adapter; a whole model is needed; set sft.lora.merge: true", EXIT_USAGE
        )
    several = context.spec.hardware.nodes > 1
    # torch's store listens at that name, but it may be another one's in /etc/hosts: so on all addresses.
    name, host = (os.environ["MASTER_ADDR"], "0.0.0.0") if several else ("127.0.0.1", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    command = make_command(context, settings, max_tokens, host, port)
    switch = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if settings.lora else {"VLLM_SERVER_DEV_MODE": "1"}
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
    stack.callback(_stop, process)
    address = f"http://{name}:{port}"
    _wait_for(address, process, log)
    return address


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise StageError(
                f"vLLM ended with exit code {process.returncode} before it answered: {_find_cause(log):.500}; see {log}; mend it, perhaps "
                "by ppo.rollout.options, or set ppo.rollout.engine: torch",
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


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20.0)
    with suppress(ProcessLookupError):  # its engine may outlive it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _save_weights(policy: Any, directory: Path) -> None:
    """Write all weights, with a head of its own even where it is tied to the embeddings."""
    # Copies: of tensors that share their memory, only one would be written.
    weights = {name: tensor.detach().cpu().clone() for name, tensor in policy.state_dict().items()}
    policy.save_pretrained(directory, state_dict=weights)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}), encoding="utf-8")
