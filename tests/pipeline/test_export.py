"""Artifacts become plain directories with a card, whole or not at all."""

import pytest
from huggingface_hub import ModelCard

from pipeline.errors import StoreError
from pipeline.export import export

POLICY = {"model/config.json": b"{}", "model/model.safetensors": b"weights"}


def test_the_card_is_one_that_the_hub_reads(store, tmp_path, publish):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    parent = publish(store, facts={"base_model": str(base)})
    metrics = {"eval/sampled/score": 0.5, "eval/sampled/kl": float("nan"), "eval/sampled/judge_score": 83.0, "objective/kl": 4.0}
    metrics["eval/sampled/score_se"] = 0.1
    artifact = publish(
        store,
        "ppo",
        files=POLICY,
        parents=[{"ref": parent.ref, "content_id": parent.content_id}],
        facts={"base_model": "/home/ann/store/sft/model", "architecture": "Llama"},
        metrics=metrics,
        intervals={"eval/sampled/score": {"low": 0.25, "high": 0.75, "n": 200}},
        warnings=[{"name": "kl", "message": "KL is far"}],
        counts={"prompts": 1500},
    )
    export(store, "ppo", tmp_path / "out", merge=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"sampled/score": 0.5, "sampled/judge_score": 83.0}  # no NaN, nothing that is not held out
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == ("apache-2.0", "text-generation", "transformers")
    assert card.data.base_model is None  # a path of this machine is nobody's model
    assert "score_se" not in card.content  # its interval says it
    assert "/home/ann" not in card.content and str(tmp_path) not in card.content
    for line in (
        f"# {artifact.ref}",
        f"- `{parent.ref}`, content id `{parent.content_id}`",
        "- Warned of while it was trained: `KL is far`",
        "| `eval/sampled/score` | 0.5 | 0.25 to 0.75 | 200 |",
    ):
        assert line in card.content.splitlines()


def test_a_base_of_the_hub_and_its_data_are_named(store, tmp_path, publish):
    recipe = b'{"data": {"prompts": {"train": {"path": "ann/questions"}, "eval": {"path": "/data/mine.jsonl"}}, "texts": null}}'
    publish(store, "ppo", files=POLICY | {"config.yaml": recipe}, facts={"base_model": "ann/tiny"}, data={"prompts.train": "sha256:ab"})
    export(store, "ppo", tmp_path / "out", merge=True)  # whole already
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.base_model, data.datasets) == ("ann/tiny", ["ann/questions"])


def test_what_a_user_wrote_stays_text_in_the_card(store, tmp_path, publish):
    facts = {"base_model": "x: [y\n---\n# z", "architecture": "`</script>"}
    metrics = {"eval/judge_a|b`\n# c": 1.0}
    publish(store, "ppo", files=POLICY, facts=facts, metrics=metrics)
    export(store, "ppo", tmp_path / "out", merge=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "x: [y --- # z"
    assert not any(line.startswith(("# z", "# c")) for line in card.content.splitlines())
    assert "| `eval/judge_a\\|b' # c` | 1 | | |" in card.content.splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_what_cannot_be_merged_or_cast_leaves_nothing(store, tmp_path, publish):
    publish(store, "ppo", files=POLICY)  # no safetensors at all
    for arguments in ({"merge": False, "dtype": "bfloat16"},):
        with pytest.raises(StoreError, match="ppo@v1: ") as caught:
            export(store, "ppo", tmp_path / "new" / "out", **arguments)
        assert caught.value.exit_code == 1
    assert not (tmp_path / "new" / "out").exists() and not list((tmp_path / "new").iterdir())
