import json
import subprocess
import sys
from itertools import combinations
from random import Random

import pytest

from data.demo.flaws import WEIGHTS, add_flaw
from data.demo.generator import Sizes, build
from data.demo.helpdesk import FILLERS, RUDE, read_case
from data.demo.materialize import write_demo
from data.demo.rule import assess, judge
from data.fingerprint import fingerprint
from data.load import load_records
from data.validate import check

SMALL = Sizes(demonstrations=30, comparisons=20, prompts=10, held_out=5, held_out_comparisons=5)


@pytest.fixture(scope="module")
def rows(demo_dir):
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in demo_dir.glob("*.jsonl")}


@pytest.mark.slow
def test_sizes_are_the_measured_ones(rows):
    assert {name: len(part) for name, part in rows.items()} == {
        "demonstrations.train": 2000,
        "demonstrations.eval": 200,
        "comparisons.train": 8000,
        "comparisons.eval": 1000,
        "prompts.train": 1500,
        "prompts.eval": 200,
    }


@pytest.mark.slow
def test_no_prompt_occurs_twice_anywhere(rows):
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(set(prompts)) == len(prompts) == 12900


def test_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    write_demo(tmp_path / "here", seed=3, sizes=SMALL)
    code = "import sys; from pathlib import Path; from data.demo.generator import Sizes; from data.demo.materialize import write_demo; "
    code += f"write_demo(Path(sys.argv[1]), 3, {SMALL!r}); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "there")], check=True, env={"PYTHONPATH": ":".join(sys.path)})
    files = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file


PRINTS = {
    "demonstrations": "sha256:30d90825828aad6bd2153aa28cb4c7916c3c6119e5398e2db94e8a89031fa585",
    "comparisons": "sha256:74ab89c2eb7c7334b9caca31117c58ca90370f50c58c9a3b664469deca855a6c",
    "prompts": "sha256:b5fb51ca0da6be3ccf403019a7e62d081d7ee7c5d7e660fcb2779c6e542870e8",
}


@pytest.mark.slow
def test_records_of_a_seed_stay_what_they_were(demo_dir, source):
    # The learning bands were measured on this distribution: a change here needs them measured again, and DEMO_VERSION raised.
    prints = {
        kind: fingerprint(load_records(source(demo_dir / f"{kind}.train.jsonl"), kind))
        for kind in ("demonstrations", "comparisons", "prompts")
    }
    assert prints == PRINTS


def test_other_seeds_give_other_records():
    assert build(1, SMALL) != build(2, SMALL)


@pytest.mark.slow
def test_written_demo_passes_the_whole_set_checks(demo_dir, source):
    for kind in ("demonstrations", "comparisons", "prompts"):
        splits = {split: load_records(source(demo_dir / f"{kind}.{split}.jsonl"), kind) for split in ("train", "eval")}
        findings = check(splits)
        assert findings.errors == findings.warnings == (), kind


def test_readme_tells_origin_licence_and_limits(demo_dir):
    text = (demo_dir / "README.md").read_text(encoding="utf-8")
    for words in ("synthetic", "Apache-2.0", "rule", "noise", "reward model sees", "| comparisons.train.jsonl | 8,000 |"):
        assert words in text


def test_demonstrations_are_a_mediocre_mix(rows):
    verdicts = [judge(row["prompt"], row["completion"], True) for row in rows["demonstrations.train"]]
    share = {key: sum(verdict[key] for verdict in verdicts) / len(verdicts) for key in verdicts[0]}
    assert 40 < share["score"] < 52
    assert 0.77 < share["fact"] < 0.85  # 12 % slips, 8 % evasions
    assert 0.27 < share["step"] < 0.36
    assert 0.09 < share["rude"] < 0.15
    assert 0.25 < share["filler"] < 0.36
    assert share["repeats"] < 0.02


def test_ranked_lists_follow_the_rule_but_for_the_noise(rows):
    agree = pairs = 0
    for row in rows["comparisons.train"][:2000]:
        assert row["ranks"] == [1, 2, 3, 4]
        assert len(set(row["completions"])) == 4
        points = [assess(read_case(row["prompt"]), answer).points for answer in row["completions"]]
        for better, worse in combinations(points, 2):
            pairs += better != worse
            agree += better > worse
    assert 0.96 < agree / pairs < 0.985


def test_demo_rows_are_plain_json():
    for name, part in build(7, SMALL).items():
        assert json.loads(json.dumps(part[0])) == part[0], name


ANSWER = "Hi Mia! Sorry about that. Your grey chair is delayed and is now due on Friday. You can follow it with the link in your email."
CASE = read_case("Order: grey chair. Status: delayed. Day: Friday. Mia asks: where is my order?")


def test_one_flaw_never_raises_the_points_of_a_perfect_answer():
    points = [assess(CASE, add_flaw(CASE, ANSWER, Random(seed))).points for seed in range(400)]
    assert max(points) <= 100
    assert sum(point < 100 for point in points) > 0.97 * len(points)  # a wrong step may be drawn right again


def test_every_kind_of_flaw_is_drawn():
    flawed = [add_flaw(CASE, ANSWER, Random(seed)) for seed in range(400)]
    seen = {
        "order": any("grey chair" not in text and "Friday" not in text and "Mia" not in text for text in flawed),
        "item": any("grey chair" not in text and "Friday" in text and "Mia" in text for text in flawed),
        "day": any("grey chair" in text and "Friday" not in text and "Hi Mia!" in text and "due on" in text for text in flawed),
        "name": any("Mia" not in text and "Hi " in text and "grey chair" in text for text in flawed),
        "status": any("on its way" in text for text in flawed),
        "question": any("money back" in text or "cancelled" in text for text in flawed),
        "repeat": any(text.count("Friday") == 2 for text in flawed),
        "rude": any(assess(CASE, text).rude for text in flawed),
        "filler": any(assess(CASE, text).filler for text in flawed),
        "step": any(text == ANSWER.rpartition(" You can")[0] for text in flawed),
        "manners": any("Sorry" not in text and "grey chair" in text for text in flawed),
    }
    assert seen == dict.fromkeys(WEIGHTS, True)


def test_flaws_that_do_not_apply_are_not_drawn():
    bare = "I do not know."
    flawed = {add_flaw(CASE, bare, Random(seed)) for seed in range(2000)}
    rambling = {text for filler in FILLERS for text in (f"{filler} {bare}", f"{bare} {filler}")}
    assert flawed == {f"{bare} {bare}"} | rambling | {f"{bare} {rude}" for rude in RUDE}
