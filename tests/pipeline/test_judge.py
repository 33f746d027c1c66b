"""Who judges is looked at before anything trains: it is in the cache key of what asks it, can be reached, and can be opened."""

import pytest

from pipeline.contract import make_spec, read_result
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.prepare import prepare
from pipeline.judge import doubt_judge, try_judge
from pipeline.launch.failure import StageFailed
from pipeline.plan import Decision, decide
from pipeline.recipe.load import load_recipe
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages.blocks import EndpointSettings
from stages.spec import EXIT_VERIFICATION
from tests.chat_server import ChatServer

LLM = ["evaluate={}", "evaluate.judge.llm.url=http://127.0.0.1:1/v1", "evaluate.judge.llm.model=big", "evaluate.judge.llm.retries=0"]


@pytest.fixture
def keys(store, recipe_path):
    """A function: overrides -> {stage: cache key}, as if no stage had a parent."""

    class AnyParent(dict):
        def __missing__(self, kind):
            return type("Parent", (), {"content_id": kind})

    def keys(*overrides):
        recipe = load_recipe(recipe_path, overrides)
        inputs = prepare(recipe, store.root, recipe.stages)
        return {stage: decide(stage, recipe, inputs, AnyParent(), store).key for stage in recipe.stages}

    return keys


def test_the_judge_of_evaluate_is_in_its_cache_key_alone_and_how_it_is_asked_is_not(keys):
    before, with_llm = keys("evaluate={}"), keys(*LLM)
    changed = {stage for stage in before if before[stage] != with_llm[stage]}
    assert changed == {"evaluate"}
    for same in ("concurrency=2", "timeout_s=5", "api_key_env=MY_KEY"):
        assert keys(*LLM, f"evaluate.judge.llm.{same}") == with_llm
    for other in ("instructions=be kind", "model=small", "samples=2", "request={seed: 1}"):
        assert keys(*LLM, f"evaluate.judge.llm.{other}")["evaluate"] != with_llm["evaluate"]
    # Evaluate does not ask the recipe's judge then.
    assert keys(*LLM, "judge=data.demo.rule:judge")["evaluate"] == with_llm["evaluate"]
    assert keys("evaluate={}", "judge=data.demo.rule:judge")["evaluate"] != before["evaluate"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["evaluate.judge={}"], "evaluate.judge: found neither of llm and reward_model, needed one of them"),
        (["sft.judge={}"], "sft.judge: found neither of llm and reward_model, needed one of them; give one, or leave this judge out"),
        ([*LLM[1:], "evaluate.judge.reward_model=rm"], "evaluate.judge: found both of llm and reward_model"),
        (["evaluate.judge.llm.url=http://h/v1"], "evaluate.judge.llm.model: missing"),
        ([*LLM[1:], "evaluate.judge.llm.url=h:8000"], "evaluate.judge.llm.url: found 'h:8000', needed http:// or https://"),
        ([*LLM[1:], "evaluate.judge.llm.api_key_env=mine"], "evaluate.judge.llm.api_key_env: found 'mine', not the name of a secret"),
        ([*LLM[1:], "evaluate.judge.llm.max_cost=2"], "evaluate.judge.llm: max_cost = 2 needs price_per_1m_input"),
    ],
)
def test_settings_that_cannot_hold_are_one_line_with_their_place(recipe_path, overrides, told):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path, ["evaluate={}", *overrides])
    (line,) = caught.value.problems
    assert line.startswith("--set: " + told)


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_shown(recipe_path):
    key = "sk-proj-0123456789abcdefghij"
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_path, [*LLM, f"evaluate.judge.llm.api_key_env={key}"])
    assert "api_key_env: found a secret" in str(caught.value) and key not in str(caught.value)
    with pytest.raises(ValueError, match="found no name") as refused:
        EndpointSettings(url="http://h/v1", model="m", api_key_env="my-own-key-1234")
    assert "found 'my-own" not in str(refused.value)


def test_a_language_model_is_asked_something_tiny_and_told_where_it_does_not_answer(store, recipe_path):
    recipe = load_recipe(recipe_path, LLM)
    inputs = prepare(recipe, store.root, ["evaluate"])
    with pytest.raises(ConfigError) as caught:
        try_judge(recipe, inputs, ["evaluate"])
    (line,) = caught.value.problems
    assert line.startswith("--set: evaluate.judge.llm: big at http://127.0.0.1:1/v1: ConnectError")
    with ChatServer(lambda _: "OK").serving() as server:
        recipe = load_recipe(recipe_path, [*LLM, f"evaluate.judge.llm.url={server.url}"])
        try_judge(recipe, inputs, ["evaluate"])
        try_judge(recipe, inputs, ["sft", "rm", "ppo"])  # which do not ask it
    assert len(server.asked) == 1


def test_an_artifact_is_a_judge_if_it_is_a_reward_model(store, publish, recipe_path):
    publish(store, "rm")
    publish(store, "ppo")

    def find(name):
        recipe = load_recipe(recipe_path, ["evaluate={}", f"evaluate.judge.reward_model={name}"])
        return prepare(recipe, store.root, ["evaluate"]).judge_models.get("evaluate")

    found = find("rm@v1")
    assert found == find("rm") and found.path == str(store.get("rm").model_path)
    assert found.identity == f"artifact:{store.get('rm').content_id}"
    with pytest.raises(ConfigError, match=r"--set: evaluate.judge.reward_model: found ppo@v1, which is no reward model"):
        find("ppo@v1")
    with pytest.raises(ConfigError, match=r"--set: evaluate.judge.reward_model: .*rm@v7"):
        find("rm@v7")
    assert find("some/hub-model").path == "some/hub-model"


def test_sft_is_not_judged_by_whichever_reward_model_is_the_newest(store, publish, recipe_path):
    publish(store, "rm")
    chosen_by = ["sft.publish=best", "sft.publish_by=judge", "sft.eval_samples=4"]
    recipe = load_recipe(recipe_path, [*chosen_by, "sft.judge.reward_model=rm"])
    with pytest.raises(ConfigError, match=r"--set: sft.judge.reward_model: found rm, the newest one, .* give rm@v1 or the like"):
        prepare(recipe, store.root, ["sft"])
    recipe = load_recipe(recipe_path, [*chosen_by, "sft.judge.reward_model=rm@v1"])
    assert "sft" in prepare(recipe, store.root, ["sft"]).judge_models


def test_a_judge_that_is_damaged_or_withdrawn_is_refused_as_any_input_of_a_stage(store, publish, recipe_path):
    judge = publish(store, "rm")
    recipe = load_recipe(recipe_path, ["evaluate={}", "evaluate.judge.reward_model=rm@v1"])
    file = judge.model_path / "config.json"
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(StoreError, match="rm@v1 is damaged") as damaged:
        prepare(recipe, store.root, ["evaluate"])
    file.write_bytes(content)
    withdraw(store.root, {"rm@v1": Withdrawal(seal=judge.seal, reason="it learnt from her", at="now")})
    with pytest.raises(StoreError, match=r"--set: evaluate.judge.reward_model: rm@v1 is withdrawn: it learnt from her") as withdrawn:
        prepare(recipe, store.root, ["evaluate"])
    assert damaged.value.exit_code == withdrawn.value.exit_code == EXIT_VERIFICATION


def test_a_judge_that_ppo_learns_from_is_doubted_before_anything_trains_and_so_is_its_twin(store, publish, recipe_path):
    def doubt(name, reward_model):
        recipe = load_recipe(recipe_path, ["evaluate={}", f"evaluate.judge.reward_model={name}"])
        return doubt_judge(recipe, prepare(recipe, store.root, ["evaluate"]), reward_model)

    recipe = load_recipe(recipe_path, ["evaluate={}"])
    inputs = prepare(recipe, store.root, ["evaluate"])
    other_files, third_files = ({"model/config.json": b"{}", "model/model.safetensors": weights} for weights in (b"2", b"3"))
    same = {"comparisons.train": inputs.readings["comparisons"].fingerprints["train"]}
    proxy, twin, other = publish(store, "rm", data=same), publish(store, "rm", other_files, data=same), publish(store, "rm", third_files)
    assert "found rm@v1, the very reward model that PPO learns from; needed one that PPO does not learn from" in doubt("rm@v1", proxy)
    assert "found rm@v2, which learnt from the comparisons of this recipe's reward model" in doubt("rm@v2", proxy)
    assert doubt("rm@v1", None) and doubt("rm@v3", proxy) is None and doubt_judge(recipe, inputs, proxy) is None
    assert len({artifact.content_id for artifact in (proxy, twin, other)}) == 3


@pytest.mark.slow  # the warm server imports torch
@pytest.mark.usefixtures("warm")
def test_a_reward_model_that_cannot_be_opened_is_told_before_anything_trains(store, recipe_path, tmp_path):
    (tmp_path / "empty").mkdir()
    recipe = load_recipe(recipe_path, ["evaluate={}", f"evaluate.judge.reward_model={tmp_path / 'empty'}"])
    inputs = prepare(recipe, store.root, ["evaluate"])
    with pytest.raises(ConfigError, match=r"--set: evaluate.judge.reward_model: .*empty cannot be opened by AutoTokenizer"):
        try_judge(recipe, inputs, ["evaluate"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nope", "evaluate.probes: .*found no function nope"),
        ("raises", "evaluate.probes: mine_14:raises raised KeyError: 'x'; mend it, or leave it out"),
        ("lists", r"evaluate.probes: mine_14:lists returned \['a'\], needed texts by name"),
        ("ends", r"evaluate.probes: mine_14:ends ended its process with exit code 0"),
    ],
)
@pytest.mark.slow  # 2 s, a process each
def test_probes_that_are_none_are_told_before_anything_trains(store, recipe_path, name, told):
    code = "def raises(prompt, answer): raise KeyError('x')\ndef lists(prompt, answer): return ['a']\ndef fine(prompt, answer): return {}\n"
    code += "import os\ndef ends(prompt, answer): os._exit(0)\n"
    (recipe_path.parent / "mine_14.py").write_text(code)
    for probes in (name, "fine"):
        recipe = load_recipe(recipe_path, [f"evaluate.probes=mine_14:{probes}"])
        inputs = prepare(recipe, store.root, ["evaluate"])
        if probes == "fine":
            try_judge(recipe, inputs, ["evaluate"])
        else:
            with pytest.raises(ConfigError, match=f"--set: {told}"):
                try_judge(recipe, inputs, ["evaluate"])


def test_which_step_of_sft_is_published_is_in_its_cache_key_only_where_it_is_chosen(keys):
    before = keys()["sft"]
    assert keys("sft.publish=last", "sft.publish_by=judge")["sft"] == before
    by_loss = keys("sft.publish=best")["sft"]
    by_judge = keys("sft.publish=best", "sft.publish_by=judge", "judge=data.demo.rule:judge")["sft"]
    assert len({before, by_loss, by_judge, keys("judge=data.demo.rule:judge")["sft"]}) == 4
    own = [word.replace("evaluate", "sft") for word in LLM[1:]]
    assert keys(*own)["sft"] == before and keys("sft.publish=best", *own)["sft"] == by_loss  # of which nobody asks
    by_llm = keys("sft.publish=best", "sft.publish_by=judge", *own)
    assert by_llm["sft"] not in (before, by_loss, by_judge) and by_llm["rm"] == keys()["rm"]
    assert keys("sft.publish=best", "sft.publish_by=judge", *own, "sft.judge.llm.timeout_s=5") == by_llm


def test_evaluate_is_given_the_judges_model_and_where_replies_are_kept(store, publish, recipe_path, tmp_path):
    parents = {stage: publish(store, stage) for stage in ("sft", "rm", "ppo")}
    other = publish(store, "rm", {"model/config.json": b"{ }"})
    recipe = load_recipe(recipe_path, ["evaluate={}", "evaluate.judge.reward_model=rm@v2"])
    inputs = prepare(recipe, store.root, ["evaluate"])
    decision = Decision("evaluate", "run", parents=parents, key="0" * 64)
    spec = make_spec(recipe, inputs, decision, tmp_path / "output", tmp_path / "run", store.root)
    assert spec.models["judge"] == str(other.model_path) and spec.models["rm"] == str(parents["rm"].model_path)
    assert spec.replies_dir == store.root / "replies"


@pytest.mark.parametrize(
    ("code", "told"), [("os._exit(0)", "ended its process with exit code 0, needed an answer"), ("print('answered')", None)]
)
@pytest.mark.slow  # 2 s, a process each
def test_a_judge_that_ends_its_process_as_if_all_were_well_is_told_before_anything_trains(store, recipe_path, code, told):
    (recipe_path.parent / "mine_15.py").write_text(f"import os\ndef judge(prompt, response, finished):\n    {code}\n    return 1.0\n")
    recipe = load_recipe(recipe_path, ["judge=mine_15:judge"])
    inputs = prepare(recipe, store.root, ["sft"])
    if told is None:
        try_judge(recipe, inputs, ["sft"])
    else:
        with pytest.raises(ConfigError, match=rf"--set: judge: mine_15:judge {told}"):
            try_judge(recipe, inputs, ["sft"])


def test_a_stage_whose_process_was_ended_as_if_all_were_well_says_what_can_do_that(tmp_path):
    with pytest.raises(
        StageFailed, match=r"^sft: its process ended with exit code 0 before it was done, .* \(os._exit in a judge\); mend that"
    ):
        read_result("sft", tmp_path, tmp_path)
