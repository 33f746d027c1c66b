"""What was changed in a recipe is told where an artifact is reused all the same."""

import pytest

from pipeline.plan import Selection, plan
from pipeline.recipe.load import load_recipe
from pipeline.report.tables import plan_data, print_plan
from pipeline.store.store import Store


@pytest.fixture
def told(finished_run):
    """A function: overrides -> what is told of the stages, all of which are reused, by stage."""

    def told(*overrides):
        decisions = plan(load_recipe(finished_run.recipe_path, overrides), Store(finished_run.store), Selection())
        assert {decision.action for decision in decisions} == {"reuse"}
        assert [row["idle"] for row in plan_data(decisions)] == [decision.idle for decision in decisions]
        return {decision.stage: decision.idle for decision in decisions if decision.idle}

    return told


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft.publish_by=judge", 'sft.publish_by changed "loss" -> "judge", which acts only with sft.publish: best'),
        ("ppo.publish_max_kl=3", "ppo.publish_max_kl changed null -> 3.0, which acts only with ppo.publish: best"),
        ("rm.margin_scale=2", "rm.margin_scale changed 1.0 -> 2.0, which acts only with rm.margin: grade"),
        ("ppo.eval_every=3", "ppo.eval_every changed 50 -> 3, which only says how it runs"),
        ("ppo.rollout.sleep=true", "ppo.rollout.sleep changed null -> true, which only says how it runs"),
    ],
)
def test_a_setting_that_reuses_a_stage_says_with_what_it_acts(told, override, said):
    assert told(override) == {said.partition(".")[0]: [said]}


def test_an_unchanged_recipe_and_what_is_no_setting_of_a_stage_say_nothing(told):
    assert told() == told("name=other", "hardware.threads=1") == {}


def test_samples_that_stay_as_they_were_made_are_told(told, finished_run):
    acts = 'data.samples changed "on" -> "off", which acts on what is made from now on'
    line = acts + ": {}@v1 has its samples as they were made; --force makes it anew"
    assert told("data.samples=off") == {stage: [line.format(stage)] for stage in ("sft", "rm", "ppo")}
    assert all((Store(finished_run.store).get(stage).path / "samples.jsonl").exists() for stage in ("sft", "rm", "ppo"))
    assert told("private=true").keys() == {"sft", "rm", "ppo"}


def test_a_plan_prints_it(finished_run, capsys):
    from pipeline.cli.options import make_console

    decisions = plan(load_recipe(finished_run.recipe_path, ["rm.margin_scale=2"]), Store(finished_run.store), Selection())
    print_plan(make_console(), decisions)
    assert "rm   reuse    rm@v1; rm.margin_scale changed 1.0 -> 2.0, which acts only with rm.margin: grade" in capsys.readouterr().out
