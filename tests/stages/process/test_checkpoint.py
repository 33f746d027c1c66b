"""Only complete checkpoints count; damage falls back to the one before, with one warning."""

import pytest

from stages.process.checkpoint import COMPLETE_FILE, latest_complete, save_checkpoint
from stages.process.errors import StageError


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


@pytest.mark.parametrize("damage", [damage_truncate, damage_missing, damage_flip, damage_unmarked, damage_marker], ids=lambda f: f.__name__)
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
