"""The manifest: what it says, that it cannot be changed unseen, and how content ids are made."""

import hashlib
import json
import math

import pytest
from pydantic import ValidationError

from pipeline.store.manifest import (
    CodeState,
    FileEntry,
    Manifest,
    ManifestFields,
    Parent,
    check_file_name,
    compute_content_id,
    parse_sealed,
    render_manifest,
)
from stages.result import StageWarning


def entry(path, content=b"x"):
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def make_manifest(**fields):
    defaults = {"kind": "rm", "version": 3, "content_id": "0" * 64, "created_utc": "2026-11-22T04:00:00+00:00", "files": [entry("a")]}
    return Manifest(**{**defaults, **fields})


def test_a_manifest_survives_writing_and_reading():
    manifest = make_manifest(
        parents=[Parent(ref="sft@v1", content_id="1" * 64)],
        data={"comparisons": "sha256:ab"},
        cache_key="c" * 64,
        config={"rm": {"learning_rate": 1e-5, "lora": None, "note": 'a "quote", ü, \n, </script>'}},
        seed=7,
        code=CodeState(commit="deadbeef", dirty=True),
        packages={"torch": "2.13.0"},
        device="cpu",
        world_size=2,
        metrics={"eval/accuracy": 0.8125},
        facts={"pad_token_id": 0, "score_bias": -0.25},
        counts={"comparisons": 2000},
        duration_s=12.5,
        run_id="20261122-040000-rm",
    )
    assert parse_sealed(render_manifest(manifest))[0] == manifest


def test_a_manifest_is_plain_json_and_closed():
    content = json.loads(render_manifest(make_manifest()))
    assert content["schema_version"] == 1
    assert set(content) == {"manifest_sha256", *Manifest.model_fields} - {"imported", "intervals", "warnings", "notes"}
    with pytest.raises(ValidationError, match="extra"):
        ManifestFields(metric={"a": 1.0})


def test_warnings_and_notes_are_kept_and_leave_no_trace_where_there_are_none():
    manifest = make_manifest(warnings=[StageWarning(name="kl", message="far", first_step=3, last_step=9)], notes=["a note"])
    assert parse_sealed(render_manifest(manifest))[0] == manifest
    assert b"warnings" not in render_manifest(make_manifest())  # so that earlier versions read it


def test_metrics_that_are_no_numbers_survive_as_json():
    manifest = make_manifest(metrics={"correlation": math.nan, "loss": math.inf})
    content = render_manifest(manifest)
    assert json.loads(content, parse_constant=pytest.fail)["metrics"] == {"correlation": "NaN", "loss": "Infinity"}
    read = parse_sealed(content)[0].metrics
    assert math.isnan(read["correlation"]) and read["loss"] == math.inf


def test_every_flipped_bit_of_a_manifest_is_noticed():
    content = render_manifest(make_manifest(config={"seed": 7}))
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(ValueError):
                parse_sealed(bytes(flipped))


def test_every_truncation_of_a_manifest_is_noticed():
    content = render_manifest(make_manifest())
    for length in range(len(content)):
        with pytest.raises(ValueError):
            parse_sealed(content[:length])


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "a\0", "a\nb", "a\x1b[0m", "a\\b", "\udcff", "manifest.json"],
)
def test_unsafe_and_reserved_file_names_are_refused(name):
    with pytest.raises(ValueError):
        check_file_name(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model/training_args.bin", "optimizer.pt", "x.PKL", "a.pth", "a.pickle", "a.ckpt"])
def test_pickles_are_refused(name):
    with pytest.raises(ValueError, match="safetensors"):
        check_file_name(name)


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "a b.txt", "ünï/çödé.json", ".gitattributes", "..a", "model/manifest.json", "a.bin.txt"]
)
def test_ordinary_file_names_are_allowed(name):
    assert check_file_name(name) == name


def test_a_path_that_stands_twice_is_refused():
    with pytest.raises(ValidationError, match="twice"):
        make_manifest(files=[entry("a"), entry("a")])


def test_a_content_id_is_the_hash_of_the_sorted_payload():
    weights, config = entry("model/model.safetensors", b"w"), entry("model/config.json", b"{}")
    lines = f"{config.sha256} 2 model/config.json\n{weights.sha256} 1 model/model.safetensors\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert compute_content_id([weights, config]) == expected
    # Logs and timings are evidence, not content.
    assert compute_content_id([entry("metrics.jsonl", b"1"), config, entry("log.txt"), weights]) == expected


def test_a_content_id_changes_with_each_byte_name_and_payload_file():
    base = [entry("model/a", b"1"), entry("model/b", b"2")]
    others = [
        [entry("model/a", b"1"), entry("model/b", b"3")],
        [entry("model/a", b"1"), entry("model/c", b"2")],
        [entry("model/a", b"2"), entry("model/b", b"1")],
        [entry("model/a", b"1")],
        [*base, entry("merged/a", b"1")],
    ]
    ids = {compute_content_id(files) for files in [base, *others]}
    assert len(ids) == 6


def test_without_a_model_all_files_are_content():
    assert compute_content_id([entry("rows.jsonl", b"1")]) != compute_content_id([entry("rows.jsonl", b"1"), entry("notes.txt")])
    assert compute_content_id([entry("merged/a"), entry("notes.txt", b"1")]) != compute_content_id(
        [entry("merged/a"), entry("notes.txt", b"2")]
    )


def test_times_and_memory_of_an_artifact_without_a_model_are_no_content():
    found, other = (FileEntry(path="evaluation.json", size=2, sha256=each * 64) for each in "ab")
    results = [FileEntry(path="result.json", size=2, sha256=each * 64) for each in "cd"]
    assert compute_content_id([found, results[0]]) == compute_content_id([results[1], found]) != compute_content_id([other, results[0]])
    assert compute_content_id([results[0]]) != compute_content_id([results[1]])
    assert compute_content_id([found, entry("skipped.jsonl", b"/a/rows.jsonl:3"), entry("log.txt")]) == compute_content_id([found])
