"""What a GPU's models must not do, row by row of tests/README.md: sit on two GPUs, leave out a cap, widen what adapters are given, ask
for all memory to score answers."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from data.tokens import EncodedPair
from stages.blocks import LoRASettings, TokenSettings
from stages.models.adapters import apply_lora
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import RANKING_TOKENS, pack
from stages.models.policy import load_policy
from stages.models.precision import autocast, set_precision
from stages.ppo.actor_critic import Actor
from stages.ppo.guards import MAX_OWN_GAP, MAX_OWN_GAP_BFLOAT16
from stages.responses.generation import generate_responses
from stages.responses.rollout import pack_rollout
from stages.responses.scores import score_rankings
from stages.settings import RMSettings, SFTSettings
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from tests.bench.our_models import open_policy, open_reward_model
from tests.bench.rm_worker import make_comparisons
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, draw_ids, make_tokenizer
from tests.gpu.place import Figure, Place, at_most, attempt, begin_anew, make_hardware, measure_s, peak_memory, relative_error
from tests.stages.family_models import make_config, save_base

_TOKENS = TokenSettings(max_prompt_tokens=128, max_response_tokens=192)
_QUIET: dict[str, Any] = {"epochs": 1, "save_every": 10**9, "log_every": 10**9}
# Families whose head makes more of its product than logits: TRL and our own code once left that out.
_SCALED: dict[str, dict[str, float]] = {
    "gemma2": {"final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
}


def measure(place: Place) -> Iterator[Figure]:
    """Measure all of it."""
    for stage in ("sft", "rm"):
        yield from attempt(f"G1 {stage}", measure_two_gpus(place, stage))
    for family, changes in _SCALED.items():
        yield from attempt(f"G3 {family}", measure_scaled_logits(family, changes))
    yield from attempt("G12", measure_adapters(place))
    yield from attempt("G15", measure_scoring(place))
    yield from attempt("G24", measure_experts(place))


def measure_two_gpus(place: Place, stage: str) -> Iterator[Figure]:
    """Train two steps where one GPU is seen, and where two are; the second one is made up where there is none."""
    case, size, weights = f"G1 {stage}", place.choose("small", "tiny"), {}
    for count in (1, max(2, torch.cuda.device_count())):
        begin_anew()
        with patch.object(torch.cuda, "device_count", lambda count=count: count):
            trainer = train_two_steps(stage, size)
        weights[count] = flatten_weights(trainer.model)
        if count > 1:
            copied = isinstance(trainer.model_wrapped, nn.DataParallel)
            yield Figure(case, f"trains on one of {count} GPUs", float(trainer.args.n_gpu == 1 and not copied), "", "1", not copied)
    one, several = weights.values()
    yield at_most(case, "its weights beside those where one is seen", relative_error(several, one), 1e-4)


def train_two_steps(stage: str, size: str, context: Any = None, policy: Any = None) -> Any:
    """Train SFT (a policy, if one is given) or a reward model for two steps of 8 records, in float32; returns the trainer."""
    hardware = context.spec.hardware if context else make_hardware("float32")
    with tempfile.TemporaryDirectory() as directory:
        draw, settings_class = random.Random(0), SFTSettings if stage == "sft" else RMSettings
        settings = settings_class(batch_size=8, micro_batch_size=4, **_QUIET)
        context = context or make_context(stage, settings, _TOKENS, "float32", Path(directory), hardware=hardware)
        if stage == "sft":
            lengths = [(draw.randint(4, 60), draw.randint(4, 90)) for _ in range(16)]
            pairs = [EncodedPair(draw_ids(draw, prompt, size), [*draw_ids(draw, answer, size), EOS]) for prompt, answer in lengths]
            policy = policy or open_policy(size, 0.025, hardware)
            trainer: Any = make_sft_trainer(context, settings, policy, make_tokenizer(size), pairs, [])
        else:
            items = make_comparisons(size, 3, 40, 30)[:16]
            trainer = make_ranking_trainer(context, settings, open_reward_model(size, 1, hardware), make_tokenizer(size), items, [])
        trainer.args.save_strategy = "no"
        trainer.train()
    return trainer


def flatten_weights(model: Any) -> Tensor:
    """Lay a model's weights end to end, on the CPU."""
    return torch.cat([weight.detach().float().cpu().flatten() for weight in model.parameters()])


def measure_scaled_logits(family: str, changes: dict[str, float]) -> Iterator[Figure]:
    """Compare what a rollout says of its tokens with what the trainer will say, as PPO does after its first rollout."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [13, 14, 15], [16, 17, 18, 19, 20], [30]]
    with tempfile.TemporaryDirectory() as directory:
        save_base(family, Path(directory), tie_word_embeddings=False, **changes)
        for precision, limit in (("float32", MAX_OWN_GAP), ("bfloat16", MAX_OWN_GAP_BFLOAT16)):
            policy = load_policy(directory, make_hardware(precision)).eval()
            answered = generate_responses(policy, prompts, max_new_tokens=12, stop_token_ids={EOS}, seed=0, max_rows=4)
            ids, logprobs = [answer.ids for answer in answered], [answer.logprobs for answer in answered]
            rollout = pack_rollout(prompts, ids, [True] * len(ids), PAD, next(policy.parameters()).device, logprobs)
            with torch.no_grad():
                found_K, _ = Actor(policy)(*rollout.pack(), 1.0)
            gap_BR = (rollout.unpack(found_K) - rollout.engine_logprobs_BR).abs()
            gap = float(gap_BR.sum() / rollout.response_mask_BR.sum())
            yield at_most(f"G3 {family} {precision}", "rollout and trainer apart, nats a token", gap, limit)


def measure_adapters(place: Place) -> Iterator[Figure]:
    """Compute forward and backward of a policy with an adapter, which takes bfloat16 as it is, and with peft's detour by float32."""
    size, hardware = place.choose("wide", "tiny"), make_hardware("bfloat16")
    policy = apply_lora(open_policy(size, 0.025, hardware), LoRASettings(rank=16), "CAUSAL_LM", hardware).to("cuda").train()
    layers: list[Any] = [layer for layer in policy.modules() if isinstance(layer, BaseTunerLayer)]
    torch.manual_seed(0)
    for layer in layers:
        nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    draw = random.Random(0)
    row = pack([draw_ids(draw, place.choose(512, 9), size) for _ in range(8)], device=torch.device("cuda"))
    predictors_K = torch.arange(1, place.choose(4000, 60), device="cuda")
    wide: list[int] = []
    hooks = [
        layer.lora_A["default"].register_forward_pre_hook(lambda _layer, given: wide.append(int(given[0].dtype == torch.float32)))
        for layer in layers
    ]

    def compute() -> Tensor:
        with autocast(policy.get_base_model().base_model, row.ids_N.device):
            logprobs_K, _ = compute_token_logprobs(policy, row, predictors_K, 1.0)
        logprobs_K.sum().backward()
        policy.zero_grad()
        return logprobs_K.detach()

    found = compute()
    yield at_most("G12", f"of {len(layers)} adapters, those that are given float32", sum(wide), 0)
    for hook in hooks:
        hook.remove()
    seconds, repeats = {}, place.choose(5, 1)
    for detour in (False, True):
        for layer in layers:
            layer.cast_input_dtype_enabled = detour
        detoured = compute()
        seconds[detour] = measure_s(lambda: [compute() for _ in range(repeats)])
    yield at_most("G12", "log-probabilities apart from those with the detour", float((found - detoured).abs().max()), 1e-2)
    yield Figure("G12", "seconds with the detour / without", seconds[True] / seconds[False], "x")


def measure_scoring(place: Place) -> Iterator[Figure]:
    """Score 32 prompts of 9 answers: in rows of so many tokens, whatever the number of answers."""
    size = place.choose("wide", "tiny")
    model, draw = open_reward_model(size, 1, make_hardware("bfloat16")).to("cuda"), random.Random(0)
    prompt, answer = place.choose((300, 440), (6, 4))
    rankings = [(draw_ids(draw, prompt, size), [draw_ids(draw, answer, size) for _ in range(9)]) for _ in range(place.choose(32, 4))]
    in_a_row = min(RANKING_TOKENS // (prompt + 9 * answer), 3)
    scores, peaks = [], []
    for some in (rankings[:in_a_row], rankings):
        with peak_memory() as read_peak:
            scores.append(score_rankings(model, some))
            peaks.append(read_peak()[0])
    name = f"peak memory of {len(rankings)} prompts of 9 answers over that of {in_a_row}, one row"
    yield at_most("G15", name, peaks[1] / max(peaks[0], 1e-9), 1.1, "x")
    apart = float((scores[1][: len(scores[0])] - scores[0]).abs().max())
    yield at_most("G15", "scores apart from those of the row alone", apart, 0.05)


def measure_experts(place: Place) -> Iterator[Figure]:
    """Compute forward and backward of a mixture of experts in bfloat16 and in float32."""
    wide = {"hidden_size": 1024, "intermediate_size": 2048, "num_local_experts": 8, "num_attention_heads": 16, "num_key_value_heads": 16}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(make_config("mixtral", router_jitter_noise=0.0, **place.choose(wide, {}))).to("cuda")
    ids = torch.randint(2, 288, place.choose((8, 512), (2, 12)), generator=torch.Generator().manual_seed(0)).to("cuda")
    found, seconds = {}, {}

    def compute() -> Tensor:
        with autocast(model.base_model, ids.device):
            logits = model(input_ids=ids, use_cache=False).logits
        logits.float().square().mean().backward()
        return torch.cat([logits.detach().float().flatten(), model.model.layers[0].mlp.experts.down_proj.grad.flatten()])

    for precision in ("float32", "bfloat16"):
        set_precision(model, make_hardware(precision))
        model.zero_grad()
        found[precision] = compute()
        seconds[precision] = measure_s(compute)
    yield at_most(
        "G24", "logits and a gradient of experts beside those in float32", relative_error(found["bfloat16"], found["float32"]), 0.1
    )
    yield Figure("G24", "seconds in float32 / in bfloat16", seconds["float32"] / seconds["bfloat16"], "x")
