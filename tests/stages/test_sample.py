"""The stage that samples answers: what it leaves, who said what, near-duplicates, and a killed run."""

import json
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.answers import iter_answer_sets
from data.chat import encode_prompts
from data.schema import Message
from stages.blocks import HardwareSettings
from stages.evaluate.answers import unpack_answers
from stages.models.policy import load_policy
from stages.models.reward_model import load_reward_model
from stages.models.tokenizer import load_tokenizer
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.responses.judging import response_text
from stages.responses.scores import score_rankings
from stages.sample import AnswerSlots, main
from stages.sample_choice import draw_random_arm
from stages.spec import DataSource
from tests.stages.family_models import save_with_tokenizer

pytestmark = pytest.mark.slow  # 1 s each
HARDWARE = HardwareSettings.model_validate({"device": "cpu", "precision": "float32", "attention": "eager", "threads": 1})


@pytest.fixture(scope="module")
def models(base_model_dir, tmp_path_factory):
    """Two policies, one some way from the other."""
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(base_model_dir, other)
    path, generator = other / "model.safetensors", torch.Generator().manual_seed(1)
    moved = {name: weight + 0.05 * torch.randn(weight.shape, generator=generator) for name, weight in sorted(load_file(path).items())}
    path.chmod(0o644)
    save_file(moved, path, {"format": "pt"})
    return {"ppo@v1": other, "sft@v1": base_model_dir}


@pytest.fixture
def sample(make_stage, models):
    """A function: settings -> (result, rows, the stage's process), in this process."""

    def sample(tag="run", models=models, **settings):
        stage = make_stage("sample", tag=tag, models=models, rows=16, **settings)
        for directory in (stage.spec.output_dir, stage.spec.checkpoint_dir):
            directory.mkdir()
        result = main(StageContext(stage.spec))
        path = stage.spec.output_dir / "answers.jsonl"
        return result, [json.loads(line) for line in path.read_text().splitlines()], stage

    return sample


def test_policies_answer_in_turn_and_who_said_what_stands_beside_the_answers_in_the_order_shown(sample):
    result, rows, stage = sample()
    assert len(rows) == 6 and all(sorted(row["models"]) == ["ppo@v1", "ppo@v1", "sft@v1"] for row in rows)
    assert len({tuple(row["models"]) for row in rows}) > 1  # the order tells nobody who said what
    source = DataSource.model_validate({"path": str(stage.spec.output_dir / "answers.jsonl")})
    assert [each.models for each in iter_answer_sets(source)] == [tuple(row["models"]) for row in rows]
    assert result.counts["answers"] == 18 and result.metrics["answers"] == 3
    again = sample("again")[1]
    assert again == rows


def test_rounds_take_one_part_of_the_prompts_after_the_other_and_none_twice(sample, models):
    one = {"sft@v1": models["sft@v1"]}
    asked = [[str(row["prompt"]) for row in sample(f"round-{n}", models=one, skip_prompts=6 * n)[1]] for n in range(3)]
    assert [len(part) for part in asked] == [6, 6, 4] and len({prompt for part in asked for prompt in part}) == 16
    with pytest.raises(StageError, match=r"found 16 different prompts, of which sample\.skip_prompts = 16"):
        sample("none", models=one, skip_prompts=16)


def test_near_duplicates_are_sampled_again_and_what_stays_alike_is_left_out_and_told(sample, models):
    # Any two answers are alike at a limit of 0: one stays, and a prompt with one answer is none to rank.
    with pytest.raises(StageError, match="the same answer again and again to each of 6 prompts"):
        sample("all", near_duplicate=0.0, attempts=1)
    # Cold, the policy says nearly the same each time.
    result, rows, stage = sample("cold", models={"sft@v1": models["sft@v1"]}, temperature=0.02, attempts=2, near_duplicate=0.3)
    assert result.counts["resampled"] > 0
    assert result.counts["sets"] == len(rows) == 6 - result.counts["prompts_left_out"]
    assert result.counts["answers"] == sum(len(row["completions"]) for row in rows)
    assert result.counts["sets_with_fewer"] == sum(len(row["completions"]) < 3 for row in rows)
    lost = result.counts["sets_with_fewer"] + result.counts["prompts_left_out"]
    assert ("alike" in [event.get("name") for event in stage.events()]) == (lost > 0)


def test_answers_that_no_reward_model_will_learn_from_are_told_before_people_rank_them(sample, models):
    one = {"sft@v1": models["sft@v1"]}  # random weights seldom say that they are done
    result, _, stage = sample("long", models=one, prompts=3, max_response_tokens=64)  # as long as tokens.max_response_tokens
    told = [event for event in stage.events() if event.get("name") == "cut"]
    assert result.metrics["finished"] < 0.9 and len(told) == 1
    assert "of the answers did not end within 64 tokens: with an end token more than 64" in json.dumps(told)
    assert "cut" not in [event.get("name") for event in sample("short", models=one, prompts=3)[2].events()]


def test_a_run_that_was_killed_goes_on_with_the_policies_that_have_not_answered(sample, make_stage, models):
    _, rows, straight = sample("straight")
    half = make_stage("sample", tag="half", models=models | {"sft@v1": models["sft@v1"].parent / "gone"}, rows=16)
    for directory in (half.spec.output_dir, half.spec.checkpoint_dir):
        directory.mkdir()
    shutil.copytree(straight.spec.checkpoint_dir, half.spec.checkpoint_dir, dirs_exist_ok=True)
    parts = sorted(path.name for path in (half.spec.checkpoint_dir / "sample").iterdir())
    assert parts[:2] == ["policy-0.0.npz", "policy-1.0.npz"]
    (half.spec.checkpoint_dir / "sample" / "policy-0.0.npz").unlink()
    half = half.spec.model_copy(update={"models": {name: str(path) for name, path in models.items()}})
    main(StageContext(half))
    assert [json.loads(line) for line in (half.output_dir / "answers.jsonl").read_text().splitlines()] == rows


def test_a_policy_that_is_decoded_slower_is_told_once(sample, models, tmp_path):
    recurrent = tmp_path / "recurrent"
    base = str(models["sft@v1"])
    base = str(models["sft@v1"])
    save_with_tokenizer("mamba", recurrent, load_tokenizer(base), load_policy(base, HARDWARE).config.vocab_size)
    _, _, stage = sample(models={"sft@v1": recurrent}, near_duplicate=0.5)
    notes = [event["message"] for event in stage.events() if event["event"] == "note"]
    (told,) = (note for note in notes if "decoded" in note)
    assert told.startswith("MambaForCausalLM does not run over our key-value cache: responses are decoded by transformers' generate")


@pytest.fixture
def choosing(models, fresh_reward_model):
    """Models with one to choose, whose head is not trained: it says something else of each answer."""
    return models | {"rm": fresh_reward_model}


CHOICE = {"choose": "deltaucb", "answers": 2, "candidates": 5, "prompts": 6, "random_share": 0.34}


def split_gaps(arrays, sizes):
    """Of each prompt: gaps of all pairs, by two loops, and logits."""
    ends = np.cumsum(sizes)
    for u, logits in zip(np.split(arrays["whitened_NH"], ends)[:-1], np.split(arrays["logits_N"], ends)[:-1], strict=True):
        both = list(zip(logits, u, strict=True))
        yield np.array([[abs(a - b) + np.linalg.norm(p - q) for b, q in both] for a, p in both]), logits


def test_of_more_candidates_those_with_the_largest_gap_are_shown_and_a_share_of_the_prompts_is_left_to_chance(sample, choosing, models):
    result, rows, stage = sample("chosen", models=choosing, **CHOICE)
    arms = [row["arm"] for row in rows]
    assert (arms.count("random"), arms.count("chosen")) == (2, 4) == (result.counts["sets_random"], result.counts["sets_chosen"])
    assert all(len(row["completions"]) == 2 and set(row["models"]) <= {"ppo@v1", "sft@v1"} for row in rows)  # never the reward model
    # What was sampled is on the shelf: gaps from the reward model's own scores, beside the program's states.
    with (
        np.load(stage.spec.output_dir / "states.npz") as shown,
        np.load(stage.spec.checkpoint_dir / "sample" / "states.npz") as all_of_them,
    ):
        shown, all_of_them = dict(shown), dict(all_of_them)
    assert len(all_of_them["logits_N"]) == 4 * 5 + 2 * 2 and len(shown["logits_N"]) == 12
    tokenizer, model = load_tokenizer(str(choosing["rm"])), load_reward_model(str(choosing["rm"]), HARDWARE)
    sampled = {}  # text -> ids: another tokenisation of the same text is another answer
    for path in sorted((stage.spec.checkpoint_dir / "sample").glob("policy-*.npz")):
        with np.load(path) as arrays:
            sampled |= {response_text(tokenizer, ids): ids for ids in unpack_answers(dict(arrays), 1).ids}
    asked = [
        (encode_prompts(tokenizer, [[Message(**each) for each in row["prompt"]]])[0], [sampled[text] for text in row["completions"]])
        for row in rows
    ]
    # In the order of the rows; the calibration is (0.25, 2).
    assert shown["logits_N"] == pytest.approx(score_rankings(model, asked).numpy() * 2.0 + 0.25, abs=1e-4)
    sizes = [2 if row["arm"] == "random" else 5 for row in rows]
    for number, (row, (gaps, logits)) in enumerate(zip(rows, split_gaps(all_of_them, sizes), strict=True)):
        own = shown["logits_N"][2 * number : 2 * number + 2]
        if row["arm"] == "chosen":
            assert sorted(own) == sorted(logits[list(np.unravel_index(gaps.argmax(), gaps.shape))])
    assert result.metrics["gap_chosen"] > 0 and result.metrics["gap_random"] > 0
    assert sample("chosen-again", models=choosing, **CHOICE)[1] == rows


def test_prompts_are_chosen_too_where_more_are_answered_than_shown(sample, choosing):
    result, rows, stage = sample("prompts", models=choosing, **CHOICE | {"prompts": 3, "candidate_prompts": 6, "random_share": 0.3})
    assert [row["arm"] for row in rows].count("random") == 1 and len(rows) == 3
    assert result.counts["prompts"] == 6 and result.counts["prompts_passed_over"] == 3
    # What is kept of those that are not left to chance has the largest gaps.
    at_random = draw_random_arm(stage.spec.settings, 6, stage.spec.seed)
    with np.load(stage.spec.checkpoint_dir / "sample" / "states.npz") as arrays:
        by_prompt = [gaps.max() for gaps, _ in split_gaps(arrays, [2 if chance else 5 for chance in at_random])]
    best = sorted((gap for gap, chance in zip(by_prompt, at_random, strict=True) if not chance), reverse=True)[:2]
    assert result.metrics["gap_chosen"] == pytest.approx(sum(best) / 2, rel=1e-4)


def test_a_run_that_was_killed_after_the_states_were_read_goes_on_without_reading_them_again(sample, make_stage, choosing, tmp_path):
    _, rows, straight = sample("chosen", models=choosing, **CHOICE)
    half = make_stage("sample", tag="half", models=choosing | {"rm": tmp_path / "rm"}, rows=16, **CHOICE).spec
    shutil.copytree(choosing["rm"], tmp_path / "rm", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(straight.spec.checkpoint_dir, half.checkpoint_dir)
    half.output_dir.mkdir()
    main(StageContext(half))
    assert [json.loads(line) for line in (half.output_dir / "answers.jsonl").read_text().splitlines()] == rows
    assert (half.output_dir / "states.npz").read_bytes() == (straight.spec.output_dir / "states.npz").read_bytes()


def test_one_prompt_is_too_few_to_choose_and_to_leave_to_chance(sample, choosing):
    with pytest.raises(StageError, match="found 1 prompt; needed two at least, one of them left to chance"):
        sample("one", models=choosing, **CHOICE | {"prompts": 1})


def test_a_policy_with_another_tokenizer_is_refused(sample, models, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models["sft@v1"], other)
    path = other / "tokenizer_config.json"
    path.chmod(0o644)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages[0].content }}"}))
    (other / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(StageError, match="odd@v1 has another tokenizer or chat template than sft@v1"):
        sample("odd", models={"sft@v1": models["sft@v1"], "odd@v1": other})


def test_a_place_takes_the_first_answer_that_differs_from_all_others():
    slots = AnswerSlots([0, 1, 0])
    assert slots.missing(0) == [0, 2] and slots.missing(1) == [1]
    assert slots.offer(0, "Yes, it is.", 0.9, finished=True)
    assert not slots.offer(1, "yes it is", 0.9, finished=True)
    assert not slots.offer(1, "No\0.", 0.9, finished=True)  # `data.answers` refuses it, and a whole file with it
    assert slots.offer(1, "No.", 0.9, finished=False)
    assert slots.missing(1) == [] and slots.missing(0) == [2] and slots.finished == [True, False, False]


class Served(BaseHTTPRequestHandler):
    """Speaks as a vLLM server does, and answers by whatever weights it was given last: itself a real policy."""

    policy, heard = None, []

    def do_GET(self):
        self._say({"data": [{"id": "base", "parent": None}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        path = self.path.partition("?")[0]
        Served.heard.append(asked.get("method", path))
        if asked.get("method") == "reload_weights":
            Served.policy = load_policy(asked["kwargs"]["weights_path"], HARDWARE)
        if path == "/v1/completions":
            self._say({"choices": [self._answer(asked)]})
        else:
            self._say({"success": True})

    def _answer(self, asked):
        generator = torch.Generator().manual_seed(asked["seed"] % 2**63)
        ids = [asked["prompt"]]
        said, logprobs = [], []
        while len(said) < asked["max_tokens"] and (not said or said[-1] not in asked["stop_token_ids"]):
            with torch.no_grad():
                logits = Served.policy(torch.tensor([ids[0] + said])).logits[0, -1] / asked["temperature"]
            said.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
            logprobs.append(float(logits.log_softmax(-1)[said[-1]]))
        return {"token_ids": said, "logprobs": {"token_logprobs": logprobs}}

    def _say(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


def test_a_server_is_given_each_policys_weights_in_turn_and_answers_by_them(sample, models):
    server = HTTPServer(("127.0.0.1", 0), Served)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        rollout = {"engine": "vllm", "server": f"http://127.0.0.1:{server.server_port}"}
        given = {"answers": 2, "prompts": 3, "max_response_tokens": 5, "temperature": 1e-7, "near_duplicate": 1.0, "attempts": 0}
        _, rows, _ = sample("served", rollout=rollout, **given)
    finally:
        server.shutdown()
        server.server_close()
    assert Served.heard[:1] == ["update_config"]  # own weights from now on
    assert [each for each in Served.heard if each == "reload_weights"] == ["reload_weights"] * 2
    places = [place for place, each in enumerate(Served.heard) if each == "reload_weights"]
    assert Served.heard[places[0] :].count("/v1/completions") == 6 and Served.heard[places[1] :].count("/v1/completions") == 3
    # So cold that noise decides nothing: what each policy says is what it says by its own forward.
    own = sample("own", **given)[1]
    assert [dict(zip(row["models"], row["completions"], strict=True)) for row in rows] == [
        dict(zip(row["models"], row["completions"], strict=True)) for row in own
    ]
    assert len(rows) == 3
