"""What a GPU's processes must do, row by row of tests/README.md: hand weights over, hash, stop together, DDP, save by time."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from stages.blocks import RolloutSettings, TokenSettings
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.save import save_model
from stages.models.tokenizer import load_tokenizer
from stages.ppo.actor_critic import Actor
from stages.process.checkpoint import latest_complete, list_complete, mark_complete
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling, roll_out
from stages.responses.vllm_server import list_weights_dirs, open_vllm
from stages.responses.vllm_weights import find_room, measure_handed_over, save_weights
from stages.settings import PPOSettings
from stages.spec import EXIT_OK, MODEL_DIR, StageSpec, checkpoint_name
from tests.bench.our_models import make_hardware as make_cpu_hardware
from tests.bench.protocol import ROOT
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, PPOWork, make_prompts
from tests.gpu.models import flatten_weights, train_two_steps
from tests.gpu.place import Figure, Place, at_least, at_most, attempt, begin_anew, make_hardware, measure_s, not_shown, relative_error
from tests.gpu.steps import find_models
from tests.stages.family_models import save_base, write_records


def measure(place: Place) -> Iterator[Figure]:
    """Measure all of it."""
    yield from attempt("G10", measure_handing_over(place))
    yield from attempt("G13", measure_hashing(place))
    yield from attempt("G2, G16", measure_ranks(place))
    yield from attempt("G17", measure_saves(place))


def measure_handing_over(place: Place) -> Iterator[Figure]:
    """Write a policy's weights as a vLLM server is given them; ask one too, where its program is named."""
    size = place.sizes[-1]
    paths = find_models(size)
    policy: Any = load_policy(paths["sft"], make_hardware("bfloat16"))
    with tempfile.TemporaryDirectory() as run_dir:
        directories = list_weights_dirs(Path(run_dir), None)
        try:
            for directory in directories:
                directory.mkdir(mode=0o700)
            path = find_room(directories, measure_handed_over(policy)) / "policy"
            seconds = measure_s(lambda: save_weights(policy, path))
            written = {name: weight for file in path.glob("*.safetensors") for name, weight in load_file(file).items()}
        finally:
            for directory in directories:
                shutil.rmtree(directory, ignore_errors=True)
    yield at_most(
        "G10",
        "bytes handed over beside those in float32",
        sum(weight.nbytes for weight in written.values()) / (4 * policy.num_parameters()),
        0.51,
    )
    yield Figure("G10", "seconds to write them", seconds, "s")
    yield Figure("G10", "they lie in memory", float(path.is_relative_to("/dev/shm")))
    apart = max(float((policy.state_dict()[name].cpu().to(weight.dtype) - weight).abs().max()) for name, weight in written.items())
    yield at_most("G10", "what was written apart from the policy's own in bfloat16", apart, 0.0)
    program = os.environ.get("RLHF_TEST_VLLM")
    if program is None or place.pretend:
        yield not_shown("G10", "a server on the same GPU: it needs vLLM's program, named by RLHF_TEST_VLLM")
        return
    yield from ask_vllm(policy, paths, size, RolloutSettings(engine="vllm", command=[program]))


def ask_vllm(policy: Any, paths: dict[str, str], size: str, rollout: RolloutSettings) -> Iterator[Figure]:
    """Sample by a server on the stage's own GPU, before and after the policy has changed, as PPO does."""
    settings = PPOSettings(iterations=1, rollout_batch_size=16, minibatch_size=16, rollout=rollout)
    prompts = make_prompts(PPOWork(size, 0.0, 16, 8, 32, 32, 1))
    sampling = Sampling(max_new_tokens=32, temperature=1.0, pad_token_id=PAD, eos_token_id=EOS, stop_token_id=EOS)
    actor: Any = SimpleNamespace(module=Actor(policy), whole_weights=lambda **_: nullcontext())
    begin_anew()
    before = torch.cuda.mem_get_info()[0]
    with tempfile.TemporaryDirectory() as directory:
        hardware = make_hardware("bfloat16")
        context = make_context("ppo", settings, TokenSettings(), "bfloat16", Path(directory), models=paths, hardware=hardware)
        with open_vllm(context, Ranks(Accelerator()), settings, 64) as engine:
            for turn in ("as it is", "once it has changed"):
                answered = roll_out(engine, actor, prompts, sampling, seed=0)
                with torch.no_grad():
                    found_K, _ = actor.module(*answered.pack(), 1.0)
                gap_BR = (answered.unpack(found_K) - answered.engine_logprobs_BR).abs()
                gap = float(gap_BR.sum() / answered.response_mask_BR.sum())
                yield at_most("G10", f"server and policy {turn} apart, nats a token", gap, 0.05)
                with torch.no_grad():
                    policy.get_output_embeddings().weight.mul_(3.0)
            asleep = torch.cuda.mem_get_info()[0] / before
            yield at_least("G10", "memory that is free while it sleeps, beside that without it", asleep, 0.9)


def measure_hashing(place: Place) -> Iterator[Figure]:
    """Mark a checkpoint of the GPU's numbers complete, and hash it by one thread."""
    num_bytes, step = place.choose(128, 1) * 2**20, 1
    with tempfile.TemporaryDirectory() as temporary:
        path = find_room([Path("/dev/shm"), Path(temporary)], 9 * num_bytes) / f"gpu-check-{os.getpid()}" / checkpoint_name(step)
        try:
            path.mkdir(parents=True)
            for index in range(8):
                numbers = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device="cuda").cpu()
                with (path / f"{index}.bin").open("wb") as stream:
                    stream.write(numbers.numpy().tobytes())
                    os.fsync(stream.fileno())  # the disk's time is no part of it
            alone = measure_s(lambda: [_hash(file) for file in sorted(path.iterdir())])
            shared = measure_s(lambda: mark_complete(path, step))
            whole = latest_complete(path.parent) == (path, step)
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)
    yield Figure("G13", "bytes hashed a second", 8 * num_bytes / shared / 1e9, "GB/s")
    case, name = "G13", "by one thread / by this process's threads"
    has_cores = len(os.sched_getaffinity(0)) >= 4
    yield place.reach(case, name, alone / shared, 2.0) if has_cores else Figure(case, name, alone / shared, "x")
    yield Figure("G13", "the checkpoint is whole", float(whole), "", "1", whole)
    if torch.cuda.device_count() < 2 and not place.pretend:
        yield not_shown("G13", "each rank hashes its share: it needs two GPUs")


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measure_ranks(place: Place) -> Iterator[Figure]:
    """Run tests.gpu.rank on two GPUs, or on the one there is; where the GPU is pretended, on two processes of the CPU."""
    size, count = place.choose("small", "tiny"), min(2, torch.cuda.device_count())
    count, device = place.choose((count, "cuda"), (2, "cpu"))
    with tempfile.TemporaryDirectory() as directory:
        found = run_ranks(Path(directory), count, device, size)
        weights = torch.load(Path(directory) / "weights.pt", weights_only=True)
    begin_anew()
    expected = flatten_weights(train_two_steps("sft", size).model)
    yield Figure("G16", f"DDP walks through the graph, {count} processes", float(found["walks"]), "", "0", not found["walks"])
    yield at_most("G16", "its weights beside those of a process alone", relative_error(weights, expected), 1e-4)
    if count == 1:
        yield not_shown("G2", "a stop signal that reaches ranks a step apart: it needs two GPUs")
        return
    same = len(set(found["stops"])) == 1
    yield Figure("G2", "ranks that are told a step apart stop at one step", float(same), "", "1", same)
    yield Figure("G13", "their checkpoint, of which each hashes a share, is whole", float(found["whole"]), "", "1", found["whole"])


def run_ranks(directory: Path, count: int, device: str, size: str) -> dict[str, Any]:
    """Start the processes; returns what they found, and leaves `weights.pt` in the directory."""
    given = {"directory": str(directory), "device": device, "size": size, "processes": count}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "tests.gpu.rank"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [*command, json.dumps(given)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-8000:], file=sys.stderr)
        raise RuntimeError(f"{count} processes ended with exit code {done.returncode}")
    return json.loads((directory / "found.json").read_text())


def measure_saves(place: Place) -> Iterator[Figure]:
    """Run the PPO stage with checkpoints by time alone, take the last one away as a kill would, and run it again."""
    device = place.choose("cuda", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        spec = make_spec(Path(temporary), device)
        started, saved = run_stage(spec)
        weights = spec.output_dir / MODEL_DIR / "model.safetensors"
        straight = load_file(weights)
        yield Figure("G17", "checkpoints in 3 iterations, by time alone", float(len(saved)), "", "3", saved == [1, 2, 3])
        newest = list_complete(spec.checkpoint_dir)[0]
        shutil.rmtree(spec.checkpoint_dir / checkpoint_name(newest))
        shutil.rmtree(spec.output_dir)
        spec.events_path.unlink()
        started, _ = run_stage(spec)
        yield Figure("G17", "after a kill it goes on from", float(started), "", f"{newest - 1}", started == newest - 1)
        resumed = load_file(weights)
        apart = [relative_error(resumed[name], weight) for name, weight in straight.items() if weight.norm() > 0]
        yield Figure("G17", "weights apart from those of the run that was not killed", max(apart))


def make_spec(directory: Path, device: str) -> StageSpec:
    """Describe a PPO stage on a tiny Llama and prompts of its own."""
    base, rm, records = directory / "sft", directory / "rm", write_records(directory)
    save_base("llama", base)
    save_model(init_reward_model(str(base), make_cpu_hardware("float32"), seed=1), load_tokenizer(str(base)), rm)
    settings = {"iterations": 3, "rollout_batch_size": 8, "minibatch_size": 8, "max_response_tokens": 8, "eval_samples": 0}
    prompts = {"path": str(records["prompts"])}
    return StageSpec.model_validate(
        {
            "stage": "ppo",
            "settings": settings | {"save_every": 100, "save_minutes": 1e-9},
            "tokens": {"max_prompt_tokens": 64, "max_response_tokens": 8},
            "hardware": {"device": device, "precision": "float32"},
            "models": {"sft": str(base), "rm": str(rm / MODEL_DIR)},
            "data": {"prompts": {"train": prompts, "eval": prompts}},
            "seed": 0,
            "output_dir": directory / "output",
            "checkpoint_dir": directory / "checkpoints",
            "events_path": directory / "events.jsonl",
        }
    )


def run_stage(spec: StageSpec) -> tuple[int, list[int]]:
    """Run a stage as a process; returns (the step it began at, the steps of its checkpoints)."""
    path = spec.events_path.with_name("spec.json")
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", f"stages.{spec.stage}", str(path)]
    places = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": places}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != EXIT_OK:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        raise RuntimeError(f"the {spec.stage} stage ended with exit code {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}")
    events = [json.loads(line) for line in spec.events_path.read_text().splitlines()]
    (started,) = (event["resumed_step"] for event in events if event["event"] == "start")
    return started, [event["step"] for event in events if event["event"] == "checkpoint"]
