"""One optimizer step of SFT and RM (K = 4), and one PPO update, at the sizes of `Place`: full (also compiled), LoRA, QLoRA:
speed and peak memory; by ZeRO peak memory."""

import atexit
import functools
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from data.tokens import EncodedComparison, EncodedPair
from stages.blocks import HardwareSettings, LoRASettings, TokenSettings
from stages.models.adapters import apply_lora
from stages.models.compiling import compile_layers
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.save import save_model
from stages.ppo.models import load_models
from stages.ppo.trainer import PPOTrainer
from stages.process.context import StageContext
from stages.process.distributed import join
from stages.process.engine import choose_engine
from stages.process.ranks import join_ranks
from stages.responses.engine import Sampling
from stages.settings import PPOSettings, RMSettings, SFTSettings
from stages.spec import MODEL_DIR
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from tests.bench.our_models import make_hardware as make_cpu_hardware
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, draw_ids, make_plain_policy, make_tokenizer
from tests.gpu.place import MODELS, Figure, Place, attempt, begin_anew, count_weights, make_hardware, peak_memory

_STEPS, _MEASURED = 6, 4  # the last ones, as they follow one another; the first ones load kernels and compile
_GOAL = 0.45  # MFU of the update of a model of 1 B weights, compiled
_QUIET = {"epochs": 1, "save_every": 10**9, "log_every": 10**9}
_FORMS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, compiled": {},
    "lora": {"lora": LoRASettings(rank=16)},
    "qlora": {"lora": LoRASettings(rank=16, quantize="nf4")},
    "critic's warm-up": {"critic_warmup_iterations": 2},
}


def measure(place: Place) -> Iterator[Figure]:
    """Measure one process by plain torch."""
    forms = ["full", "lora", *(["qlora"] if find_spec("bitsandbytes") and not place.pretend else [])]
    yield from _measure(place, make_hardware("bfloat16"), forms, "", place.sizes)
    if not place.pretend:  # which torch.compile does not see
        compiling = make_hardware("bfloat16", compile=True)
        yield from _measure(place, compiling, ["full, compiled"], "", place.sizes[-1:])


def measure_zero(place: Place, stage: int) -> Iterator[Figure]:
    """Measure one process under DeepSpeed."""
    stand_alone()
    precision, device = place.choose(("bfloat16", "cuda"), ("float32", "cpu"))
    hardware = make_hardware(precision, device=device, engine="deepspeed", zero_stage=stage)
    yield from _measure(place, hardware, ["full", "lora"], f" zero{stage}", place.sizes)
    if stage == 2:  # norms and losses of both devices meet
        offloading = make_hardware(precision, device=device, engine="deepspeed", zero_stage=stage, offload_optimizer=True)
        yield from _measure(place, offloading, ["critic's warm-up"], " zero2, optimizer on the CPU", place.sizes[:1], stages=("ppo",))


def stand_alone() -> None:
    """Say in the environment that this process is one of one, as a launcher would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def _measure(
    place: Place,
    hardware: HardwareSettings,
    forms: list[str],
    engine: str,
    sizes: Sequence[str],
    stages: Sequence[str] = ("sft", "rm", "ppo"),
) -> Iterator[Figure]:
    for size in sizes:
        paths = find_models(size)
        for form in forms:
            for stage in stages:
                case = f"{stage} {size} {form}{engine}"
                yield from attempt(case, _measure_case(place, hardware, case, stage, size, form, paths, plain=not engine))


def _measure_case(
    place: Place, hardware: HardwareSettings, case: str, stage: str, size: str, form: str, paths: dict[str, str], *, plain: bool
) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as work, peak_memory() as read_peak:
        if plain:
            begin_anew()
        seconds, tokens, passes = _RUNS[stage](place, size, paths, hardware, _FORMS[form], Path(work))
        allocated, reserved = read_peak()
    yield Figure(case, "peak memory", allocated, "GiB")
    yield Figure(case, "peak memory, reserved", reserved, "GiB")
    if not plain:  # other parts compute beside it
        return
    yield Figure(case, "tokens a second", tokens / seconds, "/s")
    if form.startswith("full") and (peak_flops := place.peak_flops):
        mfu = 6 * count_weights(size) * tokens * passes / seconds / peak_flops
        yield place.reach(case, "MFU", mfu, _GOAL, "") if form.endswith("compiled") else Figure(case, "MFU", mfu)


def find_models(size: str) -> dict[str, str]:
    """Find an SFT model and a reward model on it, by role, that another part has written; write them where none has."""
    shared = os.environ.get(MODELS) or _own_directory()
    directory = Path(shared) / size
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=shared) as temporary:
            write_models(size, Path(temporary) / size)
            with suppress(OSError):  # another part was faster
                (Path(temporary) / size).rename(directory)
    return {"sft": str(directory / "sft"), "rm": str(directory / "rm" / MODEL_DIR)}


@functools.cache
def _own_directory() -> str:
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def write_models(size: str, directory: Path) -> None:
    """Write an SFT model and a reward model on it, of random weights."""
    sft, rm, tokenizer = directory / "sft", directory / "rm", make_tokenizer(size)
    device, hardware = ("cpu", make_cpu_hardware("float32")) if size == "tiny" else ("cuda", make_hardware("float32"))
    make_plain_policy(size, seed=0, device=device).save_pretrained(sft)
    tokenizer.save_pretrained(sft)
    save_model(init_reward_model(str(sft), hardware, seed=1), tokenizer, rm)


class _Clock(TrainerCallback):
    """Keeps the seconds of a step: the mean of the last ones, between which nobody waits for the GPU."""

    def __init__(self) -> None:
        self.instants: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == _STEPS - _MEASURED:
            self._note()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note()

    def _note(self) -> None:
        torch.cuda.synchronize()
        self.instants.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        start, end = self.instants
        return (end - start) / _MEASURED


def _context(place: Place, stage: Any, settings: Any, hardware: HardwareSettings, paths: dict[str, str], directory: Path) -> StageContext:
    tokens = TokenSettings(max_prompt_tokens=place.choose(512, 16), max_response_tokens=place.choose(512, 16))
    context = make_context(stage, settings, tokens, "bfloat16", directory, models=paths, hardware=hardware)
    join(context)
    return context


def run_sft(
    place: Place, size: str, paths: dict[str, str], hardware: HardwareSettings, form: dict[str, Any], directory: Path
) -> tuple[float, int, int]:
    """Run steps of 32 demonstrations; returns (seconds of a step, its tokens, models that learn)."""
    batch, longest = place.choose((32, 512), (4, 16))
    settings = SFTSettings(batch_size=batch, micro_batch_size=place.choose(16, 2), **_QUIET, **form)
    context, draw = _context(place, "sft", settings, hardware, paths, directory), random.Random(0)
    lengths = [(draw.randint(longest // 4, longest), draw.randint(longest // 4, longest)) for _ in range(batch)]
    pairs = [EncodedPair(draw_ids(draw, prompt, size), [*draw_ids(draw, answer - 1, size), EOS]) for prompt, answer in lengths * _STEPS]
    policy: Any = load_policy(paths["sft"], hardware, engine=choose_engine(context), on_cpu=_quantizes(settings))
    if settings.lora:
        policy = apply_lora(policy, settings.lora, "CAUSAL_LM", hardware)
    compile_layers(context, policy)
    trainer = make_sft_trainer(context, settings, policy, make_tokenizer(size), pairs, [])
    return _train(trainer), sum(map(sum, lengths)), 1


def run_rm(
    place: Place, size: str, paths: dict[str, str], hardware: HardwareSettings, form: dict[str, Any], directory: Path
) -> tuple[float, int, int]:
    """Run steps of 8 comparisons of 4 answers."""
    batch, prompt, answer = place.choose((8, 512, 256), (2, 8, 4))
    settings = RMSettings(batch_size=batch, micro_batch_size=place.choose(4, 1), **_QUIET, **form)
    context, draw = _context(place, "rm", settings, hardware, paths, directory), random.Random(0)
    items = [
        EncodedComparison(draw_ids(draw, prompt, size), [draw_ids(draw, answer, size) for _ in range(4)], (1, 2, 3, 4), "")
        for _ in range(batch * _STEPS)
    ]
    model: Any = init_reward_model(paths["sft"], hardware, 1, engine=choose_engine(context), on_cpu=_quantizes(settings))
    if settings.lora:
        model = apply_lora(model, settings.lora, "SEQ_CLS", hardware)
    compile_layers(context, model)
    trainer = make_ranking_trainer(context, settings, model, make_tokenizer(size), items, [])
    return _train(trainer), batch * (prompt + 4 * answer), 1


def run_ppo(
    place: Place, size: str, paths: dict[str, str], hardware: HardwareSettings, form: dict[str, Any], directory: Path
) -> tuple[float, int, int]:
    """Run iterations of 32 responses; the seconds are those of the last one's update."""
    count, prompt, answer = place.choose((32, 256, 256), (4, 8, 6))
    settings = PPOSettings(
        iterations=10,
        rollout_batch_size=count,
        minibatch_size=count,
        ppo_epochs=1,
        max_tokens_per_microbatch=place.choose(8192, 32),
        max_response_tokens=answer,
        **form,
    )
    context, draw = _context(place, "ppo", settings, hardware, paths, directory), random.Random(0)
    ranks = join_ranks(context)
    loaded = load_models(context, settings, make_tokenizer(size))
    trainer = PPOTrainer(
        ranks,
        loaded.actor_critic,
        loaded.ref_policy,
        loaded.reward_model,
        [draw_ids(draw, prompt, size) for _ in range(count)],
        Sampling(max_new_tokens=answer, temperature=1.0, pad_token_id=PAD, eos_token_id=EOS, stop_token_id=EOS),
        settings,
        seed=0,
        engine=choose_engine(context),
    )
    rows = [trainer.step() for _ in range(2)]
    return rows[-1]["time/update_s"], count * prompt + int(rows[-1]["tokens"]), 2


_RUNS = {"sft": run_sft, "rm": run_rm, "ppo": run_ppo}


def _quantizes(settings: Any) -> bool:
    return bool(settings.lora and settings.lora.quantize)


def _train(trainer: Any) -> float:
    clock = _Clock()
    trainer.args.save_strategy = "no"
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds
