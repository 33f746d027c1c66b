"""A list of sources in a recipe: published rankings by ref, weights, what the key and the plan say of them, and what is refused."""

import json

import pytest

from data.load import load_records
from data.records import parse_row
from pipeline.cli.options import open_recipe
from pipeline.contract import make_spec
from pipeline.errors import ConfigError, StoreError
from pipeline.inputs import mixing
from pipeline.inputs.prepare import prepare
from pipeline.plan import Selection, decide, plan
from pipeline.privacy.forget import forget
from pipeline.privacy.lists import open_secret
from pipeline.privacy.trace import hash_asked
from pipeline.recipe.load import load_recipe
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION

STAGES = ("sft", "rm")


def rows_of(numbers):
    rows = [{"prompt": f"ranked {n}", "completions": [f"good {n}", f"bad {n}"], "ranks": [1, 2]} for n in numbers]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def rank(store, publish):
    """A function: numbers of questions -> published rankings of them, of which the last two are held out."""

    def rank(numbers, held_out=None):
        numbers = list(numbers)
        held_out = numbers[-2:] if held_out is None else held_out
        files = {"train.jsonl": rows_of(n for n in numbers if n not in held_out), "eval.jsonl": rows_of(held_out)}
        return publish(store, "rankings", files, data={"comparisons.train": "sha256:" + "1" * 64})

    return rank


@pytest.fixture
def read(recipe_path, store):
    """A function: sources as YAML -> (recipe, inputs)."""

    def read(sources, *overrides):
        recipe = load_recipe(recipe_path, [f"data.comparisons.train={sources}", *overrides])
        return recipe, prepare(recipe, store.root, STAGES)

    return read


def rows_in(source):
    return load_records(source, "comparisons")


def test_rankings_by_ref_are_mixed_in_and_bring_their_held_out_list(read, rank, store, tmp_path):
    rank(range(6))
    recipe, inputs = read("[comparisons.jsonl, {ref: rankings@v1, weight: 2.0}]".replace("comparisons", f"{tmp_path}/project/comparisons"))
    splits = inputs.data["comparisons"]
    train, held_out = rows_in(splits.train), rows_in(splits.eval)
    assert [record.source for record in train].count("rankings@v1") == 4
    assert [record.source for record in held_out].count("rankings@v1") == 2 and len(held_out) == 3  # and a share of the others
    assert inputs.weights == {"comparisons": 1.0, "rankings@v1": 2.0} and [each.ref for each in inputs.rankings] == ["rankings@v1"]
    decision = decide("sft", recipe, inputs, {}, store)
    assert make_spec(recipe, inputs, decision, tmp_path, tmp_path, store.root).weights == {}
    again = prepare(recipe, store.root, STAGES, trust_notes=True, keep_notes=False)
    assert again.fingerprints("rm", recipe) == inputs.fingerprints("rm", recipe)


def test_grades_of_rankings_stay_in_the_mixture(read, publish, store, tmp_path):
    graded = rows_of(range(6)).replace(b'"ranks"', b'"grades": [7, 2.5], "ranks"')
    files = {"train.jsonl": graded, "eval.jsonl": rows_of(range(6, 9))}
    publish(store, "rankings", files, data={"comparisons.train": "sha256:" + "1" * 64})
    _, inputs = read(f"[{tmp_path}/project/comparisons.jsonl, {{ref: rankings@v1}}]")
    train = rows_in(inputs.data["comparisons"].train)
    assert [record.grades for record in train if record.source == "rankings@v1"] == [(7.0, 2.5)] * 6
    assert {record.grades for record in train if record.source != "rankings@v1"} == {()}


def test_the_plan_says_which_rankings_came(recipe_path, read, rank, store, publish):
    first = load_recipe(recipe_path)
    inputs = prepare(first, store.root, STAGES)
    sft = publish(store, cache_key=decide("sft", first, inputs, {}, store).key)
    made = decide("rm", first, inputs, {"sft": sft}, store)

    def say(*sources):
        where = recipe_path.parent / "comparisons.jsonl"
        recipe = load_recipe(recipe_path, [f"data.comparisons.train=[{', '.join([str(where), *sources])}]"])
        return plan(recipe, store, Selection(STAGES))[1]

    def flat(data):
        return {f"{kind}.{split}": text for kind, splits in data.items() for split, text in splits.items()}

    parents = [{"ref": sft.ref, "content_id": sft.content_id}]
    publish(store, "rm", cache_key=made.key, config=made.config, data=flat(inputs.fingerprints("rm", first)), parents=parents)
    one, two = rank(range(6)), rank(range(10, 16))
    assert say().action == "reuse"  # a list of one path is that path, and its key is the one from before there were lists
    assert say("{ref: rankings@v1}").reasons == ["data.comparisons changed (rankings@v1 added)"]
    before = not (store.root / "mixes").exists()
    assert before  # planning leaves the store as it is
    recipe, inputs = read(f"[{recipe_path.parent / 'comparisons.jsonl'}, {{ref: rankings@v1}}]")
    decision = decide("rm", recipe, inputs, {"sft": sft}, store)
    fingerprints = flat(inputs.fingerprints("rm", recipe))
    parents += [{"ref": one.ref, "content_id": one.content_id}]
    publish(store, "rm", cache_key=decision.key, config=decision.config, data=fingerprints, parents=parents)
    assert say("{ref: rankings@v1}").action == "reuse"
    assert say("{ref: rankings@v1}", f"{{ref: {two.ref}}}").reasons == ["data.comparisons changed (rankings@v2 added)"]
    assert say("{ref: rankings@v2}").reasons == ["data.comparisons changed (rankings@v2 added, rankings@v1 removed)"]
    assert say("{ref: rankings@v1, weight: 2.0}").reasons == ["data.comparisons changed (rankings@v1 changed)"]
    assert say("{ref: rankings}").reasons == ["data.comparisons changed (rankings@v2 added, rankings@v1 removed)"]  # the latest


def test_what_a_round_holds_out_stays_held_out_in_later_ones_and_that_is_told(read, rank):
    rank(range(6))
    rank([4, 20, 21, 22], held_out=[22])  # question 4, which the first holds out, again
    _, inputs = read("[{ref: rankings@v1}, {ref: rankings@v2}]")
    asked = [{record.prompt[0].content for record in rows_in(source)} for source in vars(inputs.data["comparisons"]).values()]
    assert not asked[0] & asked[1] and "ranked 4" in asked[1]
    told = "rankings@v2: 1 comparisons are left out of training, as their conversations are held out"
    assert told in inputs.readings["comparisons"].notable
    assert inputs.readings["comparisons"].treated["comparisons_left_out_as_held_out"] == 1


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("[{ref: ppo@v1}]", "data.comparisons.train.parts.0.ref: found 'ppo@v1', needed published rankings, such as rankings@v1"),
        ("[{ref: rankings@v1, path: a.jsonl}]", "found both a path and a ref; needed one of them"),
        ("[{weight: 2}]", "found neither a path nor a ref"),
        ("[a.jsonl, {ref: rankings@v1, weight: 0.0}]", "data.comparisons.train.parts.1.weight: found 0.0, needed more than 0"),
        ("[gone.jsonl, {ref: rankings@v1}]", "data.comparisons.train.parts.0: found no file"),
        ("[{ref: rankings@v1, wieght: 2}]", "parts.0.wieght: unknown key; did you mean data.comparisons.train.parts.weight?"),
        ("{parts: [{ref: rankings@v1}], split: train}", "found split beside a list of sources"),
    ],
)
def test_a_list_that_says_nothing_is_refused_with_its_place(recipe_path, sources, said):
    lines = recipe_path.read_text().splitlines()
    place = next(number for number, line in enumerate(lines, 1) if line.strip().startswith("comparisons"))
    lines[place - 1] = f"  comparisons: {{train: {sources}}}"
    recipe_path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as refused:
        load_recipe(recipe_path)
    assert said in str(refused.value), refused.value
    assert f"recipe.yaml:{place}: " in str(refused.value)


def test_rankings_that_are_gone_withdrawn_or_damaged_and_two_of_one_name_are_refused(read, rank, store):
    with pytest.raises(StoreError, match="no artifact rankings@v3") as refused:
        read("[{ref: rankings@v3}]")
    assert refused.value.exit_code == EXIT_MISSING and refused.value.message.startswith("--set: ref: ")
    first = rank(range(6))
    with pytest.raises(ConfigError, match=r"two sources that go by rankings@v1; needed different names"):
        read("[{ref: rankings@v1}, {ref: rankings}]")
    rank(range(10, 16))
    path = first.path / "train.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"good 1", b"good 2"))
    with pytest.raises(StoreError, match="rankings@v1 is damaged"):
        read("[{ref: rankings@v1}]")
    withdraw(store.root, {"rankings@v2": Withdrawal(seal=store.get("rankings@v2").seal, reason="someone asked", at="now")})
    with pytest.raises(StoreError, match="rankings@v2 is withdrawn: someone asked") as refused:
        read("[{ref: rankings@v2}]")
    assert refused.value.exit_code == EXIT_VERIFICATION


def test_the_demo_stands_in_a_list_too(tmp_path):
    recipe = open_recipe("demo", ["data.comparisons.train=[demo@9, {ref: rankings@v1}]"], ("rm",), to_run=False)
    assert [part.label for part in recipe.data.comparisons.train.parts] == ["demo@9", "rankings@v1"]
    assert recipe.data.comparisons.train.parts[0].path == "demo@9:comparisons.train" and recipe.data.comparisons.eval is not None


@pytest.mark.parametrize("step", ["_mix", "_write", "read_data"])
def test_what_is_forgotten_while_sources_are_mixed_does_not_stay_in_the_store(read, rank, store, tmp_path, monkeypatch, step):
    rank(range(6))
    path = tmp_path / "project" / "comparisons.jsonl"
    hers = json.loads(path.read_text().splitlines()[0])
    plain, calls = getattr(mixing, step), []

    def forget_once(*given, **named):
        """Another process forgets a record, after the sources were read, in the midst of writing the mixed files, or after that."""
        calls.append(step)
        if len(calls) == 1:
            secret = open_secret(store.root)
            forget(store, hash_asked(list(parse_row(dict(hers), "comparisons")), secret), secret)
        return plain(*given, **named)

    monkeypatch.setattr(mixing, step, forget_once)
    _, inputs = read(f"[{path}, {{ref: rankings@v1}}]")
    assert len(calls) == 2  # it began anew
    mixed = [text for file in (store.root / "mixes").rglob("*.jsonl") for text in file.read_text().splitlines()]
    assert mixed and not any(json.dumps(hers["prompt"])[1:-1] in line for line in mixed)
    assert sum(map(len, map(rows_in, (inputs.data["comparisons"].train, inputs.data["comparisons"].eval)))) == len(mixed)
