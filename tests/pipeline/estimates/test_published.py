"""Published runs through `plan --cost` itself, by configurations alone: each within a factor of 1.5."""

from pytest import approx, fixture, mark

from tests.pipeline.estimates.published import make_plan, plan_on_many, plan_on_one


@fixture
def place(tmp_path, warm):
    """A directory for configurations, and traces that start warm."""
    return tmp_path


@mark.slow
def test_instructgpts_sft_took_4_9_petaflop_days(place):
    """16 epochs of 12,725 prompts, packed into windows of 2,048 tokens, of which the paper pays each."""
    windows = "tokens={max_prompt_tokens: 1024, max_response_tokens: 1024}"
    changes = [windows, "sft={epochs: 16, packing: true, eval_samples: 0}"]
    _, made = make_plan(place, "gpt-3", "v100-32", "sft", changes, demonstrations=12_725)
    days = made.stages[0].parts[0].operations / 1e15 / 86_400
    assert days == approx(5.05, rel=0.02)
    assert 4.9 / 1.5 < days < 4.9 * 1.5


@mark.slow
def test_deepspeed_chats_13b_took_9_hours_on_8_a100_and_1_25_on_64(place):
    hours = plan_on_many(place, "opt-13b", (8, 64))
    assert hours == approx([7.0, 1.5], rel=0.03)  # as the page of this room says
    assert 9 / 1.5 < hours[0] < 9 * 1.5 and 1.25 / 1.5 < hours[1] < 1.25 * 1.5


@mark.slow
def test_deepspeed_chats_1_3b_took_1_2_hours_on_one_a6000(place):
    hours = plan_on_one(place)
    assert hours == approx(1.60, rel=0.03)  # as the page of this room says
    assert 1.2 / 1.5 < hours < 1.2 * 1.5
