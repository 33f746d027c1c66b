"""Rollouts by a vLLM server: the policy's weights go to it as files, prompts and responses as token ids over HTTP.

    LoRA            the adapter, each time under a new name; the one before is forgotten
    all weights     reloaded in place, by the server's development endpoints

A server on the stage's own GPU sleeps unless it is asked: it forgets keys and values, and weights that come anew; an adapter's base goes to
the CPU's memory.

The server computes by kernels of its own: what it says of the tokens it samples is compared with what the trainer says, and weighed
(`stages.ppo.losses.compute_importance_weights`).
"""

import json
import math
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from accelerate.utils import broadcast_object_list

from stages.models.adapters import find_model, is_adapter
from stages.models.logprobs import get_num_tokens
from stages.process.context import StageContext
from stages.process.errors import Interrupted, StageError
from stages.process.gpu import release_memory
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.responses.engine import Draw, PolicyHolder, Sampling
from stages.responses.sampling import Response
from stages.responses.vllm_weights import find_room, measure_handed_over, save_weights
from stages.spec import EXIT_RESOURCE

_ANSWER_S = 3600.0
_NEVER = -100.0  # the lowest bias that the server takes
_ROUNDING = 1e-3  # by which a log-probability may come out above 0
_MAX_REQUESTS = 256  # of a rank at once; the server queues what it cannot run

T = TypeVar("T")


class VLLMEngine:
    """A running server, as `stages.responses.engine.RolloutEngine`."""

    def __init__(
        self, context: StageContext, ranks: Ranks, address: str, key: str, directories: Sequence[Path], *, sleeps: bool = False
    ) -> None:
        """Connect to it.

        Args:
            context: of the stage.
            ranks: share the prompts.
            address: `http://host:port`.
            key: shown to a server that asks for one.
            directories: where weights are handed over, in the first that has room for them; the server must see them.
            sleeps: whether it gives the GPU's memory away while nobody asks it.

        Raises:
            StageError: nobody answers there.
        """
        self.directories = [directory.resolve() for directory in directories]
        self._context = context
        self._ranks = ranks
        self._client = httpx2.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(_ANSWER_S, connect=30.0),
            limits=httpx2.Limits(max_connections=_MAX_REQUESTS, max_keepalive_connections=_MAX_REQUESTS),
            trust_env=False,  # a proxy is for what lies outside
        )
        self._base_name = self._read(self._call("GET", "/v1/models"), read_base_name, "the models that it serves, one of them a base")
        # A server that outlives the run may know the names of an earlier attempt.
        self._run: str = broadcast_object_list([uuid.uuid4().hex[:8]])[0]
        self._num_loads = 0
        self._sleeps = sleeps

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answer(self, actor: PolicyHolder, prompts: list[list[int]], sampling: Sampling, draw: Draw) -> list[Response]:
        name = self.load(actor)
        answered = self.ask(name, actor.module.policy, prompts, sampling, draw)
        self.sleep(keep_weights=is_adapter(actor.module.policy))
        return answered

    def ask(self, name: str, policy: Any, prompts: list[list[int]], sampling: Sampling, draw: Draw) -> list[Response]:
        """Answer by the policy that was loaded last; as `answer`, but that ranks with nothing to ask need not call it.

        Args:
            name: which `load` returned.
            policy: the same one here: which of its embedding rows are tokens.
            prompts, sampling, draw: see `RolloutEngine`.
        """
        asked: dict[str, Any] = {
            "model": name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if draw.greedy else sampling.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": sorted({sampling.stop_token_id, sampling.eos_token_id}),
            "ignore_eos": True,  # the two above, whatever the model's configuration says
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        if sampling.stop_text:
            asked |= {"stop": [sampling.stop_text.text], "include_stop_str_in_output": True}
        if rowless := _list_unused_rows(policy):
            asked["logit_bias"] = {str(index): _NEVER for index in rowless}
        num_rows = find_model(policy).config.get_text_config().vocab_size
        place, stride = draw.share

        def ask(index: int) -> Response:
            # A request and a seed for each prompt: in one request, all prompts would get the same noise.
            request = {**asked, "prompt": prompts[index], "seed": derive_seed(draw.seed, place + index * stride)}
            needed = f"one choice with 1 to {sampling.max_new_tokens} token_ids and as many finite token_logprobs"
            return self._read(
                self._call("POST", "/v1/completions", json=request),
                lambda reply: read_response(reply, sampling.max_new_tokens, num_rows),
                needed,
            )

        with ThreadPoolExecutor(min(len(prompts), _MAX_REQUESTS)) as pool:
            answered: list[Response] = []
            for response in pool.map(ask, range(len(prompts))):
                answered.append(response)
                if draw.told:
                    draw.told(len(answered), len(prompts))
            return answered

    def load_from_files(self) -> None:
        """Have weights read from files from now on: a loader of random ones, with which our own server starts, cannot load again."""
        overrides = {"load_config": {"load_format": "auto"}}
        if self._ranks.is_main:
            self._call("POST", "/collective_rpc", json={"method": "update_config", "kwargs": {"overrides": overrides}})

    def sleep(self, *, keep_weights: bool) -> None:
        """Have the GPU's memory of a server that sleeps, once everybody's prompts are answered.

        Args:
            keep_weights: in the CPU's memory; else they must come anew.
        """
        if not self._sleeps:
            return
        self._ranks.wait()
        if self._ranks.is_main:
            self._call("POST", "/sleep", params={"level": "1" if keep_weights else "2"})
        self._ranks.wait()

    def _wake(self, *parts: str) -> None:
        if self._sleeps:
            self._call("POST", "/wake_up", params={"tags": parts})

    def load(self, actor: PolicyHolder) -> str:
        """Give the server the policy's weights; returns the name that it knows them by. All ranks must call it."""
        policy: Any = actor.module.policy
        adapter, name = is_adapter(policy), self._name(self._num_loads)
        with actor.whole_weights(frozen=not adapter):  # the directories are on the main process's machine alone
            path = find_room(self.directories, measure_handed_over(policy)) / name if self._ranks.is_main else None
            if path and adapter:
                policy.save_pretrained(path)
            elif path:
                save_weights(policy, path)
        if self._sleeps:
            release_memory(self._ranks.device)  # of all ranks, before the server takes it
            self._ranks.wait()
        if path and adapter:
            self._wake("weights", "kv_cache")
            self._call("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
        elif path:
            self._wake("weights")
            self._call("POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
            self._wake("kv_cache")
            self._forget_prefixes()
        if path:
            shutil.rmtree(path)
        self._ranks.wait()  # nobody asks before it is there
        if adapter and self._num_loads > 0 and self._ranks.is_main:
            self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": self._name(self._num_loads - 1)})
        self._num_loads += 1
        return name if adapter else self._base_name

    def _name(self, number: int) -> str:
        return f"policy-{self._run}-{number}"

    def _forget_prefixes(self) -> None:
        """Have the keys and values of the old weights thrown away."""
        answer = self._call("POST", "/reset_prefix_cache", params={"reset_running_requests": True})
        if not self._read(answer, lambda reply: bool(reply["success"]), "whether it did"):
            raise StageError(
                f"vLLM at {self._client.base_url} keeps its prefix cache while others use it; a server of this run alone is needed; "
                "start it with --no-enable-prefix-caching",
                EXIT_RESOURCE,
            )

    def _read(self, response: httpx2.Response, read: Callable[[Any], T], needed: str) -> T:
        """Read an answer, which another program wrote."""
        try:
            return read(json.loads(response.content))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise StageError(
                f"vLLM at {self._client.base_url}: {response.request.url.path}: found {response.text!r:.300}, needed {needed}; "
                "see its log, and take a version that is tested (pipeline/launch/README.md)",
                EXIT_RESOURCE,
            ) from None

    def _call(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx2.HTTPError as error:
            if self._context.stop_requested:  # SLURM signals every process of a job, the server too
                raise Interrupted from error
            raise StageError(
                f"vLLM at {self._client.base_url}: {path}: {error or type(error).__name__}; a server that answers is needed; see its log, "
                "and run the same command to go on from the last checkpoint, if there is one",
                EXIT_RESOURCE,
            ) from error
        if not response.is_success:
            needed = "a request that it accepts is needed; see its log"
            if path in ("/sleep", "/wake_up"):
                needed = (
                    "a vLLM that can sleep is needed; start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, or set "
                    "ppo.rollout.sleep: false"
                )
            elif response.status_code == httpx2.codes.NOT_FOUND:
                needed = (
                    "a vLLM that takes new weights is needed; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True (with ppo.lora) or "
                    "VLLM_SERVER_DEV_MODE=1 (without), or give no rollout.server"
                )
            raise StageError(
                f"vLLM at {self._client.base_url}: {path}: {response.status_code} {response.text:.500}; {needed}", EXIT_RESOURCE
            )
        return response


def read_base_name(reply: Any) -> str:
    """Find the base among the models that a server says it serves.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: The reply is another one.
    """
    names = [model["id"] for model in reply["data"] if model.get("parent") is None]
    if not names or not isinstance(names[0], str):
        raise ValueError("no base model")
    return names[0]


def read_response(reply: Any, max_tokens: int, num_rows: int) -> Response:
    """Take the response out of a server's reply.

    Args:
        reply: As JSON.
        max_tokens: That were asked for.
        num_rows: Of the embeddings: ids are below.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: The reply is another one.
    """
    (choice,) = reply["choices"]
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not isinstance(ids, list) or not isinstance(logprobs, list) or not 0 < len(ids) == len(logprobs) <= max_tokens:
        raise ValueError("token ids and log-probabilities do not fit")
    if not all(type(index) is int and 0 <= index < num_rows for index in ids):
        raise ValueError("a token id is none")
    if not all(type(number) in (int, float) and -math.inf < number <= _ROUNDING for number in logprobs):
        raise ValueError("a log-probability is none")
    return Response(ids, [float(number) for number in logprobs])


def _list_unused_rows(policy: Any) -> range:
    """List the embedding rows that stand for no token, see `stages.models.logprobs.get_num_tokens`."""
    num_rows = find_model(policy).config.get_text_config().vocab_size
    return range(get_num_tokens(policy) or num_rows, num_rows)
