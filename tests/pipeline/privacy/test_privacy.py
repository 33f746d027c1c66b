"""A person's record in demonstrations, rankings and prompts: traced, forgotten, and gone after one more run."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data.identity import FORGOTTEN_FILE, find_digests
from data.schema import DataError, Demonstration, Message, Prompt, Text
from pipeline.doctor import examine
from pipeline.errors import StoreError
from pipeline.export import export
from pipeline.inputs.records import read_data
from pipeline.plan import Selection, plan
from pipeline.privacy.forget import forget, withdraw_forgotten
from pipeline.privacy.lists import count_listed, find_secret, list_path, open_secret, write_list
from pipeline.privacy.samples import tame_samples
from pipeline.privacy.trace import hash_asked, read_asked, trace
from pipeline.recipe.load import load_recipe
from pipeline.store.manifest import Parent
from pipeline.store.removal import plan_collection
from pipeline.store.withdrawn import read_withdrawn
from stages.spec import DataSource, DataSplits

WHO = "I am Anna Planted, where is my order?"
ROWS = {
    "demonstrations": {"prompt": WHO, "completion": "Order 77 is on its way."},
    "comparisons": {"prompt": WHO, "completions": ["On its way.", "No."], "ranks": [1, 2]},
    "prompts": {"prompt": WHO},
}


@pytest.fixture
def planted(recipe_path):
    for kind, row in ROWS.items():
        with (recipe_path.parent / f"{kind}.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    return recipe_path


@pytest.fixture
def rlhf(planted, store, fake_stages):
    def rlhf(*arguments, code=0):
        command = [sys.executable, "-P", "-m", "pipeline.cli", *arguments, "--store", str(store.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return rlhf


def learnt(text):
    return {row["ref"]: row["learnt"] for row in json.loads(text)}


@pytest.mark.slow
def test_a_planted_person_is_traced_in_all_three_forgotten_and_in_none_after_one_more_run(rlhf, planted, store, tmp_path):
    rlhf("run", str(planted))
    (tmp_path / "who.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS.values()))
    rows = json.loads(rlhf("trace", str(tmp_path / "who.jsonl"), "--json"))
    assert {row["ref"]: (sorted(row["sets"]), row["through"]) for row in rows} == {
        "sft@v1": (["demonstrations.train"], []),
        "rm@v1": (["comparisons.train", "demonstrations.train"], ["sft@v1"]),
        "ppo@v1": (["prompts.train"], ["rm@v1", "sft@v1"]),
    }
    assert not any(learnt(rlhf("trace", "Nobody asked this", "--json")).values())
    for row in ROWS.values():  # one of them is enough to find what is hers
        assert any(learnt(rlhf("trace", json.dumps(row), "--json")).values())

    told = rlhf("forget", str(tmp_path / "who.jsonl"))
    assert "to make anew: ppo, rm, sft, by `rlhf run" in told and all(f"{kind}@v1: " in told for kind in ("sft", "rm", "ppo"))
    assert "sft@v1 is withdrawn: it learnt from demonstrations.train" in rlhf("plan", str(planted))
    assert "withdrawn" in rlhf("ls") and "withdrawn" in rlhf("show", "ppo@v1", "--all")
    assert "Withdrawn: it learnt from" in rlhf("show", "ppo@v1") and "ppo@v1: Withdrawn: it learnt from" in rlhf("report", "ppo@v1")
    told = rlhf("run", str(planted))
    assert told.count("1 records left out, as they were forgotten") == 3
    assert learnt(rlhf("trace", WHO, "--json")) == {
        **dict.fromkeys(["ppo@v1", "rm@v1", "sft@v1"], True), **dict.fromkeys(["ppo@v2", "rm@v2", "sft@v2"], False)
    }  # fmt: skip
    assert store.get("sft@v2").manifest.counts["records left out, as they were forgotten"] == 1
    assert "reused ppo@v2" in rlhf("run", str(planted))
    assert [artifact.ref for artifact in plan_collection(store, 1).artifacts] == ["ppo@v1", "rm@v1", "sft@v1"]


@pytest.fixture
def listed(store, publish):
    """sft@v1, which learnt from Anna's record; rm@v1 on it; and sft@v2, which did not."""
    secret = open_secret(store.root)
    prints = {name: "sha256:" + digit * 64 for name, digit in (("hers", "a"), ("others", "b"))}
    anna, others = Demonstration((Message("user", WHO),), "Here."), [Demonstration((Message("user", str(i)),), "a") for i in range(50)]
    for name, records in (("hers", [anna, *others]), ("others", others)):
        digests = bytearray(b"".join(digest for record in records for digest in find_digests(record, secret)))
        write_list(store.root, "demonstrations", prints[name], digests, secret)
    sft = publish(
        store, cache_key="1" * 64, data={"demonstrations.train": prints["hers"], "demonstrations.eval": "0.05 of the conversations"}
    )
    publish(store, "rm", parents=[Parent(ref=sft.ref, content_id=sft.content_id)], data={"comparisons.train": prints["others"]})
    publish(store, cache_key="2" * 64, data={"demonstrations.train": prints["others"]}, files={"model/a": b"2"})
    return store


def ask(store, text):
    secret = find_secret(store.root)
    return hash_asked(read_asked(text), secret), secret


def test_what_is_not_listed_is_said_to_be_unknown_and_not_to_be_clean(listed, publish):
    publish(listed, "ppo", files={"model/a": b"3"})  # imported, say
    found = {each.artifact.ref: each for each in trace(listed, *ask(listed, WHO))}
    assert found["sft@v1"].learnt and found["rm@v1"].through == ["sft@v1"] and not found["sft@v2"].learnt
    assert found["rm@v1"].unknown == ["comparisons.train"] and found["ppo@v1"].unknown == ["all its data"] and found["sft@v2"].unknown == []


def test_a_held_out_record_was_tested_on_and_not_learnt_from(listed, publish):
    hers = listed.get("sft@v1").manifest.data["demonstrations.train"]
    tested = publish(listed, data={"demonstrations.eval": hers}, files={"model/a": b"6"})
    judged = publish(listed, "evaluation", {"evaluation.json": b"{}"}, data={"demonstrations.train": hers})
    found = {each.artifact.ref: each.uses for each in trace(listed, *ask(listed, WHO))}
    assert found["sft@v1"] == ["learnt from demonstrations.train"] and found["rm@v1"] == ["stands on sft@v1"]
    assert found[tested.ref] == ["was tested on demonstrations.eval"] and found[judged.ref] == ["was tested on demonstrations.train"]
    forget(listed, *ask(listed, WHO))
    assert listed.find_withdrawal(tested).startswith("it was tested on demonstrations.eval, of which records were forgotten 2")


def test_answers_and_rankings_hold_records_and_are_made_anew_by_who_makes_them(listed, publish):
    # They train nothing, and `rlhf run` makes neither.
    hers = listed.get("sft@v1").manifest.data["demonstrations.train"]
    answers = publish(listed, "answers", {"answers.jsonl": b"{}"}, data={"demonstrations.train": hers})
    rankings = publish(listed, "rankings", {"train.jsonl": b"{}"}, data={"demonstrations.train": hers})
    found = {each.artifact.ref: each.uses for each in trace(listed, *ask(listed, WHO))}
    assert found[answers.ref] == found[rankings.ref] == ["holds some of demonstrations.train"]
    forget(listed, *ask(listed, WHO))
    for artifact, maker in ((answers, "`rlhf sample` or `rlhf round`"), (rankings, "`rlhf rankings ANSWERS --publish` of what remains")):
        with pytest.raises(StoreError, match=f"{artifact.ref} is withdrawn: it holds some of .*; {maker} makes it"):
            listed.require_verified(artifact.ref)
        assert next(each.message for each in examine(listed) if each.place == artifact.ref).count(f"; {maker} makes one without them") == 1


def test_what_is_withdrawn_is_neither_reused_nor_given_to_others_nor_kept(listed, tmp_path):
    listed.set_alias("sft", "best", "sft@v1", by="me")
    done = forget(listed, *ask(listed, WHO))
    assert [each.artifact.ref for each in done.traces if each.learnt] == ["rm@v1", "sft@v1"] and done.num_new == 2
    assert listed.find_by_cache_key("sft", "1" * 64) is None and listed.find_by_cache_key("sft", "2" * 64).ref == "sft@v2"
    for call in (
        lambda: listed.require_verified("rm@v1"),
        lambda: export(listed, "sft@v1", tmp_path / "out", merge=False),
    ):
        with pytest.raises(StoreError, match="is withdrawn: it") as caught:
            call()
        assert caught.value.exit_code == 3
    assert [artifact.ref for artifact in plan_collection(listed, 1).artifacts] == ["rm@v1"]  # a name keeps sft@v1
    assert forget(listed, *ask(listed, WHO)).num_new == 0
    assert listed.get("sft@v1").ref == "sft@v1" and listed.verify("sft@v1") == []


def test_a_number_that_is_given_again_is_not_withdrawn(listed, publish):
    from pipeline.store.removal import remove

    forget(listed, *ask(listed, WHO))
    remove(listed, ["rm@v1"])
    assert publish(listed, "rm").ref == "rm@v1" and not listed.find_withdrawal(listed.get("rm@v1"))


def test_what_was_trained_while_its_record_was_forgotten_is_withdrawn_when_it_is_published_or_by_the_next_run(listed, publish):
    forget(listed, *ask(listed, WHO))
    before = read_withdrawn(listed.root)
    killed = publish(listed, data=listed.get("sft@v1").manifest.data, files={"model/a": b"3"})  # before it was withdrawn
    late = publish(listed, data=listed.get("sft@v1").manifest.data, files={"model/a": b"4"})
    clean = publish(listed, data=listed.get("sft@v2").manifest.data, files={"model/a": b"5"})
    withdraw_forgotten(listed)
    assert all(map(listed.find_withdrawal, (killed, late))) and not listed.find_withdrawal(clean)
    assert before.items() <= read_withdrawn(listed.root).items()


def test_token_ids_of_the_set_go_and_unfinished_runs_that_learn_from_it_are_named(listed):
    for name, digit in (("demonstrations-1", "a"), ("demonstrations-2", "b")):
        (listed.root / "tokens" / name).mkdir(parents=True)
        (listed.root / "tokens" / name / "made.json").write_text(json.dumps({"fingerprint": "sha256:" + digit * 64}))
    (listed.root / "tokens" / "demonstrations-3").mkdir()  # it is not known what is in these
    shutil.copytree(listed.root / "tokens" / "demonstrations-2", listed.root / "tokens" / "demonstrations-4")
    (listed.root / "tokens" / "demonstrations-4" / "made.json").write_text(json.dumps({"fingerprint": "sha256:" + "9" * 64}))
    for name, digit in (("sft-" + "1" * 16, "a"), ("sft-" + "2" * 16, "b")):
        (listed.root / "runs" / name / "checkpoints").mkdir(parents=True)
        spec = {"fingerprints": {"demonstrations": {"train": "sha256:" + digit * 64}}}
        (listed.root / "runs" / name / "spec.json").write_text(json.dumps(spec))
    done = forget(listed, *ask(listed, WHO))
    assert done.tokens == ["demonstrations-1", "demonstrations-3", "demonstrations-4"] and done.runs == ["sft-" + "1" * 16]
    assert [path.name for path in (listed.root / "tokens").iterdir()] == ["demonstrations-2"]


def test_a_lost_secret_is_told_before_anything_forgotten_comes_back(listed):
    forget(listed, *ask(listed, WHO))
    (listed.root / "records" / "secret").unlink()
    with pytest.raises(StoreError, match="it is not known which records were forgotten"):
        open_secret(listed.root)


def test_the_secret_is_for_those_who_may_write_and_their_group(store):
    open_secret(store.root)
    assert (store.root / "records" / "secret").stat().st_mode & 0o007 == 0


def test_a_file_system_without_second_names_keeps_one_secret_too(store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what FAT says

    monkeypatch.setattr(os, "link", refuse)
    secret = open_secret(store.root)
    assert secret == open_secret(store.root) == (store.root / "records" / "secret").read_bytes()
    assert not list((store.root / "records").glob(".secret*"))


def test_a_row_is_looked_for_as_all_that_it_can_be_read_as(tmp_path):
    assert {type(record) for record in read_asked(json.dumps(ROWS["demonstrations"]))} == {Demonstration, Prompt}
    assert {type(record) for record in read_asked("a question")} == {Prompt, Text}
    shared = json.dumps({"conversations": [{"from": "human", "value": WHO}, {"from": "gpt", "value": "Here."}]})
    assert Demonstration((Message("user", WHO),), "Here.") in read_asked(shared)
    (tmp_path / "rows.jsonl").write_text(shared + '\n{"answer": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: found no record of any kind; needed"):
        read_asked(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    "name", ["poeple.jsonl", "my poeple.json", "gone/people.txt", "link", "folder", "pipe", "people.jsonl.gz", "x" * 3000 + ".csv"]
)
def test_a_name_that_is_no_file_of_records_is_neither_looked_for_nor_forgotten_as_a_text(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="needed a file of records that can be read"):
        read_asked(name)
    assert read_asked(json.dumps({"prompt": name})) and read_asked("who wrote it?") and read_asked("a text.\nmy poeple.json")


def test_a_list_is_written_once_for_each_set_and_also_where_only_a_note_was_kept(store, recipe_path):
    splits = DataSplits(train=DataSource(path=str(recipe_path.parent / "demonstrations.jsonl")))

    def read():
        return read_data("demonstrations", splits, 0.25, store_root=store.root).fingerprints["train"]

    fingerprint = read()
    path = list_path(store.root, "demonstrations", fingerprint)
    first = path.read_bytes()
    path.unlink()  # as in a store of an earlier version
    assert read() == fingerprint and path.read_bytes() == first
    wanted, secret = ask(store, json.dumps({"prompt": "Question 3"}))
    assert count_listed(path, secret, wanted) == 1 and len(first) == 16 + 16 * 8 * 2


def test_redaction_changes_the_fingerprint_and_not_what_is_listed(store, recipe_path):
    path = recipe_path.parent / "prompts.jsonl"
    path.write_text(path.read_text() + json.dumps({"prompt": "I am anna@example.com"}) + "\n")
    splits = DataSplits(train=DataSource(path=str(path)))
    plain = read_data("prompts", splits, 0.25, store_root=store.root)
    clean = read_data("prompts", splits, 0.25, store_root=store.root, redact=["email"])
    again = read_data("prompts", splits, 0.25, store_root=store.root, redact=["email"])
    assert plain.fingerprints != clean.fingerprints == again.fingerprints
    assert clean.treated == again.treated == {"email addresses blotted out": 1} and "1 email addresses blotted out" in clean.notable[0]
    wanted, secret = ask(store, "I am anna@example.com")
    assert count_listed(list_path(store.root, "prompts", clean.fingerprints["train"]), secret, wanted) == 1


def test_settings_of_privacy_at_their_defaults_change_no_cache_key(planted, store):
    recipe = load_recipe(planted, ["data.redact=[email, card]", "data.samples=redacted"])
    assert recipe.data.redact == ["email", "card"]
    before, after = (plan(each, store, Selection())[0].key for each in (load_recipe(planted), recipe))
    assert before == after  # nothing of it stands in these records; were there an address, their fingerprint would differ


@pytest.mark.parametrize("samples", ["on", "off", "redacted"])
def test_samples_are_published_as_the_recipe_wants_them(tmp_path, samples):
    line = json.dumps({"prompt": "I am anna@example.com", "response": "4111 1111 1111 1111", "kl": 0.5, "judge": {"a": "x@y.com"}})
    (tmp_path / "samples.jsonl").write_text(line + "\n")
    tame_samples(tmp_path, samples, [])
    left = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()] if samples != "off" else []
    clean = {"prompt": "I am [email]", "response": "[card]", "kl": 0.5, "judge": {"a": "[email]"}}
    assert left == {"on": [json.loads(line)], "off": [], "redacted": [clean]}[samples]
    assert (tmp_path / "samples.jsonl").exists() == (samples != "off")


def test_what_an_earlier_reading_or_version_listed_stays_in_a_list(store):
    secret, fingerprint, digests = open_secret(store.root), "sha256:" + "c" * 64, [bytes([number]) * 15 + b"x" for number in range(3)]
    path = list_path(store.root, "prompts", fingerprint)
    write_list(store.root, "prompts", fingerprint, bytearray(digests[0]), secret)
    path.rename(path.with_suffix(".list"))  # as an earlier version called it: it did not look into conversations
    assert [count_listed(path, secret, [digest]) for digest in digests] == [1, None, None]
    for digest in digests[1:]:
        write_list(store.root, "prompts", fingerprint, bytearray(digest), secret)
    assert [count_listed(path, secret, [digest]) for digest in [*digests, b"y" * 16]] == [1, 1, 1, 0]


@pytest.mark.slow
def test_a_list_of_a_million_records_is_searched_in_a_moment(store):
    secret = open_secret(store.root)
    digests = np.random.default_rng(0).bytes(16 * 1_000_000)
    write_list(store.root, "prompts", "sha256:" + "c" * 64, bytearray(digests), secret)
    path = list_path(store.root, "prompts", "sha256:" + "c" * 64)
    assert count_listed(path, secret, [digests[160:176], digests[:16], bytes(16)]) == 2
    assert not (store.root / "records" / FORGOTTEN_FILE).exists()
