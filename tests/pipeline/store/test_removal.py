"""F7: what gc and rm remove, and that neither takes what something needs."""

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ResourceError, StoreError
from pipeline.store.manifest import Parent
from pipeline.store.parts import hold_artifacts
from pipeline.store.removal import collect, plan_collection, remove
from pipeline.store.store import Store


def child_of(publish, store, kind, *parents, content=b"x"):
    named = [Parent(ref=parent.ref, content_id=parent.content_id) for parent in parents]
    return publish(store, kind, files={"model/a": content, "model/deep/b": b"1"}, parents=named)


@pytest.fixture
def chains(store, publish):
    """Five chains sft@vN -> rm@vN -> ppo@vN."""
    for number in range(5):
        sft = child_of(publish, store, "sft", content=str(number).encode())
        rm = child_of(publish, store, "rm", sft, content=str(number).encode())
        child_of(publish, store, "ppo", sft, rm, content=str(number).encode())
    return store


def refs_of(*versions):
    return [f"{kind}@v{version}" for kind in ("ppo", "rm", "sft") for version in versions]


def names_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_the_newest_of_each_kind_stay_and_a_plan_changes_nothing(chains):
    before = names_below(chains.root)
    removal = plan_collection(chains, 3)
    assert sorted(artifact.ref for artifact in removal.artifacts) == refs_of(1, 2)
    assert removal.num_bytes == 6 * 2 and names_below(chains.root) == before
    assert sorted(artifact.ref for artifact in collect(chains, 3).artifacts) == refs_of(1, 2)
    assert chains.refs() == refs_of(3, 4, 5) and all(chains.verify(ref) == [] for ref in chains.refs())
    assert list((chains.root / ".trash").iterdir()) == []
    assert plan_collection(chains, 3).artifacts == []


def test_what_an_alias_names_and_its_ancestors_stay(chains):
    chains.set_alias("ppo", "best", "ppo@v1", by="me")
    chains.set_alias("rm", "good", "rm@v2", by="me")
    collect(chains, 1)
    assert chains.refs() == ["ppo@v1", "ppo@v5", "rm@v1", "rm@v2", "rm@v5", "sft@v1", "sft@v2", "sft@v5"]
    assert chains.get("ppo@best").ref == "ppo@v1" and all(chains.verify(ref) == [] for ref in chains.refs())


def test_none_goes_before_what_was_made_from_it(chains):
    order = [artifact.ref for artifact in plan_collection(chains, 3).artifacts]
    for number in (1, 2):
        assert order.index(f"ppo@v{number}") < order.index(f"rm@v{number}") < order.index(f"sft@v{number}")


def leave_run(store, name, *models, checkpoints=True, spec=None):
    run_dir = store.root / "runs" / name
    (run_dir / "checkpoints" if checkpoints else run_dir).mkdir(parents=True)
    paths = {str(number): str(store.get(ref).model_path) for number, ref in enumerate(models)}
    (run_dir / "spec.json").write_text(json.dumps({"models": paths}) if spec is None else spec)
    return run_dir


def test_what_an_unfinished_run_starts_from_stays(chains):
    leave_run(chains, "ppo-0123456789abcdef", "sft@v1", "rm@v1")
    leave_run(chains, "ppo-finished", "sft@v2", "rm@v2", checkpoints=False)
    collect(chains, 3)
    assert chains.refs() == [*refs_of(3, 4, 5)[:3], "rm@v1", *refs_of(3, 4, 5)[3:6], "sft@v1", *refs_of(3, 4, 5)[6:]]
    with pytest.raises(StoreError, match="was made from it"):
        remove(chains, ["sft@v1"])
    with pytest.raises(StoreError, match="rm@v1: a run that is not finished starts from it"):
        remove(chains, ["rm@v1"])


@pytest.mark.parametrize("spec", ["", "null", "[]", '{"models": []}', '{"models": {"a": 1}}', "[" * 100_000])
def test_gc_takes_nothing_while_it_is_not_known_what_is_needed(chains, spec):
    run_dir = leave_run(chains, "ppo-0123456789abcdef", spec=spec)
    with pytest.raises(StoreError, match="the spec of a run") as refusal:
        collect(chains, 1)
    assert refusal.value.exit_code == 3 and len(chains.refs()) == 15
    (run_dir / "checkpoints").rmdir()
    chains.set_alias("ppo", "best", "ppo@v1", by="me")
    (chains.root / "aliases/ppo/best.json").write_text(spec)
    with pytest.raises(StoreError, match="set it anew"):
        collect(chains, 1)
    assert len(chains.refs()) == 15


def test_a_damaged_version_stays_in_gc_and_goes_with_rm(chains):
    path = chains.root / "artifacts/ppo/v0001/manifest.json"
    path.chmod(0o644)
    path.write_text("{")
    removal = collect(chains, 3)
    assert removal.damaged == ["ppo@v1"] and "ppo@v1" in chains.refs()
    assert remove(chains, ["ppo@v1"]) == ["ppo@v1"] and "ppo@v1" not in chains.refs()


def test_rm_takes_a_chain_in_any_order_and_refuses_half_of_one(chains):
    for names in (["sft@v1"], ["rm@v1"], ["sft@v1", "rm@v1"]):
        with pytest.raises(StoreError, match="was made from it; remove that too") as refusal:
            remove(chains, names)
        assert refusal.value.exit_code == 2
    assert len(chains.refs()) == 15
    assert remove(chains, ["sft@v1", "ppo@v1", "rm@v1"]) == ["ppo@v1", "rm@v1", "sft@v1"]
    assert chains.refs() == refs_of(2, 3, 4, 5)


def test_rm_of_a_name_leaves_its_version_and_a_named_version_stays(chains):
    chains.set_alias("ppo", "best", "ppo@v1", by="me")
    with pytest.raises(StoreError, match="ppo@v1: ppo@best names it; remove that name too"):
        remove(chains, ["ppo@v1"])
    assert remove(chains, ["ppo@best"]) == ["ppo@best"] and len(chains.refs()) == 15
    chains.set_alias("ppo", "best", "ppo@v1", by="me")
    assert remove(chains, ["ppo@v1", "ppo@best"]) == ["ppo@best", "ppo@v1"]


@pytest.mark.parametrize(("name", "code"), [("ppo", 2), ("ppo@latest", 2), ("abcdef", 2), ("../x", 2), ("ppo@v9", 4), ("ppo@none", 4)])
def test_rm_takes_no_more_than_what_is_named(chains, name, code):
    with pytest.raises(StoreError) as refusal:
        remove(chains, [name])
    assert refusal.value.exit_code == code and len(chains.refs()) == 15


def test_a_link_in_place_of_a_version_or_of_the_trash_is_not_followed(chains, tmp_path):
    foreign = tmp_path / "foreign"
    (foreign / f"sft-v0001-{'0' * 32}").mkdir(parents=True)
    (foreign / "thesis.tex").write_text("precious")
    (chains.root / "artifacts/sft/v0099").symlink_to(foreign)
    (chains.root / ".trash").symlink_to(foreign)
    before = names_below(foreign)
    with pytest.raises(ResourceError, match="a link, which is not followed"):
        remove(chains, ["ppo@v1"])
    (chains.root / ".trash").unlink()
    assert remove(chains, ["sft@v99"]) == ["sft@v99"]
    (chains.root / ".trash" / f"sft-v0001-{'1' * 32}").symlink_to(foreign)
    (chains.root / ".trash" / "mine").mkdir()
    collect(chains, 3)
    assert names_below(foreign) == before and (chains.root / ".trash" / "mine").exists()


def test_what_a_killed_removal_left_in_the_trash_goes_with_the_next(chains):
    left = chains.root / ".trash" / f"sft-v0001-{'0' * 32}"
    left.parent.mkdir()
    (chains.root / "artifacts/ppo/v0001").rename(left)  # killed between renaming and deleting
    collect(chains, 9)
    assert list(left.parent.iterdir()) == []


def test_what_stands_in_the_place_of_a_signature_keeps_no_version_from_being_removed_and_no_writer_from_writing(chains):
    (chains.root / "artifacts/ppo/v0001.sig.json").mkdir()
    remove(chains, ["ppo@v1"])
    remove(chains, ["rm@v1"])
    events = [json.loads(line)["event"] for line in (chains.root / "ledger.jsonl").read_text().splitlines()]
    assert events[-2:] == ["remove", "remove"] and not chains.find_lost() and list((chains.root / ".trash").iterdir()) == []


def test_whoever_begins_to_rely_on_an_artifact_keeps_it_from_being_removed(chains):
    removed, gone = threading.Event(), chains.get("ppo@v1")

    def collect_all():
        collect(Store(chains.root), 3)
        removed.set()

    with hold_artifacts(chains.root), hold_artifacts(chains.root):
        collector = threading.Thread(target=collect_all)
        collector.start()
        time.sleep(0.1)
        assert not removed.is_set()
        leave_run(chains, "ppo-0123456789abcdef", "sft@v1", "rm@v1")
        chains.require_there([chains.get("sft@v1"), chains.get("rm@v1")])
    collector.join()
    assert "sft@v1" in chains.refs() and "ppo@v1" not in chains.refs()
    with pytest.raises(StoreError, match="no artifact ppo@v1") as refusal:
        chains.require_there([gone])
    assert refusal.value.exit_code == 4


def test_an_artifact_whose_number_was_given_again_is_no_longer_there(store, publish):
    first = publish(store)
    remove(store, ["sft@v1"])
    publish(store, files={"model/a": b"another"})
    with pytest.raises(StoreError, match="sft@v1 was removed and its number given again"):
        store.require_there([first])


def test_nothing_is_made_where_nothing_is(tmp_path):
    store = Store(tmp_path / "none")
    assert collect(store, 1).artifacts == [] and plan_collection(store, 1).artifacts == []
    for name in ("ppo@v1", "ppo@best"):
        with pytest.raises(StoreError) as refusal:
            remove(store, [name])
        assert refusal.value.exit_code == 4
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_a_user_without_privileges_removes_what_is_read_only(publish):
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        store = Store(Path(directory) / "store")
        for number in range(2):
            publish(store, files={"model/deep/a": str(number).encode()})
        for path in (store.root, *store.root.rglob("*")):
            os.chown(path, 12345, 12345)
        child = os.fork()
        if child == 0:
            try:
                os.setgid(12345)
                os.setuid(12345)
                os._exit(0 if [artifact.ref for artifact in collect(store, 1).artifacts] == ["sft@v1"] else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.refs() == ["sft@v2"] and list((store.root / ".trash").iterdir()) == []
