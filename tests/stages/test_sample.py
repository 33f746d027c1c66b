"""The stage that samples answers: what it leaves, who said what, near-duplicates, and a killed run."""

import json
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.answers import iter_answer_sets
from stages.blocks import HardwareSettings
from stages.models.policy import load_policy
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.sample import AnswerSlots, main
from stages.spec import DataSource

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
