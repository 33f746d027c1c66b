"""A person's record in demonstrations, rankings and prompts of real stages: traced, forgotten, and learnt by none after one more run."""

import json
import shutil
import subprocess
import sys

import pytest

from pipeline.store.store import Store

WHO = "I am Anna Planted of Elm Street 7, where is my blue lamp?"
HERS = {
    "demonstrations": {"prompt": WHO, "completion": "Hi Anna! Your lamp is on its way."},
    "comparisons": {"prompt": WHO, "completions": ["It is on its way.", "No idea."], "ranks": [1, 2]},
    "prompts": {"prompt": WHO},
}
SMALL = ["sft.epochs=1", "rm.epochs=1", "ppo.iterations=1", "evaluate=null"]


@pytest.fixture
def without_her(recipe, tmp_path):
    """The recipe on files of its own."""
    shutil.copytree(recipe.parent, tmp_path / "clean")
    text = recipe.read_text().replace(str(recipe.parent), str(tmp_path / "clean"))
    (tmp_path / "clean" / recipe.name).write_text(text)
    return tmp_path / "clean" / recipe.name


@pytest.fixture
def with_her(without_her, tmp_path):
    """The same with a record of hers in the middle of each file."""
    shutil.copytree(without_her.parent, tmp_path / "planted")
    path = tmp_path / "planted" / without_her.name
    path.write_text(without_her.read_text().replace(str(without_her.parent), str(path.parent)))
    for kind, row in HERS.items():
        data = path.parent / f"{kind}.train.jsonl"
        lines = data.read_text().splitlines()
        data.write_text("\n".join([*lines[:20], json.dumps(row), *lines[20:]]) + "\n")
    return path


@pytest.mark.slow
def test_what_learnt_from_a_person_is_found_forgotten_and_made_anew_as_if_she_had_never_been_there(
    with_her, without_her, warm_start, tmp_path
):
    root, environment = tmp_path / "store", warm_start()

    def rlhf(*arguments):
        command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments), "--store", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(recipe):
        return rlhf("run", recipe, *(word for setting in SMALL for word in ("--set", setting)))

    def find_learnt():
        return {row["ref"]: row["learnt"] for row in json.loads(rlhf("trace", tmp_path / "hers.jsonl", "--json"))}

    (tmp_path / "hers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HERS.values()))
    run(with_her)
    assert find_learnt() == {"ppo@v1": True, "rm@v1": True, "sft@v1": True}
    rlhf("forget", tmp_path / "hers.jsonl")
    assert run(with_her).count("1 records left out, as they were forgotten") == 3
    assert {ref for ref, learnt in find_learnt().items() if not learnt} == {"ppo@v2", "rm@v2", "sft@v2"}
    # The proof: from files in which she never stood the same comes out, so that nothing has to be trained for them.
    told = run(without_her)
    assert [line.split(",")[0] for line in told.splitlines() if "reused" in line][:3] == [
        "sft: reused sft@v2",
        "rm: reused rm@v2",
        "ppo: reused ppo@v2",
    ]
    store = Store(root)
    assert len(store.refs()) == 6 and all(store.verify(ref) == [] for ref in store.refs())
    assert all(store.get(f"{kind}@v1").content_id != store.get(f"{kind}@v2").content_id for kind in ("sft", "rm", "ppo"))
