"""One optimizer step with LoRA per "go": SFT, or PPO (rollout and scoring included) with four models or on one backbone.

All on the same model, and on about as many tokens in a forward pass, so that peak memory can be compared.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.tokens import EncodedPair
from stages.blocks import LoRASettings, TokenSettings
from stages.models.adapters import apply_lora
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.save import save_model
from stages.ppo.models import load_models
from stages.ppo.trainer import PPOTrainer
from stages.process.engine import choose_engine
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.settings import PPOSettings, SFTSettings
from stages.spec import MODEL_DIR
from tests.bench.hf_meter import Meter
from tests.bench.our_models import make_hardware
from tests.bench.protocol import Bench, Figures, Instant
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, PAD, draw_ids, make_plain_policy, make_tokenizer

_LORA = LoRASettings(rank=16)
_PROMPT_TOKENS, _RESPONSE_TOKENS, _DEMONSTRATIONS = 64, 64, 4
_TOKENS = TokenSettings(max_prompt_tokens=_PROMPT_TOKENS, max_response_tokens=_RESPONSE_TOKENS)


def write_models(size: str, directory: Path) -> dict[str, str]:
    """Write an SFT model, and a reward model that is an adapter on it; returns their paths by role."""
    os.dup2(2, 1)  # standard output is the line to the bench
    sft, rm = directory / "sft", directory / "rm"
    make_plain_policy(size, seed=0).save_pretrained(sft)
    tokenizer: Any = make_tokenizer(size)
    tokenizer.save_pretrained(sft)
    hardware = make_hardware("float32")
    model = apply_lora(init_reward_model(str(sft), hardware, seed=1), _LORA, "SEQ_CLS", hardware)
    save_model(model, tokenizer, rm)
    return {"sft": str(sft), "rm": str(rm / MODEL_DIR)}


def serve_sft(bench: Bench, given: dict[str, Any], paths: dict[str, str], directory: Path) -> None:
    """Serve steps of our SFT trainer."""
    from stages.trl.sft import make_sft_trainer  # PPO's side is measured without what TRL's import takes

    draw = random.Random(0)
    pairs = [
        EncodedPair(draw_ids(draw, _PROMPT_TOKENS, given["size"]), [*draw_ids(draw, _RESPONSE_TOKENS - 1, given["size"]), EOS])
        for _ in range(8 * _DEMONSTRATIONS)
    ]
    settings = SFTSettings(
        lora=_LORA, batch_size=_DEMONSTRATIONS, micro_batch_size=_DEMONSTRATIONS, epochs=10_000, save_every=10**9, log_every=10**9
    )
    context = make_context("sft", settings, _TOKENS, given["precision"], directory)
    policy = apply_lora(load_policy(paths["sft"], context.spec.hardware), _LORA, "CAUSAL_LM", context.spec.hardware)
    trainer = make_sft_trainer(context, settings, policy, make_tokenizer(given["size"]), pairs, [])
    trainer.add_callback(Meter(bench, "step", lambda: {}))
    trainer.train()


def serve_ppo(bench: Bench, given: dict[str, Any], paths: dict[str, str], directory: Path) -> None:
    """Serve iterations of PPO on models loaded as the stage loads them."""
    settings = PPOSettings(
        lora=_LORA,
        share_weights=given["engine"] == "one backbone",
        iterations=10_000,
        rollout_batch_size=_DEMONSTRATIONS,
        minibatch_size=_DEMONSTRATIONS,
        ppo_epochs=1,
        max_tokens_per_microbatch=_DEMONSTRATIONS * (_PROMPT_TOKENS + _RESPONSE_TOKENS),
    )
    context = make_context("ppo", settings, _TOKENS, given["precision"], directory, paths)
    loaded = load_models(context, settings, make_tokenizer(given["size"]))
    draw = random.Random(0)
    trainer = PPOTrainer(
        Ranks(Accelerator(cpu=True)),
        loaded.actor_critic,
        loaded.ref_policy,
        loaded.reward_model,
        [draw_ids(draw, _PROMPT_TOKENS, given["size"]) for _ in range(_DEMONSTRATIONS)],
        Sampling(max_new_tokens=_RESPONSE_TOKENS, temperature=1.0, pad_token_id=PAD, eos_token_id=EOS, stop_token_id=EOS),
        settings,
        seed=0,
        engine=choose_engine(context),
    )

    def step() -> Figures:
        start = Instant.now()
        metrics = trainer.step()
        return {"phases": {"total": start.until(Instant.now())}, "optimizer_steps": int(metrics["optimizer_steps"])}

    bench.serve(step)


def main() -> None:
    """Serve until the bench closes the line."""
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        with torch.multiprocessing.get_context("spawn").Pool(1) as child:  # what it takes is not counted here
            paths = child.apply(write_models, (given["size"], Path(directory)))
        bench = Bench()
        (serve_sft if given["engine"] == "sft" else serve_ppo)(bench, given, paths, Path(directory))


if __name__ == "__main__":
    main()
