"""Continued pre-training, in this process: what it learns, what it leaves, and that SFT starts from it."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.tokens import EncodedPair
from stages import pretrain, sft
from stages.models.policy import load_policy
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.trl.sft import ResponseSFTTrainer, make_language_trainer

pytestmark = pytest.mark.slow  # a stage each


@pytest.fixture(scope="module")
def run(make_stage_in, plain_hardware, tmp_path_factory):
    """run(stage, program, **settings) -> (spec, result, notes), packed as for users."""

    def run(stage, program, attention="auto", **settings):
        hardware = plain_hardware.model_copy(update={"attention": attention})
        spec = make_stage_in(tmp_path_factory.mktemp("run"), stage, hardware=hardware, **settings).spec
        spec.output_dir.mkdir()
        spec.checkpoint_dir.mkdir()
        result = program.main(StageContext(spec))
        events = [json.loads(line) for line in spec.events_path.read_text().splitlines()]
        return spec, result, [event["message"] for event in events if event["event"] == "note"]

    return run


@pytest.fixture(scope="module")
def bare_base(base_model_dir, tmp_path_factory):
    """The base model as base models are: its tokenizer has no chat template, no pad token, and here no end token but in the config."""
    directory = shutil.copytree(base_model_dir, tmp_path_factory.mktemp("bare") / "base")
    (directory / "chat_template.jinja").unlink()
    config = json.loads((directory / "tokenizer_config.json").read_text())
    del config["pad_token"], config["eos_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def pretrained(run, bare_base):
    return run("pretrain", pretrain, models={"base": bare_base}, rows=120, learning_rate=3e-3, epochs=3)


def texts_of(spec, split):
    return [json.loads(line)["text"] for line in (spec.output_dir.parent / f"texts.{split}.jsonl").read_text().splitlines()]


def mean_loss(model_dir, texts, tokenizer):
    """The plain likelihood of whole texts, each by itself: mean over all tokens but the first of each."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    losses = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            losses += torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none").tolist()
    return sum(losses) / len(losses), len(losses)


def test_the_perplexity_of_held_out_texts_falls_and_is_that_of_plain_forwards(pretrained, bare_base):
    spec, result, _ = pretrained
    tokenizer = AutoTokenizer.from_pretrained(spec.output_dir / "model")
    loss, num_tokens = mean_loss(spec.output_dir / "model", texts_of(spec, "eval"), tokenizer)
    assert result.metrics["eval/loss"] == pytest.approx(loss, abs=1e-4)
    assert result.metrics["eval/perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.metrics["eval/perplexity"] < math.exp(mean_loss(bare_base, texts_of(spec, "eval"), tokenizer)[0]) / 20
    assert result.counts["held_out_text_tokens"] == num_tokens
    assert result.counts["rows"] < result.counts["pieces"] == result.counts["texts_used"] == 120


def test_it_leaves_the_tokenizer_as_it_was(pretrained, bare_base):
    spec, result, _ = pretrained
    before, after = (AutoTokenizer.from_pretrained(path) for path in (bare_base, spec.output_dir / "model"))
    assert (before.eos_token, after.eos_token) == (None, "<|end|>")  # the one that the model's config names
    assert after.pad_token is after.chat_template is None
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    assert result.facts.pad_token_id is None and result.facts.form == "full"


def test_samples_continue_the_beginnings_of_held_out_texts(pretrained):
    spec, _, _ = pretrained
    rows = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows] == ["sampled"] * 4 + ["greedy"] * 4
    for row, text in zip(rows, texts_of(spec, "eval")[:4] * 2, strict=True):
        assert text.startswith(row["prompt"]) and 0 < len(row["prompt"]) < len(text) and row["response"]


def test_sft_starts_from_what_it_leaves(pretrained, run, bare_base):
    models = [pretrained[0].output_dir / "model", bare_base]
    (spec, after, notes), (_, without, notes_without) = [
        run("sft", sft, models={"base": path}, rows=16, epochs=1, learning_rate=1e-9, eval_samples=0) for path in models
    ]
    paths = (models[0], spec.output_dir / "model")
    start, end = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in paths)
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)
    assert after.metrics["eval/loss"] < without.metrics["eval/loss"] - 1
    # Template, end and pad token are settled as on the base model itself.
    changed = {name for name, value in after.facts if value != getattr(without.facts, name)}
    assert changed == {"base_model"} and notes[0] == notes_without[0] and notes[0].startswith("chat template: ")


def test_an_adapter_is_left_and_merged_on_request(run, bare_base):
    spec, result, _ = run("pretrain", pretrain, models={"base": bare_base}, epochs=1, lora={"rank": 4, "merge": True})
    assert result.facts.form == "adapter"
    frozen, merged = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in (bare_base, spec.output_dir / "merged")
    )
    assert not torch.equal(merged["model.layers.0.mlp.up_proj.weight"], frozen["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(merged["model.embed_tokens.weight"], frozen["model.embed_tokens.weight"])


def test_where_our_attention_does_not_fit_each_piece_is_a_row_and_the_loss_is_the_same(make_stage, base_model_dir, plain_hardware):
    tokenizer = AutoTokenizer.from_pretrained(base_model_dir)
    generator = torch.Generator().manual_seed(0)
    pieces = [EncodedPair([5], torch.randint(4, 800, (length,), generator=generator).tolist()) for length in (3, 9, 1, 15, 4, 15)]
    losses = {}
    for attention in ("auto", "eager"):
        spec = make_stage("pretrain", tag=attention).spec
        spec.checkpoint_dir.mkdir()
        policy = load_policy(str(base_model_dir), plain_hardware.model_copy(update={"attention": attention}))
        packing = attention == "auto"
        trainer = make_language_trainer(StageContext(spec), spec.settings, policy, tokenizer, pieces, [], max_length=16, packing=packing)
        assert isinstance(trainer, ResponseSFTTrainer) == packing
        rows = list(trainer.train_dataset)
        assert (len(rows) < 6) == packing
        batch = trainer.data_collator(rows)
        with torch.no_grad():
            losses[attention] = trainer.compute_loss(policy, dict(batch)).item()
    assert losses["auto"] == pytest.approx(losses["eager"], abs=1e-5)


def test_texts_that_hold_a_control_tokens_text_are_told(run, base_model_dir, make_stage, plain_hardware):
    stage = make_stage("pretrain", hardware=plain_hardware, epochs=0.1, eval_samples=0)
    (stage.spec.output_dir.parent / "texts.train.jsonl").write_text('{"text": "one<|end|>two"}\n{"text": "three four"}\n')
    stage.spec.output_dir.mkdir()
    stage.spec.checkpoint_dir.mkdir()
    pretrain.main(StageContext(stage.spec))
    notes = [event["message"] for event in stage.events() if event["event"] == "note"]
    assert notes and notes[0].startswith("1 of the texts holds the text of a control token")


def test_rows_longer_than_the_models_positions_are_refused(make_stage):
    stage = make_stage("pretrain", sequence_length=10_000)
    with pytest.raises(
        StageError, match=r"pretrain.sequence_length: found 10000, needed at most the \d+ positions of .*; lower it"
    ) as caught:
        pretrain.main(StageContext(stage.spec))
    assert caught.value.exit_code == 2
