"""Signatures and bills of materials, by the libraries themselves."""

import json
import shutil

import pytest

from pipeline.errors import StoreError
from pipeline.store.manifest import Parent, render_manifest
from pipeline.store.mark import MARK_FILE
from pipeline.store.removal import remove
from pipeline.store.sbom import make_bill


@pytest.fixture
def keys(tmp_path):
    """Two pairs of keys: (private, public), (private, public)."""
    pytest.importorskip("OpenSSL", reason="model-signing imports pyopenssl, and does not name it")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pairs = []
    for name in ("ours", "theirs"):
        private = ec.generate_private_key(ec.SECP256R1())
        paths = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        paths[0].write_bytes(private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
        paths[1].write_bytes(private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
        pairs.append(paths)
    return pairs


@pytest.fixture
def chain(store, publish):
    """sft@v1 and rm@v1, which was made from it."""
    sft = publish(store)
    publish(
        store,
        "rm",
        parents=[Parent(ref=sft.ref, content_id=sft.content_id)],
        data={"comparisons.train": "sha256:" + "a" * 64, "comparisons.eval": "0.05 of the conversations in train"},
        packages={"python": "3.11.7", "torch": "2.13.0"},
        facts={"base_model": "org/base"},
        config={"base_model": "hub:org/base@abc"},
        seed=11,
    )
    return store


@pytest.mark.slow
def test_a_signature_holds_for_this_very_artifact_and_key_only(chain, keys, tmp_path):
    from pipeline.store.signing import find_signature_problems, sign

    (private, public), (_, other) = keys
    artifact = chain.get("rm")
    assert "not there; a signature is needed" in find_signature_problems(artifact, public)[0]
    _, place = sign(chain, "rm", private)
    assert place == artifact.path.parent / "v0001.sig.json" and chain.refs("rm") == ["rm@v1"] and chain.verify("rm") == []
    assert find_signature_problems(artifact, public) == []
    assert "Key mismatch" in find_signature_problems(artifact, other)[0]

    signature = place.read_bytes()
    for damaged in (b"", b"{}", signature[:-40], json.dumps({"mediaType": 3}).encode()):
        place.write_bytes(damaged)
        (problem,) = find_signature_problems(artifact, public)
        assert "\n" not in problem and "do not use it" in problem
    place.write_bytes(signature)

    # Another parent, under a right seal and in a store that keeps no ledger: only the signature knows.
    for path in (artifact.path, artifact.path / "manifest.json"):
        path.chmod(0o755)
    exchanged = artifact.manifest.model_copy(update={"parents": []})
    (artifact.path / "manifest.json").write_bytes(render_manifest(exchanged))
    for name in ("ledger.jsonl", MARK_FILE):
        (chain.root / name).unlink()
    assert chain.verify("rm@v1") == [] and "manifest.json" in find_signature_problems(chain.get("rm"), public)[0]

    remove(chain, ["rm@v1"])
    assert not place.exists()


def test_a_key_that_is_none_is_told(chain, keys, tmp_path):
    from pipeline.store.signing import find_signature_problems, sign

    (tmp_path / "text").write_text("no key")
    for key, code in ((tmp_path / "nowhere", 4), (tmp_path / "text", 2), (keys[0][1], 2)):
        with pytest.raises(StoreError) as caught:
            sign(chain, "sft", key)
        assert caught.value.exit_code == code and "openssl ecparam" in caught.value.message
    with pytest.raises(StoreError):
        find_signature_problems(chain.get("sft"), keys[0][0])
    assert not list(chain.root.rglob("*.sig.json"))


@pytest.mark.slow
def test_a_bill_of_materials_is_valid_and_names_files_data_packages_and_ancestors(chain):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    artifact = chain.get("rm")
    text = make_bill(artifact, chain.lineage("rm"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    root = bill["metadata"]["component"]
    assert (root["type"], root["name"], root["version"]) == ("machine-learning-model", "rm", "v1")
    assert {file["name"]: file["hashes"][0]["content"] for file in root["components"]} == {
        entry.path: entry.sha256 for entry in artifact.manifest.files
    }
    named = {(component["type"], component["name"]) for component in bill["components"]}
    assert named == {
        ("machine-learning-model", "sft"), ("machine-learning-model", "org/base"), ("data", "comparisons.train"),
        ("data", "comparisons.eval"), ("library", "python"), ("library", "torch"),
    }  # fmt: skip
    depends = {row["ref"]: set(row.get("dependsOn", ())) for row in bill["dependencies"]}
    assert "sft@v1" in depends["rm@v1"] and "pkg:pypi/torch@2.13.0" in depends["rm@v1"] and not depends["sft@v1"]
    assert make_bill(chain.get("rm"), chain.lineage("rm")) == text


@pytest.mark.slow
def test_what_is_valid_by_the_validator_is_not_everything(chain):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = json.loads(make_bill(chain.get("sft"), []))
    bill["metadata"]["component"]["type"] = "model"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is not None


def test_signatures_are_no_versions(store, publish):
    artifact = publish(store)
    shutil.copy(artifact.path / "manifest.json", artifact.path.parent / "v0002.sig.json")
    assert store.refs() == ["sft@v1"] and publish(store).version == 2
