"""Every family of decoders goes through all three stages, full and as LoRA, or is refused before the first one trains."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from data.schema import Demonstration, Message
from data.tokens import encode_prompt, encode_records, encode_response
from stages import rm, sft
from stages.family import describe_family
from stages.models.head import HEAD
from stages.ppo import stage as ppo
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, StageSpec
from tests.stages.family_models import FAMILIES, make_config, save_base, write_records

PAGE = Path(sft.__file__).parent / "families.md"
SETTINGS = {
    "sft": {"epochs": 1, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "eval_samples": 1, "log_every": 1},
    "rm": {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2, "log_every": 1},
    "ppo": {
        "iterations": 2,
        "rollout_batch_size": 4,
        "minibatch_size": 4,
        "ppo_epochs": 1,
        "learning_rate": 1e-2,
        "max_response_tokens": 5,
        "eval_samples": 2,
    },
}
MAINS = {"sft": (sft.main, ("demonstrations",)), "rm": (rm.main, ("comparisons", "demonstrations")), "ppo": (ppo.main, ("prompts",))}
REFUSED = {"bert": "whose outputs depend on later tokens", "t5": "which has an encoder beside its decoder"}
RUNNING = [name for name in FAMILIES if name not in REFUSED]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A function: family -> the directory of its base model, made once; to be left as it is."""

    @functools.cache
    def find(family):
        directory = tmp_path_factory.mktemp("base")
        save_base(family, directory)
        return directory

    return find


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory):
    """Where token ids are kept, as those of a store are: of the same records and the same tokenizer they are made once."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def make_run(tmp_path, tokens_dir):
    """run(stage, models, **settings) runs a stage's program in this process."""
    records = write_records(tmp_path)

    def run(stage, models, **settings):
        main, kinds = MAINS[stage]
        directory = tmp_path / stage
        (directory / "checkpoints").mkdir(parents=True)
        (directory / "output").mkdir()
        spec = StageSpec.model_validate(
            {
                "stage": stage,
                "settings": SETTINGS[stage] | settings,
                "tokens": {"max_prompt_tokens": 24, "max_response_tokens": 16},
                "hardware": {"device": "cpu", "precision": "float32"},
                "models": {role: str(path) for role, path in models.items()},
                "data": {kind: {"train": {"path": str(records[kind])}, "eval": {"path": str(records[kind])}} for kind in kinds},
                "seed": 3,
                "output_dir": directory / "output",
                "checkpoint_dir": directory / "checkpoints",
                "events_path": directory / "events.jsonl",
                "tokens_dir": tokens_dir,
            }
        )
        result = main(StageContext(spec))
        assert list(directory.rglob("README.md")) == [], "a library's model card, in a checkpoint or beside an adapter"
        rows = [json.loads(line) for line in (directory / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
        samples = [json.loads(line) for line in (directory / "output" / "samples.jsonl").read_text().splitlines()]
        return SimpleNamespace(model=directory / "output" / "model", output=directory / "output", result=result, rows=rows, samples=samples)

    return run


def families(*, fast):
    """All that run, slow but for one at most: they take two CPU seconds each."""
    return pytest.mark.parametrize("family", [pytest.param(name, marks=() if name == fast else pytest.mark.slow) for name in RUNNING])


@families(fast="cohere")
def test_a_family_runs_through_all_stages_and_opens_without_our_code(family, make_run, bases, tmp_path):
    before = json.loads((bases(family) / "config.json").read_text())
    sft_run = make_run("sft", {"base": bases(family)})
    rm_run = make_run("rm", {"sft": sft_run.model})
    ppo_run = make_run("ppo", {"sft": sft_run.model, "rm": rm_run.model})
    check_start(ppo_run)
    assert sft_run.result.metrics["eval/loss"] == pytest.approx(plain_loss(sft_run.model, tmp_path), abs=2e-4)
    check_scores(rm_run, rm_run.model)
    check_greedy_answers(ppo_run, ppo_run.model)
    after = json.loads((ppo_run.model / "config.json").read_text())
    assert settings_of(after) == settings_of(before)


@families(fast=None)
def test_a_family_runs_through_all_stages_with_lora(family, make_run, bases, tmp_path):
    lora = {"rank": 4, "merge": True}
    sft_run = make_run("sft", {"base": bases(family)}, lora=lora)
    merged = sft_run.output / "merged"
    assert sft_run.result.metrics["eval/loss"] == pytest.approx(plain_loss(merged, tmp_path), abs=2e-4)
    rm_run = make_run("rm", {"sft": merged}, lora=lora)
    check_scores(rm_run, rm_run.output / "merged")
    ppo_run = make_run("ppo", {"sft": merged, "rm": rm_run.output / "merged"}, lora=lora)
    check_start(ppo_run)
    check_greedy_answers(ppo_run, ppo_run.output / "merged")
    for run in (sft_run, rm_run, ppo_run):
        check_all_adapters_learn(run, bases(family), tmp_path)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_no_decoder_is_refused_before_anything_is_read(family, make_run, bases):
    with pytest.raises(StageError) as caught:
        make_run("sft", {"base": bases(family)})
    assert REFUSED[family] in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


def settings_of(config):
    """A configuration without what a stage may say: special tokens, and which library wrote it."""
    said = {"dtype", "transformers_version", "use_cache", "bos_token_id", "pad_token_id", "eos_token_id", "_name_or_path"}
    return {key: settings_of(value) if isinstance(value, dict) else value for key, value in config.items() if key not in said}


def check_start(run):
    first = next(row for row in run.rows if row["step"] == 1)
    assert first["val/ratio_start_deviation"] < 1e-4
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["rollout/logprob_gap"] < 1e-4


def prompt_ids(tokenizer, text):
    return encode_prompt(tokenizer, (Message("user", text),), 24).ids


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain_loss(model_dir, records_dir):
    """The loss on the held-out demonstrations, by plain transformers, one at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    records = [Demonstration((Message("user", row["prompt"]),), row["completion"]) for row in read(records_dir / "demonstrations.jsonl")]
    total = count = 0
    for item in encode_records(tokenizer, records, (24, 16)):
        ids = torch.tensor([item.prompt_ids + item.responses[0]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)[len(item.prompt_ids) - 1 : -1]
        total -= logprobs.gather(1, torch.tensor(item.responses[0])[:, None]).sum().item()
        count += len(item.responses[0])
    return total / count


def check_all_adapters_learn(run, base, records_dir):
    """No adapter stays as it begins, with B = 0, where plain transformers has a gradient for the weight below it."""
    adapters = {name: weight for name, weight in load_file(run.model / "adapter_model.safetensors").items() if "lora_B" in name}
    still = {name.removeprefix("base_model.model.").replace("lora_B.", "") for name, weight in adapters.items() if not weight.any()}
    assert len(still) < len(adapters)
    if still:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        ids = AutoTokenizer.from_pretrained(base)(read(records_dir / "demonstrations.jsonl")[0]["prompt"], return_tensors="pt").input_ids
        model(ids, labels=ids).loss.backward()
        assert [name for name in still if (weight := model.get_parameter(name)).grad is not None and weight.grad.any()] == []


def check_scores(run, model_dir):
    """The scores in samples.jsonl are those of the backbone and the head as they lie on the disk."""
    tokenizer, backbone = AutoTokenizer.from_pretrained(model_dir), AutoModel.from_pretrained(model_dir, dtype=torch.float32).eval()
    weight = load_file(model_dir / "model.safetensors")[f"{HEAD}.weight"]
    calibration = json.loads((model_dir / "score.json").read_text())
    for row in run.samples[:6]:
        ids = torch.tensor([prompt_ids(tokenizer, row["prompt"]) + encode_response(tokenizer, row["response"])])
        with torch.no_grad():
            logit = (backbone(ids).last_hidden_state[0, -1] @ weight[0]).item()
        expected = (logit - calibration["score_bias"]) / calibration["score_scale"]
        assert row["score"] == pytest.approx(expected, abs=1e-3, rel=1e-3)


def check_greedy_answers(run, model_dir):
    """The greedy answers in samples.jsonl are those of plain transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    for row in run.samples:
        if row["way"] != "greedy":
            continue
        asked = prompt_ids(tokenizer, row["prompt"])
        ids = list(asked)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        text = tokenizer.decode(ids[len(asked) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["response"] == text


@pytest.mark.slow
def test_the_page_of_families_shows_what_was_found():
    rows = ["| model type | rows | responses | logits | reward model |", "|---|---|---|---|---|"]
    words = {"additive": "our cache", "masked": "our cache", "generate": "generate", "recompute": "generate, without a cache"}
    for name in FAMILIES:
        config = make_config(name)
        try:
            family = describe_family(config)
        except StageError as error:
            rows.append(f"| {describe(name)} | refused, {str(error).partition(', ')[2].partition(';')[0]} | | | |")
            continue
        cells = (family.rows, words[family.decoding], "own" if family.ways.own_head else "plain")
        rows.append(f"| {describe(name)} | {' | '.join(cells)} | {'transformers' if family.has_classifier else 'ours'} |")
    page = PAGE.read_text(encoding="utf-8")
    before, found, after = page.partition("<!-- families -->\n")[0], page, page.partition("<!-- /families -->")[2]
    expected = f"{before}<!-- families -->\n" + "\n".join(rows) + f"\n<!-- /families -->{after}"
    assert found == expected, expected


def describe(name):
    """A family's model type, and what of its settings makes another case of it."""
    variant = name.partition("-")[2]
    return f"`{FAMILIES[name][0]}`" + (f" ({variant})" if variant else "")
