"""Only complete checkpoints count; damage falls back to the one before, with one warning."""

import hashlib
import json
import os
import random
import shutil
import stat

import pytest

from stages.process.checkpoint import drop_unfinished, latest_complete, list_complete, save_checkpoint
from stages.process.errors import StageError
from stages.spec import COMPLETE_FILE


def write_weights(text):
    def write(path):
        (path / "weights.bin").write_text(text)
        (path / "nested").mkdir()
        (path / "nested" / "state.json").write_text("{}")

    return write


@pytest.fixture
def checkpoints(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, write_weights(f"weights of step {step}"))
    return tmp_path


@pytest.fixture
def kept(tmp_path):
    """Two checkpoints in a directory of their own."""
    for step in (5, 10):
        save_checkpoint(tmp_path / "kept", step, write_weights(f"weights of step {step}"))
    return tmp_path / "kept"


def test_the_newest_complete_checkpoint_is_found_by_number_not_by_name(tmp_path):
    save_checkpoint(tmp_path, 9, write_weights("nine"))
    save_checkpoint(tmp_path, 10, write_weights("ten"))
    path, step = latest_complete(tmp_path)
    assert step == 10 and path.name == "checkpoint-10"


def test_two_checkpoints_are_kept(checkpoints):
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-15"]


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert latest_complete(tmp_path) is None


def damage_truncate(path):
    (path / "weights.bin").write_text("w")


def damage_missing(path):
    (path / "nested" / "state.json").unlink()


def damage_flip(path):
    data = bytearray((path / "weights.bin").read_bytes())
    data[3] ^= 1
    (path / "weights.bin").write_bytes(bytes(data))


def damage_unmarked(path):
    (path / COMPLETE_FILE).unlink()


def damage_marker(path):
    (path / COMPLETE_FILE).write_text("{")


def damage_mark_by_a_directory(path):
    (path / COMPLETE_FILE).unlink()
    (path / COMPLETE_FILE).mkdir()


def damage_link(path):
    weights = path / "weights.bin"
    weights.rename(path.parent.parent / "elsewhere.bin")
    weights.symlink_to(path.parent.parent / "elsewhere.bin")


DAMAGES = [damage_truncate, damage_missing, damage_flip, damage_unmarked, damage_marker, damage_mark_by_a_directory, damage_link]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_newest_checkpoint_is_passed_over_with_one_warning(checkpoints, damage):
    damage(checkpoints / "checkpoint-15")
    warnings = []
    path, step = latest_complete(checkpoints, warn=warnings.append)
    assert step == 10 and path.name == "checkpoint-10"
    assert len(warnings) == 1 and "checkpoint-15" in warnings[0]


def test_saving_over_the_remains_of_a_killed_save_works(checkpoints):
    damage_unmarked(checkpoints / "checkpoint-15")
    save_checkpoint(checkpoints, 15, write_weights("again"))
    path, step = latest_complete(checkpoints)
    assert step == 15 and (path / "weights.bin").read_text() == "again"


def test_a_failing_save_leaves_the_older_checkpoints_usable(checkpoints):
    def fail(path):
        (path / "weights.bin").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(checkpoints, 20, fail)
    assert latest_complete(checkpoints, warn=lambda _: None)[1] == 15


def test_a_checkpoint_of_another_layout_is_refused_in_one_line_and_left_alone(tmp_path):
    layout = "ZeRO stage 2 on 2 processes"
    save_checkpoint(tmp_path, 5, write_weights("shared out"), layout=layout)
    for other in ("whole", "ZeRO stage 2 on 4 processes", "ZeRO stage 3 on 2 processes"):
        with pytest.raises(
            StageError, match=r"checkpoint-5 was written with ZeRO stage 2 on 2 processes, this run is .* --force"
        ) as caught:
            latest_complete(tmp_path, layout=other)
        assert caught.value.exit_code == 2
    assert latest_complete(tmp_path, layout=layout)[1] == 5


ODD_MARKERS = [
    "null", "[]", "7", '"x"', "{}", "[" * 100_000, '{"step": 10, "layout": "whole", "files": {}}',
    '{"step": 10, "layout": "whole", "files": []}', '{"step": 10, "layout": ["whole"], "files": {"a": {"size": 1, "sha256": ""}}}',
    '{"step": 10, "layout": "whole", "files": {"weights.bin": null}}', '{"step": 10, "layout": "whole", "files": {"weights.bin": [1]}}',
    '{"step": 10, "layout": "whole", "files": {"a\\u0000b": {"size": 1, "sha256": ""}}}',
    '{"step": 10, "layout": "whole", "files": {"' + "a" * 5000 + '": {"size": 1, "sha256": ""}}}',
    '{"step": 5, "layout": "whole", "files": {"weights.bin": {"size": 1, "sha256": ""}}}',
    '{"step": 1' + "0" * 5000 + ', "layout": "whole", "files": {}}',
]  # fmt: skip


@pytest.mark.parametrize("marker", ODD_MARKERS, ids=lambda text: text[:40])
def test_f4_a_marker_of_any_odd_content_is_passed_over_with_one_warning(kept, marker):
    (kept / "checkpoint-10" / COMPLETE_FILE).write_text(marker)
    warnings = []
    assert latest_complete(kept, warn=warnings.append)[1] == 5
    assert len(warnings) == 1 and "passed over checkpoint-10 (" in warnings[0]


def test_f4_a_marker_cannot_vouch_for_files_elsewhere(kept, tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    for name in ("../../elsewhere", str(tmp_path / "elsewhere")):
        entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
        (kept / "checkpoint-10" / COMPLETE_FILE).write_text(json.dumps({"step": 10, "layout": "whole", "files": {name: entry}}))
        assert latest_complete(kept, warn=lambda _: None)[1] == 5


def test_f4_60_damaged_markers_and_a_megabyte_more_end_in_a_warning_each(kept):
    path, rng = kept / "checkpoint-10" / COMPLETE_FILE, random.Random(15)
    intact = path.read_bytes()
    for _ in range(60):
        content = bytearray(intact)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(content))
            content[at : at + rng.randrange(4)] = rng.choice([b"", b"null", b"[]", b"-1", b'"', b"{", b"\xff", b"1e400", rng.randbytes(3)])
        path.write_bytes(content)
        warnings = []
        found = latest_complete(kept, warn=warnings.append)
        assert (found[1] == 5 and len(warnings) == 1) or (found[1] == 10 and not warnings)
    path.write_bytes(b" " * (9 * 1024 * 1024) + intact)
    assert latest_complete(kept, warn=lambda _: None)[1] == 5


@pytest.mark.parametrize(
    "name", ["checkpoint-²", "checkpoint-x", "checkpoint-", "checkpoint-007", f"checkpoint-1{'0' * 23}", "checkpoint-1e3"]
)
def test_what_no_save_names_so_is_no_checkpoint_and_stays(kept, name):
    shutil.copytree(kept / "checkpoint-10", kept / name)
    assert latest_complete(kept, warn=pytest.fail)[1] == 10
    save_checkpoint(kept, 15, write_weights("next"))
    drop_unfinished(kept)
    assert list_complete(kept)
    assert {path.name for path in kept.iterdir()} == {name, "checkpoint-10", "checkpoint-15"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_in_the_way_of_a_checkpoint_is_told_before_training_and_stays(kept, tmp_path, kind):
    path = kept / "checkpoint-12"
    if kind == "file":
        path.write_text("mine")
    else:
        save_checkpoint(tmp_path / "other", 12, write_weights("of another"))
        path.symlink_to(tmp_path / "other" / "checkpoint-12")
    with pytest.raises(StageError, match=f"checkpoint-12: found a {kind}, needed a directory or nothing; move it elsewhere") as refusal:
        latest_complete(kept)
    assert refusal.value.exit_code == 5
    for step in (20, 30):
        save_checkpoint(kept, step, write_weights("later"))
    drop_unfinished(kept)
    assert path.exists() and (kind == "file" or (tmp_path / "other" / "checkpoint-12" / "weights.bin").exists())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_of_a_checkpoint_follow_the_umask_whatever_wrote_them(tmp_path, umask, mode):
    def write(path):
        for name in ("weights", "state"):
            (path / name).write_text("x")
            (path / name).chmod(0o600)

    before = os.umask(umask)
    try:
        path = save_checkpoint(tmp_path / "of-it", 1, write)
    finally:
        os.umask(before)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == dict.fromkeys(
        ("weights", "state", COMPLETE_FILE), mode
    )
