"""Rankings become an artifact: its lineage, its two sides, who stays unnamed, and what is refused."""

import json
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pipeline.errors import ResourceError
from pipeline.inputs.records import read_data
from pipeline.privacy.lists import open_secret
from pipeline.ranking.journal import Journal, Judgement, Undo
from pipeline.ranking.place import find_answers
from pipeline.ranking.summary import summarise
from pipeline.rounds.publish import publish_rankings
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION, DataSplits

ROWS = [
    {"prompt": f"question {n}?", "completions": [f"good {n}", f"bad {n}", f"worst {n}"], "models": ["ppo@v1", "sft@v1", "sft@v1"]}
    for n in range(40)
]


@pytest.fixture
def answers(store, publish):
    """An artifact of answers, made of a policy."""
    sft = publish(store)
    parents = [{"ref": sft.ref, "content_id": sft.content_id}]
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    return publish(store, "answers", {"answers.jsonl": content}, parents=parents, data={"prompts.train": "sha256:" + "0" * 64})


def say(place, count=40, annotator="ann.smith@example.com", **more):
    """Have somebody rank the first sets, as good as they are."""
    journal = Journal(place.journal)
    for item in list(place.sets)[:count]:
        fields = {"outcome": "ranked", "order": (2, 0, 1), "ranks": (1, 2, 3), "time": 1.0, "note": "call me", **more}
        journal.add(Judgement(id=uuid.uuid4().hex, item=item, annotator=annotator, **fields))


def test_rankings_are_an_artifact_of_the_answers_and_of_the_policy_behind_them(store, answers, rlhf_here, tmp_path):
    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    say(place, 10, "ben")
    told = rlhf_here("rankings", "answers@v1", "--publish")
    assert told.returncode == 0, told.stderr
    assert "rankings@v1: published: 38 to train on, 2 held out; use it as data.comparisons.train" in told.stdout
    artifact = store.get("rankings@v1")
    assert [(each.ref, each.content_id) for each in artifact.manifest.parents] == [("answers@v1", answers.content_id)]
    assert [each.ref for each in store.lineage("rankings@v1")] == ["answers@v1", "sft@v1"]
    assert artifact.manifest.metrics["agreement"] == 1.0 and artifact.manifest.intervals["first_shown_is_better"].n == 40
    sides = {name: [json.loads(line) for line in (artifact.path / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "eval")}
    asked = {name: {row["prompt"][0]["content"] for row in rows} for name, rows in sides.items()}
    assert not asked["train"] & asked["eval"] and len(asked["train"] | asked["eval"]) == 40
    assert all(row["ranks"] == [1, 2, 3] and "models" not in row for row in sides["train"])
    everything = b"".join(path.read_bytes() for path in artifact.path.iterdir())
    assert b"ann.smith" not in everything and b"call me" not in everything
    # The same again is the same artifact; one more judgement makes another.
    assert "rankings@v1: is there already" in rlhf_here("rankings", "answers@v1", "--publish").stdout
    say(place, 12, "ben")
    assert json.loads(rlhf_here("rankings", "answers@v1", "--publish", "--json").stdout)["published"] == "rankings@v2"
    assert rlhf_here("verify").returncode == 0
    # What `show` says to do next can be done.
    for ref, told in (
        ("answers@v1", "`rlhf rank answers@v1`"),
        ("rankings@v1", "38 comparisons to train on, 2 held out; data.comparisons"),
    ):
        page = rlhf_here("show", ref).stdout
        assert told in page and "rlhf samples" not in page and "--until evaluate" not in page
    assert "see `rlhf show answers@v1`" in rlhf_here("samples", "answers@v1").stderr


def test_what_one_round_holds_out_no_other_trains_on(store, answers, rlhf_here, publish):
    """Another round's answers to the same questions are held out where the first's are."""
    rows = [{**row, "completions": [f"other {n}" for n in range(3)]} for row in reversed(ROWS)]
    publish(store, "answers", {"answers.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()})
    held_out = []
    for ref in ("answers@v1", "answers@v2"):
        place = find_answers(store, ref)
        place.make_room()
        say(place)
        assert rlhf_here("rankings", ref, "--publish", "--held-out", "0.2").returncode == 0
        path = store.get("rankings").path / "eval.jsonl"
        held_out.append({json.loads(line)["prompt"][0]["content"] for line in path.read_text().splitlines()})
    assert held_out[0] == held_out[1] and len(held_out[0]) > 2


def test_a_forgotten_record_withdraws_the_rankings_that_hold_it(store, answers, rlhf_here):
    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    rlhf_here("rankings", "answers", "--publish")
    traced = json.loads(rlhf_here("trace", "question 3?", "--json").stdout)
    assert "rankings@v1" in json.dumps(traced)
    assert rlhf_here("forget", "question 3?").returncode == 0
    assert store.find_withdrawal(store.get("rankings@v1"))


def test_what_people_said_of_the_others_is_published_when_a_record_of_the_answers_was_forgotten(store, publish, rlhf_here, tmp_path):
    """Also where the policy that answered learnt from the record; the rankings then stand though the answers are removed."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in ROWS))
    splits = DataSplits.model_validate({"train": {"path": str(prompts)}})
    data = {"prompts.train": read_data("prompts", splits, 0.5, store_root=store.root).fingerprints["train"]}
    policy = publish(store, "ppo", data=data)
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    parents = [{"ref": policy.ref, "content_id": policy.content_id}]
    publish(store, "answers", {"answers.jsonl": content}, parents=parents, data=data)
    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    say(place, 5, "ben")
    assert rlhf_here("rankings", "answers@v1", "--publish").returncode == 0
    told = rlhf_here("forget", "question 3?").stdout
    assert "rankings, by `rlhf rankings ANSWERS --publish` of what remains" in told
    assert "answers@v1: what people said of its other records stays: `rlhf rankings answers@v1 --publish`" in told
    assert store.find_withdrawal(store.get("rankings@v1"))
    assert "would remove answers@v1" in rlhf_here("gc").stdout  # whoever forgets a record wants it gone
    told = rlhf_here("rankings", "answers@v1", "--publish")
    assert told.returncode == 0, told.stderr
    assert (
        "rankings@v2: published: " in told.stdout and "left out, as records were forgotten: 1 answer set with 2 judgements" in told.stdout
    )
    assert "withdrawn as well: ppo@v1, whose answers may quote what was forgotten" in told.stdout
    found = store.get("rankings@v2")
    assert not store.find_withdrawal(found) and found.manifest.counts["sets_forgotten"] == 1
    assert b"question 3?" not in b"".join(path.read_bytes() for path in found.path.iterdir())
    assert found.manifest.counts["comparisons_train"] + found.manifest.counts["comparisons_eval"] == 39
    assert "is there already" in rlhf_here("rankings", "answers@v1", "--publish").stdout
    assert rlhf_here("gc", "--remove").returncode == 0
    assert store.refs() == ["rankings@v2"] and rlhf_here("verify").returncode == 0
    # It is listed as any other: the next record that is forgotten withdraws it.
    assert rlhf_here("forget", "question 4?").returncode == 0 and store.find_withdrawal(store.get("rankings@v2"))


def test_answers_whose_judgements_are_not_published_are_no_garbage(store, answers, publish, rlhf_here):
    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    unread = publish(store, "answers", {"answers.jsonl": (json.dumps(ROWS[0]) + "\n").encode()})
    publish(store, "answers", {"answers.jsonl": (json.dumps(ROWS[1]) + "\n").encode()})
    publish(store)
    told = rlhf_here("gc", "--keep", "1", "--remove").stdout
    assert "answers@v1: stays, as what was said of it is not published; `rlhf rankings answers@v1 --publish`" in told
    assert f"removed {unread.ref}" in told
    assert store.refs() == ["answers@v1", "answers@v3", "sft@v1", "sft@v2"]
    assert rlhf_here("rankings", "answers@v1", "--publish").returncode == 0
    assert "stays" not in rlhf_here("gc", "--keep", "1").stdout  # the rankings' own parent now


def test_of_a_file_of_answers_forgotten_records_are_left_out_whoever_ranks_and_wherever_rankings_go(store, rlhf_here, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    say(find_answers(store, path))
    assert rlhf_here("rankings", path, "--export", "all.csv").returncode == 0
    asked = tmp_path / "hers.jsonl"  # with an answer; her prompt stands for her among prompts
    asked.write_text(json.dumps({"prompt": "Question 3?", "completion": "hers"}) + "\n")
    open_secret(store.root)
    assert rlhf_here("forget", asked).returncode == 0
    assert len(find_answers(store, path).sets) == 39
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the page does not stay open
        told = rlhf_here("rank", path, "--port", taken.getsockname()[1])
    assert told.returncode == 5 and "left out, as records were forgotten: 1 answer set with 1 judgement\n39 answer sets" in told.stdout
    told = rlhf_here("rankings", path, "-o", "ranked.jsonl", "--publish").stdout
    assert "left out, as records were forgotten: 1 answer set with 1 judgement" in told
    assert "question 3?" not in (tmp_path / "ranked.jsonl").read_text()
    assert not store.find_withdrawal(store.get("rankings@v1"))
    (tmp_path / "answers.rankings.jsonl").unlink()
    told = rlhf_here("rankings", path, "--import", "all.csv")
    assert told.returncode == 0 and "csv: 39 judgements of 39 answer sets" in told.stdout.lower(), told
    assert "left out: 1 of forgotten records" in told.stdout


def test_answers_of_which_all_was_forgotten_are_told(store, rlhf_here, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    open_secret(store.root)
    rlhf_here("forget", "question 0?")
    refused = rlhf_here("rankings", path)
    assert (
        refused.returncode == EXIT_VERIFICATION and "found 1 answer set, none of which is left after what was forgotten" in refused.stderr
    )


def test_rankings_whose_publisher_is_killed_as_soon_as_they_are_there_can_be_traced(store, answers, rlhf_here):
    class KilledThen(Store):
        def publish(self, staging, fields):
            super().publish(staging, fields)
            raise KeyboardInterrupt

    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    journal = Journal(place.journal)
    with pytest.raises(KeyboardInterrupt):
        summary = summarise(journal.list_of(place.sets), place.sets)
        publish_rankings(KilledThen(store.root), place, journal, summary, "all", False, 0.1)
    assert "rankings@v1" in rlhf_here("trace", "question 3?", "--json").stdout
    assert rlhf_here("forget", "question 3?").returncode == 0
    assert store.find_withdrawal(store.get("rankings@v1"))


def test_of_two_that_publish_the_same_at_once_one_finds_what_the_other_made(store, answers):
    place = find_answers(store, "answers")
    place.make_room()
    say(place)
    together = Barrier(2)

    def publish(_):
        journal = Journal(place.journal)
        summary = summarise(journal.list_of(place.sets), place.sets)
        together.wait()
        return publish_rankings(Store(store.root), place, journal, summary, "all", False, 0.1)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(publish, range(2)))
    assert sorted(each.is_old for each in found) == [False, True]
    assert [each.artifact.ref for each in found] == ["rankings@v1"] * 2 and len(store.list("rankings")) == 1


def test_answers_that_are_not_there_or_not_ranked_are_refused(store, answers, rlhf_here):
    assert rlhf_here("rankings", "answers@v7", "--publish").returncode == EXIT_MISSING
    refused = rlhf_here("rankings", "answer@v1")
    assert refused.returncode == EXIT_USAGE and "no such file; a file of answers, or an artifact such as answers@v1" in refused.stderr
    refused = rlhf_here("rankings", "answers@v1", "--publish")
    assert refused.returncode == EXIT_USAGE and "found 0 rankings; none of them prefers an answer" in refused.stderr
    place = find_answers(store, "answers@v1")
    place.make_room()
    say(place, 3, ranks=(1, 1, 1))
    assert "found 3 rankings; none of them prefers" in rlhf_here("rankings", "answers@v1", "--publish").stderr
    assert store.list("rankings") == []


def test_rankings_that_differ_in_what_no_figure_tells_are_other_ones(store, answers, rlhf_here):
    """Flags, seconds and who said what are in the artifact, though nothing is counted or measured of some of them."""
    place = find_answers(store, "answers")
    place.make_room()
    say(place, flags={"harmful": (0,)})
    assert "rankings@v1: published" in rlhf_here("rankings", "answers", "--publish").stdout
    journal = Journal(place.journal)
    last = list(journal.judgements.values())[-1]
    again = Judgement(**{**last.model_dump(), "id": uuid.uuid4().hex, "flags": {"wrong": (0,)}})
    journal.add_all([Undo(id=last.id, annotator=last.annotator, time=2.0), again])
    assert "rankings@v2: published" in rlhf_here("rankings", "answers", "--publish").stdout
    assert "rankings@v2: is there already" in rlhf_here("rankings", "answers", "--publish").stdout
    first, second = (store.get(f"rankings@v{number}").manifest for number in (1, 2))
    assert (first.counts, first.metrics, first.data) == (second.counts, second.metrics, second.data)
    text = (store.get("rankings@v2").path / "judgements.jsonl").read_text()
    assert text.count('"wrong"') == 1 and text.count('"harmful"') == 39
    assert "rankings@v3: published" in rlhf_here("rankings", "answers", "--publish", "--names").stdout


def test_a_file_keeps_its_journal_beside_it_and_an_artifact_in_the_store(store, answers, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    place = find_answers(store, tmp_path / "mine.jsonl")
    assert place.artifact is None and place.journal == tmp_path / "mine.rankings.jsonl"
    kept = find_answers(store, "answers")
    assert kept.journal.parent == store.root / "judgements" and list(kept.sets) == list(find_answers(store, "answers@v1").sets)
    (store.root / "judgements").symlink_to(tmp_path)
    with pytest.raises(ResourceError):
        kept.make_room()


def test_what_a_model_ranked_is_marked_in_the_manifest(store, answers, rlhf_here):
    place = find_answers(store, "answers")
    place.make_room()
    say(place, 10)
    say(place, 40, "model:m-1", order=(), model="m-1", pairs={"agreed": 3})
    told = rlhf_here("rankings", "answers@v1", "--publish")
    assert told.returncode == 0, told.stderr
    manifest = store.get("rankings@v1").manifest
    assert manifest.config["judged_by_models"] == ["m-1"] and manifest.counts["comparisons_by_model"] == 30
    assert manifest.metrics["agreement_of_people_with_m-1"] == 1.0
    assert rlhf_here("rankings", "answers@v1", "--publish", "--by", "people").returncode == 0
    manifest = store.get("rankings@v2").manifest
    assert "judged_by_models" not in manifest.config and "comparisons_by_model" not in manifest.counts
