"""The Hub's commits and tags, against a hand-written stand-in that keeps commits as the Hub does: the Hub itself is never asked here."""

import hashlib
import io
from types import SimpleNamespace

import pytest

from pipeline.errors import StoreError
from pipeline.remotes import hub
from pipeline.remotes.pull import pull
from pipeline.remotes.push import push
from pipeline.remotes.remote import Remote
from pipeline.remotes.transfers import list_refs
from pipeline.store.store import Store
from tests.pipeline.remotes.remote_parts import View, publish_chain

CHAIN = ["sft@v1", "rm@v1", "ppo@v1"]


class HubError(OSError):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


class FakeHub:
    """One repository: commits are whole trees, a branch, tags. Large files are those that end in safetensors."""

    def __init__(self):
        self.commits, self.tags, self.calls = {}, {}, []
        self.head, self.fail_at, self.between = None, None, None

    def _call(self, name):
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise ConnectionError("the connection broke")
        if self.between and name == self.between[0]:
            (_, act), self.between = self.between, None
            act()

    def _commit(self, tree):
        self.head = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[self.head] = tree
        return SimpleNamespace(oid=self.head)

    def create_repo(self, repo_id, *, private, exist_ok):
        assert private and exist_ok
        self._call("create_repo")
        if self.head is None:
            self._commit({".gitattributes": b""})

    def repo_info(self, repo_id):
        self._call("repo_info")
        return SimpleNamespace(sha=self.head)

    def upload_folder(self, *, repo_id, folder_path, path_in_repo, ignore_patterns, commit_message):
        """Like the real one in several commits, of which the last may be missing."""
        for path in sorted(folder_path.rglob("*")):
            if path.is_file() and path.name not in ignore_patterns:
                self._call("upload")
                name = f"{path_in_repo}/{path.relative_to(folder_path)}"
                self._commit(self.commits[self.head] | {name: path.read_bytes()})

    def create_commit(self, repo_id, operations, *, commit_message, parent_commit):
        self._call("create_commit")
        if parent_commit != self.head:
            raise HubError(412)
        (operation,) = operations
        return self._commit(self.commits[self.head] | {operation.path_in_repo: operation.path_or_fileobj})

    def create_tag(self, repo_id, *, tag, revision):
        self._call("create_tag")
        if tag in self.tags:
            raise HubError(409)
        self.tags[tag] = revision

    def list_repo_refs(self, repo_id):
        if self.head is None:
            raise HubError(404)
        return SimpleNamespace(tags=[SimpleNamespace(name=name) for name in [*self.tags, "v1.0", "ppo-v1", "../x-v0001"]])

    def list_repo_tree(self, repo_id, path_in_repo, *, recursive, revision):
        tree = self.commits[revision]
        names = [name for name in tree if name.startswith(f"{path_in_repo}/")]
        if not names:
            raise HubError(404)
        return [SimpleNamespace(path=path_in_repo), *(_describe(name, tree[name]) for name in names)]

    # What HfFileSystem does

    def open(self, path, mode, block_size):
        repository, _, rest = path.partition("@")
        revision, _, name = rest.partition("/")
        assert repository == "owner/name"
        tree = self.commits.get(self.tags.get(revision, revision), {})
        if name not in tree:
            raise FileNotFoundError(path)
        return io.BytesIO(tree[name])


def _describe(name, content):
    lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if name.endswith("safetensors") else None
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return SimpleNamespace(path=name, size=len(content), lfs=lfs, blob_id=blob)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(hub, "open_api", lambda: fake)
    return fake


@pytest.fixture
def remote(fake):
    return Remote("hf://owner/name", "hf", fake, "owner/name")


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "other")


def test_data_comes_first_then_the_manifest_then_the_tag_and_a_pull_goes_by_the_tag(store, publish, other, fake, remote):
    publish_chain(store, publish)
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, True)
    assert list(fake.tags) == ["sft-v0001", "rm-v0001", "ppo-v0001"]
    once = ["create_repo", "repo_info", *["upload"] * 4, "create_repo", "repo_info", "create_commit", "create_tag"]
    assert fake.calls == once * 3
    manifest = "artifacts/sft/v0001/manifest.json"
    trees = list(fake.commits.values())
    first = next(i for i, tree in enumerate(trees) if manifest in tree)
    assert set(trees[first]) - set(trees[first - 1]) == {manifest}
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, False)
    assert fake.calls == once * 3
    # What happens to the branch later changes nothing.
    fake._commit({})
    assert pull(other, "ppo", remote, View()) == dict.fromkeys(CHAIN, True)
    assert all(other.verify(ref) == [] for ref in CHAIN)
    assert [str(ref) for ref in list_refs(remote)] == ["ppo@v1", "rm@v1", "sft@v1"]


def test_f10_a_push_to_the_hub_that_fails_at_any_call_leaves_no_tag_without_its_data_and_the_next_one_finishes(
    store, publish, fake, remote
):
    publish(store, "sft")
    for n in range(1, 20):
        fake.__init__()
        fake.fail_at = n
        try:
            push(store, "sft", remote, View())
        except StoreError as error:
            assert error.exit_code == 5 and not fake.tags
            push(store, "sft", remote, View())
        else:
            break
        tree = fake.commits[fake.tags["sft-v0001"]]
        for entry in store.get("sft").manifest.files:
            assert hashlib.sha256(tree[f"artifacts/sft/v0001/{entry.path}"]).hexdigest() == entry.sha256
    assert n == 10  # 2 + 3 + 2 + 2 calls


@pytest.mark.parametrize("call", ["repo_info", "upload", "create_commit", "create_tag"])
def test_of_two_who_push_another_content_at_once_the_tag_holds_one_of_them_whole(store, publish, other, fake, remote, tmp_path, call):
    publish(store, "sft", {"model/config.json": b"{}", "model/model.safetensors": b"ours"})
    publish(other, "sft", {"model/config.json": b"[]", "model/model.safetensors": b"them", "log.txt": b""})
    told = {}

    def try_push(source):
        try:
            told[source] = push(source, "sft", remote, View())
        except StoreError as error:
            told[source] = error

    fake.between = (call, lambda: try_push(other))
    try_push(store)
    winner, loser = (store, other) if call == "create_tag" else (other, store)  # who committed the manifest first
    assert told[winner] == {"sft@v1": True}
    assert told[loser].exit_code == 3 and all(each.get("sft").content_id[:12] in told[loser].message for each in told)
    pulled = Store(tmp_path / "pulled")
    pull(pulled, "sft", remote, View())
    assert pulled.get("sft").content_id == winner.get("sft").content_id and pulled.verify("sft@v1") == []


def test_a_repository_that_is_not_there_holds_nothing(other, fake, remote):
    assert list_refs(remote) == []
    with pytest.raises(StoreError) as raised:
        pull(other, "sft", remote, View())
    assert raised.value.exit_code == 4
