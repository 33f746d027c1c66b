"""The token ids of a stage: made once, shared, made again when damaged; and the program that makes them beforehand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.fingerprint import fingerprint
from data.identity import FORGOTTEN_FILE, SECRET_FILE, Forgotten, ask_for, make_secret, render_forgotten
from data.load import load_records
from data.schema import Comparison, DataError, Demonstration, Message, Prompt
from data.system import watched
from data.token_maker import TOKENS_FILE, make_tokens, open_tokens
from data.token_split import take_all
from data.tokens import EncodedPair, encode_records
from stages.blocks import TokenSettings
from stages.models.tokenizer import load_tokenizer
from stages.process.context import StageContext
from stages.rm import make_sample_rows
from stages.spec import DataSource, DataSplits, TokensSpec
from stages.tokens import load_tokens, make_all, open_sides

LIMITS = (96, 40)


@pytest.fixture
def tokenizer(base_model_dir):
    return load_tokenizer(str(base_model_dir))


@pytest.fixture
def context(make_stage):
    spec = make_stage("sft", own_tokens=True).spec
    spec.checkpoint_dir.mkdir()
    return StageContext(spec)


def make_spec(directory, base, sources):
    """A TokensSpec for kind -> path, of as many lines."""
    directory.mkdir(exist_ok=True)
    records = {kind: load_records(DataSource(path=str(path)), kind) for kind, path in sources.items()}
    return TokensSpec(
        base_model=str(base),
        revision=None,
        tokens=TokenSettings(max_prompt_tokens=LIMITS[0], max_response_tokens=LIMITS[1]),
        data={kind: DataSplits(train=DataSource(path=str(path))) for kind, path in sources.items()},
        fingerprints={kind: {"train": fingerprint(found)} for kind, found in records.items()},
        records={f"{kind}.train": len(found) for kind, found in records.items()},
        skip_bad=0,
        eval_fraction=0.1,
        seed=3,
        adapters={},
        stop_tokens={},
        max_rollout_tokens=LIMITS[1],
        tokens_dir=directory / "tokens",
        events_path=directory / "events.jsonl",
        report_path=directory / "report.json",
    )


@pytest.mark.slow
def test_the_program_makes_by_several_processes_what_one_makes(tmp_path, demo_dir, base_model_dir, tokenizer, warm_start):
    sources = {}
    for kind in ("demonstrations", "comparisons"):
        lines = (demo_dir / f"{kind}.train.jsonl").read_text().splitlines()[:1100]  # three chunks
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")
        sources[kind] = tmp_path / f"{kind}.jsonl"
    spec = make_spec(tmp_path / "work", base_model_dir, sources)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", "stages.tokens", str(tmp_path / "spec.json")]
    done = subprocess.run(command, env=warm_start(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(spec.report_path.read_text())
    directories = [path for path in spec.tokens_dir.iterdir() if path.is_dir()]
    assert sorted(map(str, directories)) == sorted(report["directories"])
    events = [json.loads(line) for line in spec.events_path.read_text().splitlines()]
    assert events and all(event["total"] == sum(spec.records.values()) for event in events)
    for kind in ("demonstrations", "comparisons"):
        own = [path for path in directories if path.name.startswith(kind)]
        train, held_out = open_sides(own, kind, spec.data[kind], LIMITS, spec.eval_fraction, spec.seed)
        sides = {"train": train, "eval": held_out}
        assert report["counts"][kind] == {name: side.counts() | {"answers": side.count_answers()} for name, side in sides.items()}
        assert 50 < len(held_out.rows) < 170
        encoded = encode_records(tokenizer, load_records(spec.data[kind].train, kind), LIMITS)
        found = {}
        for side in (train, held_out):
            found |= zip(side.used.tolist(), side.pairs if kind == "demonstrations" else side.comparisons, strict=True)
        in_order = [found[row] for row in sorted(found)]
        if kind == "demonstrations":
            assert in_order == [EncodedPair(item.prompt_ids, *item.responses) for item in encoded if item.used]
        else:
            told = [(item.prompt_ids, item.responses, item.ranks, item.grades) for item in encoded if item.used]
            assert [(item.prompt_ids, item.responses, item.ranks, item.grades) for item in in_order] == told


def test_ids_are_made_once_and_again_when_they_are_damaged(context, tokenizer):
    train, _ = load_tokens(context, tokenizer, "demonstrations")
    before = list(train.pairs)
    directory = context.spec.checkpoint_dir / "tokens"
    made = sorted(directory.glob(f"*/{TOKENS_FILE}"))
    times = [path.stat().st_mtime_ns for path in made]
    load_tokens(context, tokenizer, "demonstrations")
    assert len(made) == 2 and [path.stat().st_mtime_ns for path in made] == times
    made[0].write_bytes(made[0].read_bytes()[:-100])
    again, _ = load_tokens(context, tokenizer, "demonstrations")
    assert list(again.pairs) == before
    assert [path.stat().st_mtime_ns == time for path, time in zip(made, times, strict=True)] == [False, True]


def test_other_limits_make_other_ids(context, tokenizer):
    load_tokens(context, tokenizer, "demonstrations")
    shorter = TokenSettings(max_prompt_tokens=96, max_response_tokens=20)
    other = StageContext(context.spec.model_copy(update={"tokens": shorter}))
    train, _ = load_tokens(other, tokenizer, "demonstrations")
    assert 0 < train.counts()["responses_dropped"] == 48 - len(train.pairs)
    assert train.prompts.count_tokens().max() <= 96 + 20
    told = [json.loads(line)["message"] for line in context.spec.events_path.read_text().splitlines()]
    dropped = f"{train.counts()['responses_dropped']} of 48 demonstrations dropped (longer than 20 tokens)"
    assert any(dropped in each and each.endswith("raise tokens.max_response_tokens or shorten them") for each in told)


def test_answers_that_the_tokenizer_cannot_write_are_warned_of_with_the_first_ones_line(context):
    words = {"[?]": 0, "[P]": 1, "</s>": 2} | {word: i for i, word in enumerate(["order", "way", "."], start=3)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[?]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = {"unk_token": "[?]", "pad_token": "[P]", "eos_token": "</s>"}
    template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}{{ messages | length }}"
    path = Path(context.spec.data["demonstrations"].train.path)
    rows = [{"prompt": "way " * (i + 1), "completion": "order . " if i % 3 else "Order 二."} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = context.spec.data["demonstrations"].model_copy(update={"eval": None})
    other = StageContext(context.spec.model_copy(update={"data": context.spec.data | {"demonstrations": data}, "fingerprints": {}}))
    load_tokens(other, PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special), "demonstrations")
    (told, *_) = [warning.message for warning in other.warnings if "altered" in warning.name]
    assert told.startswith(f"{path}:1: 9 of 29 answers, the first here, read otherwise when the tokenizer writes them ('order [?] .')"), (
        told
    )


def test_records_that_changed_since_they_were_checked_are_refused(context, tokenizer):
    expected = {"demonstrations": {"train": "sha256:of something else"}}
    other = StageContext(context.spec.model_copy(update={"fingerprints": expected}))
    with pytest.raises(DataError, match=r"demonstrations.train.jsonl: changed while this ran"):
        load_tokens(other, tokenizer, "demonstrations")
    with pytest.raises(DataError, match="changed while this ran"):  # what was made of it is not taken for what was expected
        load_tokens(other, tokenizer, "demonstrations")


@pytest.mark.parametrize(
    ("stage", "kind", "rows", "said"),
    [
        (
            "sft",
            "demonstrations",
            [
                {"prompt": "a", "completion": "plain"},
                {"prompt": "b", "completion": "<think>\nhm"},
                {"prompt": "c", "completion": "<think>x"},
            ],
            ":2: 2 of 3 answers",
        ),
        (
            "rm",
            "comparisons",
            [{"prompt": "a", "chosen": "fine", "rejected": "no"}, {"prompt": "b", "chosen": "fine", "rejected": "<think>\nno"}],
            ":2: 1 of 4 answers",
        ),
    ],
)
def test_answers_that_begin_as_the_prompt_ends_are_told_with_file_and_line(make_stage, base_model_dir, stage, kind, rows, said):
    spec = make_stage(stage, models={"base": base_model_dir, "sft": base_model_dir}, own_tokens=True).spec
    tokenizer = load_tokenizer(str(base_model_dir))
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{{ '\n' }}{% endif %}"
    path = Path(spec.data[kind].train.path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec.checkpoint_dir.mkdir()
    load_tokens(StageContext(spec), tokenizer, kind)
    (event,) = (json.loads(line) for line in spec.events_path.read_text().splitlines())
    assert event["message"].startswith(f"{path}{said}, the first here, begin with '<think>\\n'")


def test_control_tokens_that_stand_in_records_as_text_are_told_with_file_and_line(make_stage, base_model_dir):
    # Completions with an end token of their own, prompts that a chat template has written already.
    spec = make_stage("sft", models={"base": base_model_dir}).spec
    path = Path(spec.data["demonstrations"].train.path)
    rows = [
        {"prompt": "a", "completion": "x"},
        {"prompt": "b", "completion": "x<|end|>"},
        {"prompt": "<|user|>c<|end|>", "completion": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec.checkpoint_dir.mkdir()
    train, _ = load_tokens(StageContext(spec), load_tokenizer(str(base_model_dir)), "demonstrations")
    (event,) = (json.loads(line) for line in spec.events_path.read_text().splitlines())
    assert event["message"].startswith(f"{path}:2: 2 of 3 demonstrations, the first here, hold the text of a control token ('<|end|>')")
    assert train.counts()["control_tokens"] == 2


def test_what_the_template_refuses_is_told_of_all_kinds_with_its_line(tmp_path, base_model_dir):
    base = shutil.copytree(base_model_dir, tmp_path / "base")
    template = (base / "chat_template.jinja").read_text()
    strict = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('refused here') }}{% endif %}"
    (base / "chat_template.jinja").write_text(strict + template)
    sources = {"demonstrations": tmp_path / "demos.jsonl", "prompts": tmp_path / "prompts.jsonl"}
    for path in sources.values():
        rows = [{"prompt": text, "completion": "b"} for text in ("a", "no", "c", "no")]
        path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        make_all(make_spec(tmp_path / "work", base, sources))
    assert [problem.where.rpartition("/")[2] for problem in caught.value.problems] == [
        "demos.jsonl:3",
        "demos.jsonl:5",
        "prompts.jsonl:3",
        "prompts.jsonl:5",
    ]
    assert all("refused here" in problem.message for problem in caught.value.problems)


BRANCHES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "floods": "{{ 'a' * messages[0]['content'] | length * 400000000 }}",
    "folds": "{{ ('a' * 4000000000) | length }}",
    "raises": "{{ 1 / 0 }}",
}


@pytest.fixture
def make_hostile(tmp_path, base_model_dir, monkeypatch):
    """A function: the lines of what is told of records, prompts by kind, under a template that begins with this."""
    monkeypatch.setattr(watched, "ITEM_SECONDS", 0.5)
    monkeypatch.setattr(watched, "CHUNK_SECONDS", 0.5)

    def make(beginning, **prompts):
        base = shutil.copytree(base_model_dir, tmp_path / "base", dirs_exist_ok=True)
        template = (base_model_dir / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").write_text(
            beginning.replace("TEMPLATE", template) if "TEMPLATE" in beginning else beginning + template
        )
        sources = {kind: tmp_path / f"{kind}.jsonl" for kind in prompts}
        for kind, texts in prompts.items():
            rows = [{"prompt": text, "completions": ["x", "y"], "ranks": [1, 2], "completion": "b"} for text in texts]
            columns = {"prompts": ["prompt"], "demonstrations": ["prompt", "completion"], "comparisons": ["prompt", "completions", "ranks"]}
            sources[kind].write_text("".join(json.dumps({name: row[name] for name in columns[kind]}) + "\n" for row in rows))
        with pytest.raises(DataError) as caught:
            make_all(make_spec(tmp_path / "work", base, sources))
        return [problem.replace(f"{tmp_path}/", "") for problem in map(str, caught.value.problems)]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("what", BRANCHES)
def test_a_template_that_fails_at_one_record_of_many_is_told_with_that_records_line(make_hostile, what):
    """Tried with one word, these templates are blameless (faults.md S3)."""
    texts = [f"question {i}" for i in range(5)]
    beginning = "{% if 'bad' in messages[0]['content'] %}" + BRANCHES[what] + "{% endif %}"
    (line,) = make_hostile(beginning, comparisons=[*texts[:3], "a bad one", *texts[3:]])
    assert line.startswith("comparisons.jsonl:4: ")
    said = {
        "loops": "took more than 0.5 s; needed",
        "floods": "took more than 2 GiB of memory; needed",
        "folds": "took more than 2 GiB of memory; needed",
        "raises": "division by zero",
    }
    assert said[what] in line


def test_different_prompts_that_a_template_makes_the_same_are_told_with_both_lines(make_hostile):
    hidden = "{% if 'secret' in messages[0]['content'] %}hidden{% else %}TEMPLATE{% endif %}"
    texts = ["one", "first secret", "two", "second secret", "third secret", "second  Secret "]
    lines = make_hostile(hidden, demonstrations=texts, prompts=texts)
    same = "found another prompt than {0}.jsonl:2, of which chat template and tokenizer make the same; needed a template"
    assert [line[: line.index(" that writes")] for line in lines] == [
        f"{kind}.jsonl:4: {same.format(kind)}" for kind in ("demonstrations", "prompts")
    ]


def test_stages_learn_from_records_as_the_pipeline_reads_them_without_what_was_forgotten_and_blotted_out(
    tmp_path, base_model_dir, tokenizer
):
    rows = [{"prompt": f"Where is order {i}? I am a{i}@example.com", "completion": f"On its way, {i}."} for i in range(12)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "records").mkdir()
    secret = make_secret()
    (tmp_path / "records" / SECRET_FILE).write_bytes(secret)
    asked = ask_for(Prompt((Message("user", rows[3]["prompt"]),)), secret)
    (tmp_path / "records" / FORGOTTEN_FILE).write_bytes(render_forgotten(Forgotten(secret, frozenset(asked))))
    expected = [
        Demonstration((Message("user", f"Where is order {i}? I am [email]"),), row["completion"]) for i, row in enumerate(rows) if i != 3
    ]
    spec = make_spec(tmp_path / "work", base_model_dir, {"demonstrations": tmp_path / "mine.jsonl"})
    treated = {"redact": ("email",), "forgotten": tmp_path / "records"}
    spec = spec.model_copy(update=treated | {"fingerprints": {"demonstrations": {"train": fingerprint(expected)}}})
    (directory,) = make_all(spec)["directories"]
    pairs = [EncodedPair(item.prompt_ids, *item.responses) for item in encode_records(tokenizer, expected, LIMITS)]
    assert list(take_all("demonstrations", open_tokens(Path(directory))).pairs) == pairs


def test_samples_of_a_reward_model_show_prompts_without_what_a_template_writes_around_them(tmp_path, tokenizer):
    tokenizer.chat_template = "You are a robot. user {{ messages[0]['content'] }} assistant "
    records = [Comparison((Message("user", f"Say {i}"),), ("a", "b"), (2, 1)) for i in range(3)]
    placed = [("file.jsonl:1", record) for record in records]
    given = {"expected": fingerprint(records), "workers": 1, "progress": lambda count: None}
    assert make_tokens(tmp_path / "made", lambda: placed, lambda chunk: encode_records(tokenizer, chunk, LIMITS), **given)
    held_out = take_all("comparisons", open_tokens(tmp_path / "made"))
    rows = make_sample_rows(tokenizer, held_out, torch.arange(6.0))
    assert [(row["prompt"], row["response"], row["rank"], row["score"]) for row in rows[:3]] == [
        ("Say 0", "a", 2, 0.0),
        ("Say 0", "b", 1, 1.0),
        ("Say 1", "a", 2, 2.0),
    ]
