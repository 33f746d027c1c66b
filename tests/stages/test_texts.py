"""The token ids of texts: made once, split as they always were, made before the first stage for each stage that reads them."""

import json

import pytest

from data.fingerprint import fingerprint
from data.load import load_records
from data.schema import DataError, Text
from data.texts import encode_texts
from data.token_maker import TOKENS_FILE
from stages.models.tokenizer import open_tokenizer
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.spec import DataSource, DataSplits, TokensSpec
from stages.texts import load_texts
from stages.tokens import make_all


@pytest.fixture
def tokenizer(base_model_dir):
    return open_tokenizer(str(base_model_dir))


@pytest.fixture
def context_of(make_stage, tmp_path):
    """context_of(name, content, fraction=0.1) -> pre-training on a file of that name alone, of which a share is held out."""

    def context_of(name, content, fraction=0.1, **changes):
        (tmp_path / name).write_text(content)
        spec = make_stage("pretrain", tag=f"{len(list(tmp_path.iterdir()))}", own_tokens=True).spec
        spec.checkpoint_dir.mkdir()
        splits = {"texts": DataSplits(train=DataSource(path=str(tmp_path / name)))}
        return StageContext(spec.model_copy(update={"data": splits, "eval_fraction": fraction, **changes}))

    return context_of


def ids_of(texts):
    return [texts.file.ids(row).tolist() for row in texts.used]


def test_of_a_single_text_the_end_is_held_out_and_no_character_is_lost(context_of, tokenizer):
    paragraphs = [f"{i}: {'word ' * 20}\n" * 2 + "\n" for i in range(40)]
    for name, content in (
        ("book.txt", "".join(paragraphs)),
        ("one.jsonl", "\n".join(json.dumps({"text": t}) for t in ("", "".join(paragraphs)))),
    ):
        train, held_out = load_texts(context_of(name, content), tokenizer, end=True)
        parts = [Text("".join(paragraphs[:36])), Text("".join(paragraphs[36:]))]
        assert [*ids_of(train), *ids_of(held_out)] == [item.responses[0] for item in encode_texts(tokenizer, parts)]


def test_ids_are_made_once_and_again_when_they_are_damaged(context_of, tokenizer):
    context = context_of("texts.jsonl", "".join(json.dumps({"text": f"Text {i}"}) + "\n" for i in range(30)))
    sides = load_texts(context, tokenizer, end=True)
    (made,) = (context.spec.checkpoint_dir / "tokens").glob(f"*/{TOKENS_FILE}")
    assert len(sides[0].rows) + len(sides[1].rows) == 30 and 1 <= len(sides[1].rows) <= 8
    time = made.stat().st_mtime_ns
    before = [ids_of(side) for side in sides]
    load_texts(context, tokenizer, end=True)
    assert made.stat().st_mtime_ns == time
    made.write_bytes(made.read_bytes()[:-50])
    assert [ids_of(side) for side in load_texts(context, tokenizer, end=True)] == before
    assert [[ids[:-1] for ids in side] for side in before] == [ids_of(side) for side in load_texts(context, tokenizer, end=False)]


def test_texts_that_changed_since_they_were_checked_or_teach_nothing_are_refused(context_of, tokenizer):
    changed = context_of("texts.jsonl", '{"text": "a"}\n{"text": "b"}\n', fingerprints={"texts": {"train": "sha256:of something else"}})
    with pytest.raises(DataError, match=r"texts\.jsonl: changed while this ran"):
        load_texts(changed, tokenizer, end=True)
    book = context_of("book.txt", "one\ntwo\nthree\n", fingerprints={"texts": {"train": "sha256:of something else"}})
    with pytest.raises(DataError, match=r"book\.txt: changed while this ran"):
        load_texts(book, tokenizer, end=True)
    with pytest.raises(DataError, match=r"empty\.jsonl: data\.texts\.eval: found fewer than two texts"):
        load_texts(context_of("empty.jsonl", '{"text": ""}\n{"text": ""}\n'), tokenizer, end=True)


def test_where_all_training_texts_are_empty_it_is_told(make_stage, tokenizer):
    spec = make_stage("pretrain", own_tokens=True).spec
    spec.checkpoint_dir.mkdir()
    (spec.output_dir.parent / "texts.train.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(StageError, match="texts: all are empty, so there is nothing to learn") as caught:
        load_texts(StageContext(spec), tokenizer, end=True)
    assert caught.value.exit_code == 2


def test_ids_are_made_beforehand_for_each_stage_that_reads_texts(context_of, tokenizer, base_model_dir, tmp_path):
    context = context_of("texts.jsonl", "".join(json.dumps({"text": f"Text {i}"}) + "\n" for i in range(30)))
    spec = context.spec
    made = make_all(
        TokensSpec(
            base_model=str(base_model_dir),
            revision=None,
            tokens=spec.tokens,
            data=spec.data,
            fingerprints={"texts": {"train": fingerprint(load_records(spec.data["texts"].train, "texts"))}},
            skip_bad=0,
            records={"texts.train": 30},
            eval_fraction=spec.eval_fraction,
            seed=spec.seed,
            adapters={},
            stop_tokens={},
            text_readers=("pretrain", "ppo"),
            max_rollout_tokens=64,
            tokens_dir=tmp_path / "tokens",
            events_path=tmp_path / "events.jsonl",
            report_path=tmp_path / "report.json",
        )
    )
    assert len(made["directories"]) == 2 and sum(made["counts"]["texts"][split]["texts"] for split in ("train", "eval")) == 30
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events and events[-1]["total"] == 60
    there = StageContext(spec.model_copy(update={"tokens_dir": tmp_path / "tokens"}))
    before = sorted((tmp_path / "tokens").iterdir())
    train, held_out = load_texts(there, tokenizer, end=True)
    assert [train.counts(), held_out.counts()] == [made["counts"]["texts"][split] for split in ("train", "eval")]
    without_end = load_texts(there, tokenizer, end=False)
    assert sum(side.counts()["text_tokens"] for side in (train, held_out)) == sum(side.counts()["text_tokens"] for side in without_end) + 30
    assert sorted((tmp_path / "tokens").iterdir()) == before
