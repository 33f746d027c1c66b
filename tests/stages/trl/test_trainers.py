"""Our trainers on TRL: the K-way loss against TRL's own pairs, packing that isolates, accumulation that changes nothing."""

import dataclasses
import itertools

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from data.tokens import EncodedComparison, EncodedPair
from stages.blocks import HardwareSettings
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.settings import RMSettings, SFTSettings
from stages.tracing.training import SFTLoss
from stages.trainer_args import owned_arguments
from stages.trl.rm import collate_comparisons, make_ranking_trainer
from stages.trl.sft import ResponseSFTTrainer, collate_demonstrations, make_sft_trainer
from stages.trl.training import make_arguments, train

HARDWARE = HardwareSettings(device="cpu", precision="float32", attention="eager")


def random_ids(generator, length):
    return torch.randint(4, 800, (length,), generator=generator).tolist()


@pytest.fixture
def context(make_stage):
    spec = make_stage("sft").spec
    spec.checkpoint_dir.mkdir(exist_ok=True)
    return StageContext(spec)


@pytest.fixture
def tokenizer(base_model_dir):
    return load_tokenizer(str(base_model_dir))


@pytest.fixture
def reward_model(base_model_dir, tokenizer):
    model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    align_special_tokens(model, tokenizer)
    return model


@pytest.fixture
def policy(base_model_dir):
    return load_policy(str(base_model_dir), HARDWARE)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rank_nine(generator, tokenizer):
    responses = [[*random_ids(generator, 3 + k), tokenizer.eos_token_id] for k in range(9)]  # unequal lengths
    return {"prompt_ids": random_ids(generator, 12), "responses": responses, "ranks": list(range(1, 10))}


def comparison_of(item):
    return EncodedComparison(item["prompt_ids"], item["responses"], tuple(item["ranks"]), "")


@pytest.mark.parametrize(("attention", "computed"), [("auto", [1, 128]), ("eager", [9, 24])])
def test_nine_answers_of_one_prompt_give_the_loss_and_gradients_of_trls_36_pairs(context, base_model_dir, tokenizer, attention, computed):
    """`computed`: one row with the prompt's 12 tokens once and the answers' 72 (filled up to 128), or nine rows as wide as the longest."""
    hardware = HARDWARE.model_copy(update={"attention": attention})
    reward_model = init_reward_model(str(base_model_dir), hardware, seed=1)
    align_special_tokens(reward_model, tokenizer)
    item = rank_nine(torch.Generator().manual_seed(0), tokenizer)
    ours = make_ranking_trainer(context, RMSettings(), reward_model, tokenizer, [comparison_of(item)], [])
    shapes = []
    hook = reward_model.register_forward_pre_hook(lambda _m, _a, inputs: shapes.append(list(inputs["input_ids"].shape)), with_kwargs=True)
    loss = ours.compute_loss(reward_model, collate_comparisons([item]))
    loss.backward()
    hook.remove()
    our_gradients = gradients(reward_model)
    reward_model.zero_grad()
    assert shapes == [computed]

    prompt, responses = item["prompt_ids"], item["responses"]
    pairs = [{"chosen_ids": prompt + responses[i], "rejected_ids": prompt + responses[j]} for i, j in itertools.combinations(range(9), 2)]
    arguments = RewardConfig(output_dir=str(context.spec.checkpoint_dir), use_cpu=True, bf16=False, report_to=[], max_length=None)
    theirs = RewardTrainer(model=reward_model, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    reference = theirs.compute_loss(reward_model, DataCollatorForPreference(0)(pairs))
    reference.backward()
    assert len(pairs) == 36
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    assert torch.allclose(our_gradients, gradients(reward_model), atol=1e-5)


def test_margins_from_grades_are_trls_own_margins_and_held_out_there_are_none(context, base_model_dir, tokenizer):
    reward_model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    align_special_tokens(reward_model, tokenizer)
    item = rank_nine(torch.Generator().manual_seed(0), tokenizer) | {"grades": [7, 6.5, 6, 6, 4, 3, 3, 2, 1]}
    plain = make_ranking_trainer(context, RMSettings(), reward_model, tokenizer, [comparison_of(item)], [])
    ours = make_ranking_trainer(context, RMSettings(margin="grade", margin_scale=3.0), reward_model, tokenizer, [comparison_of(item)], [])
    reward_model.eval()
    batch = collate_comparisons([item])
    assert ours.compute_loss(reward_model, batch).item() == plain.compute_loss(reward_model, batch).item()
    reward_model.train()
    loss = ours.compute_loss(reward_model, batch)
    loss.backward()
    our_gradients = gradients(reward_model)
    reward_model.zero_grad()

    prompt, responses, grades = item["prompt_ids"], item["responses"], item["grades"]
    pairs = [
        {"chosen_ids": prompt + responses[i], "rejected_ids": prompt + responses[j], "margin": 3 * (grades[i] - grades[j]) / 6}
        for i, j in itertools.combinations(range(9), 2)
    ]
    arguments = RewardConfig(output_dir=str(context.spec.checkpoint_dir), use_cpu=True, bf16=False, report_to=[], max_length=None)
    theirs = RewardTrainer(model=reward_model, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    reference = theirs.compute_loss(reward_model, DataCollatorForPreference(0)(pairs))
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5) and loss.item() > plain.compute_loss(reward_model, batch).item() + 0.1
    assert torch.allclose(our_gradients, gradients(reward_model), atol=1e-5)


def test_ranked_answers_of_unequal_length_score_as_they_do_alone(context, base_model_dir, tokenizer):
    reward_model = init_reward_model(str(base_model_dir), HARDWARE.model_copy(update={"attention": "auto"}), seed=1)
    plain = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
    for model in (reward_model, plain):
        align_special_tokens(model, tokenizer)
    item = rank_nine(torch.Generator().manual_seed(1), tokenizer)
    trainer = make_ranking_trainer(context, RMSettings(), reward_model, tokenizer, [comparison_of(item)], [])
    with torch.no_grad():
        _, outputs = trainer.compute_loss(reward_model, collate_comparisons([item]), return_outputs=True)
        alone = [plain(input_ids=torch.tensor([item["prompt_ids"] + response])).logits[0, 0] for response in item["responses"]]
    assert torch.allclose(outputs["logits"], torch.stack(alone), atol=1e-5)


def pairs_of(generator, count, tokenizer):
    end = tokenizer.eos_token_id
    return [EncodedPair(random_ids(generator, 4 + i % 5), [*random_ids(generator, 3 + i % 7), end]) for i in range(count)]


def last_gradients(trainer):
    """Train one step with learning rate as set and return the averaged gradient that the optimizer saw."""
    seen = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append(gradients(trainer.model).clone()))
    trainer.train()
    return seen[0]


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.slow
def test_sft_accumulation_8x1_equals_1x8(context, base_model_dir, tokenizer, micro_batch_size):
    generator = torch.Generator().manual_seed(2)
    pairs = pairs_of(generator, 8, tokenizer)
    found = []
    for size in (8, micro_batch_size):
        settings = SFTSettings(batch_size=8, micro_batch_size=size, max_grad_norm=1e9, learning_rate=1e-9)
        policy = load_policy(str(base_model_dir), HARDWARE)
        found.append(last_gradients(make_sft_trainer(context, settings, policy, tokenizer, pairs, [])))
    assert torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.slow
def test_rm_accumulation_8x1_equals_1x8(context, base_model_dir, tokenizer):
    generator = torch.Generator().manual_seed(3)
    comparisons = []
    for answers in (2, 3, 4, 2, 3, 4, 2, 3):
        responses = [random_ids(generator, 3 + k) for k in range(answers)]
        comparisons.append(EncodedComparison(random_ids(generator, 6), responses, tuple(range(1, answers + 1)), ""))
    found = []
    for size in (8, 1):
        settings = RMSettings(batch_size=8, micro_batch_size=size, max_grad_norm=1e9, learning_rate=1e-9)
        model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
        align_special_tokens(model, tokenizer)
        found.append(last_gradients(make_ranking_trainer(context, settings, model, tokenizer, comparisons, [])))
    assert torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize(("limit", "packing"), [(None, False), (1, False), (None, True)])
@pytest.mark.slow
def test_sft_without_padding_gives_the_loss_and_gradients_of_trls_batches(context, base_model_dir, tokenizer, monkeypatch, limit, packing):
    """`limit`: with few logits allowed at a time, TRL's tiles compute them."""
    if limit is not None:
        monkeypatch.setattr("stages.trl.sft._MAX_LOGITS", limit)
    pairs = pairs_of(torch.Generator().manual_seed(5), 8, tokenizer)
    settings = SFTSettings(batch_size=8, micro_batch_size=4, packing=packing, max_grad_norm=1e9, learning_rate=1e-9, log_every=1)
    found, losses = [], []
    for attention in ("auto", "eager"):
        policy = load_policy(str(base_model_dir), HARDWARE.model_copy(update={"attention": attention}))
        trainer = make_sft_trainer(context, settings, policy, tokenizer, pairs, [])
        assert isinstance(trainer, ResponseSFTTrainer) == (attention == "auto")
        assert (len(trainer.train_dataset) < len(pairs)) == packing
        found.append(last_gradients(trainer))
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_a_padded_batch_has_the_same_loss_and_gradients_where_its_logits_would_be_too_large(base_model_dir, tokenizer, monkeypatch):
    """Of families that we pad and whose packing is not TRL's: logits are those of prompts and padding too."""
    pairs = pairs_of(torch.Generator().manual_seed(6), 5, tokenizer)
    rows = [
        {"input_ids": pair.prompt_ids + pair.response_ids, "labels": [-100] * len(pair.prompt_ids) + pair.response_ids} for pair in pairs
    ]
    policy = load_policy(str(base_model_dir), HARDWARE.model_copy(update={"attention": "eager"}))
    loss_of, batch, found, shapes = SFTLoss(Accelerator(cpu=True), policy, fused_head_fits=True), collate_demonstrations(rows), [], []
    policy.get_output_embeddings().register_forward_hook(lambda _head, _input, logits: shapes.append(logits.shape))
    for limit in (2**28, 1):
        monkeypatch.setattr("stages.trl.sft._MAX_PADDED_LOGITS", limit)
        policy.zero_grad()
        loss = loss_of.compute_loss(policy, batch)
        loss.backward()
        found.append((loss.item(), gradients(policy)))
    assert len(shapes) == 1 and shapes[0][:2] == (5, max(len(row["input_ids"]) for row in rows))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_packed_demonstrations_do_not_see_their_neighbours(context, base_model_dir, tokenizer, attention):
    """The loss of packed rows equals the token mean over separate ones."""
    policy = load_policy(str(base_model_dir), HARDWARE.model_copy(update={"attention": attention}))
    generator = torch.Generator().manual_seed(4)
    pairs = pairs_of(generator, 6, tokenizer)
    trainer = make_sft_trainer(context, SFTSettings(batch_size=2, micro_batch_size=2, packing=True), policy, tokenizer, pairs, [])
    rows = list(trainer.train_dataset)
    assert len(rows) < len(pairs), "nothing was packed"
    batch = trainer.data_collator(rows)
    policy.eval()
    with torch.no_grad():
        packed = trainer.compute_loss(policy, dict(batch)).item()
        total, tokens = 0.0, 0
        for pair in pairs:
            ids = torch.tensor([pair.prompt_ids + pair.response_ids])
            logits = policy(input_ids=ids).logits.log_softmax(-1)
            for position in range(len(pair.prompt_ids), ids.shape[1]):
                total -= logits[0, position - 1, ids[0, position]].item()
                tokens += 1
    assert packed == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("trainer_args", [{"packing_strategy": "wrapped"}, {"loss_type": "dft"}])
def test_packing_that_is_not_plain_is_left_to_trl(context, base_model_dir, tokenizer, trainer_args):
    policy = load_policy(str(base_model_dir), HARDWARE.model_copy(update={"attention": "auto"}))
    pairs = pairs_of(torch.Generator().manual_seed(5), 8, tokenizer)
    settings = SFTSettings(batch_size=2, micro_batch_size=2, packing=True, learning_rate=1e-9, log_every=1, trainer_args=trainer_args)
    trainer = make_sft_trainer(context, settings, policy, tokenizer, pairs, [])
    assert not isinstance(trainer, ResponseSFTTrainer) and len(trainer.train_dataset) < len(pairs)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_the_loss_ignores_the_prompt(context, policy, tokenizer):
    generator = torch.Generator().manual_seed(5)
    pairs = pairs_of(generator, 2, tokenizer)
    trainer = make_sft_trainer(context, SFTSettings(batch_size=2, micro_batch_size=2), policy, tokenizer, pairs, [])
    batch = trainer.data_collator(list(trainer.train_dataset))
    for row, pair in enumerate(pairs):
        labels = batch["labels"][row].tolist()
        assert labels[: len(pair.prompt_ids)] == [-100] * len(pair.prompt_ids)
        assert labels[len(pair.prompt_ids) : len(pair.prompt_ids) + len(pair.response_ids)] == pair.response_ids
        assert pair.response_ids[-1] == tokenizer.eos_token_id


def test_a_misspelt_trainer_argument_is_refused_with_a_suggestion(context, policy, tokenizer):
    generator = torch.Generator().manual_seed(6)
    settings = SFTSettings(trainer_args={"neftune_noise_alfa": 5})
    with pytest.raises(StageError, match="did you mean neftune_noise_alpha") as caught:
        make_sft_trainer(context, settings, policy, tokenizer, pairs_of(generator, 2, tokenizer), [])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("log_every", [1, 1000])
@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_what_diverges_stops_and_names_the_setting_to_lower(make_stage, base_model_dir, tokenizer, stage, log_every):
    """Seen where it is logged, and at the latest in the weights, before anything is published."""
    models = {"base" if stage == "sft" else "sft": base_model_dir}
    stage_process = make_stage(stage, models=models, learning_rate=1e38, warmup_steps=0, log_every=log_every, save_every=1000)
    context = StageContext(stage_process.spec)
    context.spec.checkpoint_dir.mkdir()
    generator = torch.Generator().manual_seed(7)
    if stage == "sft":
        policy = load_policy(str(base_model_dir), HARDWARE)
        trainer = make_sft_trainer(context, context.spec.settings, policy, tokenizer, pairs_of(generator, 8, tokenizer), [])
    else:
        comparisons = [EncodedComparison(random_ids(generator, 6), [random_ids(generator, 3 + k) for k in range(3)], (1, 2, 3), "")] * 8
        model = init_reward_model(str(base_model_dir), HARDWARE, seed=1)
        align_special_tokens(model, tokenizer)
        trainer = make_ranking_trainer(context, context.spec.settings, model, tokenizer, comparisons, [])
    with pytest.raises(StageError, match=rf"finite ones are needed; lower {stage}.learning_rate \(found 1e\+38\)"):
        train(trainer, context)


@pytest.mark.parametrize("name", ["average_tokens_across_devices", "dataloader_drop_last", "train_sampling_strategy"])
def test_what_would_drop_repeat_or_reweigh_records_is_refused(context, policy, tokenizer, name):
    value = "batch_rebalance" if name == "train_sampling_strategy" else True
    pairs = pairs_of(torch.Generator().manual_seed(6), 2, tokenizer)
    with pytest.raises(StageError, match=rf"sft\.trainer_args\.{name}: found {value!r}, but each record of an epoch comes once"):
        make_sft_trainer(context, SFTSettings(trainer_args={name: value}), policy, tokenizer, pairs, [])


def test_all_that_we_set_of_trls_configs_is_refused_in_trainer_args(context, policy, reward_model, tokenizer):
    """The list that the recipe's checks go by is compared with the configs of real trainers."""
    generator = torch.Generator().manual_seed(6)
    pairs, comparisons = (
        pairs_of(generator, 4, tokenizer),
        [EncodedComparison(**rank_nine(generator, tokenizer), source="") for _ in range(4)],
    )
    settings = {"batch_size": 2, "micro_batch_size": 1, "warmup_steps": 3, "weight_decay": 0.1, "eval_every": 2, "log_every": 3}
    trainers = {
        "sft": make_sft_trainer(context, SFTSettings(packing=True, **settings), policy, tokenizer, pairs, pairs),
        "rm": make_ranking_trainer(context, RMSettings(**settings), reward_model, tokenizer, comparisons, comparisons),
    }
    for stage, trainer in trainers.items():
        plain = type(trainer.args)(output_dir="x", use_cpu=True)
        names = {field.name for field in dataclasses.fields(plain)}
        changed = {name for name in names if getattr(trainer.args, name) != getattr(plain, name)}
        ours_until_changed = {"optim", "ddp_find_unused_parameters"}
        assert changed - {*ours_until_changed, "accelerator_config"} <= owned_arguments(stage).keys(), stage
        # And what we set to what it is anyway.
        assert make_arguments(context, SFTSettings(), True).keys() <= owned_arguments(stage).keys()


def test_a_trainer_argument_goes_over_what_is_only_a_default_of_ours(context, policy, tokenizer):
    settings = SFTSettings(trainer_args={"optim": "adafactor", "max_steps": 3})
    trainer = make_sft_trainer(context, settings, policy, tokenizer, pairs_of(torch.Generator(), 2, tokenizer), [])
    assert (trainer.args.optim, trainer.args.max_steps) == ("adafactor", 3)


def test_a_trainer_argument_of_ours_is_refused_by_the_stage_too(context, policy, tokenizer):
    settings = SFTSettings(trainer_args={"output_dir": "elsewhere"})
    with pytest.raises(StageError, match=r"sft\.trainer_args\.output_dir: found 'elsewhere', but the store") as caught:
        make_sft_trainer(context, settings, policy, tokenizer, pairs_of(torch.Generator(), 2, tokenizer), [])
    assert caught.value.exit_code == 2
