from pipeline.launch.failure import End, describe_failure, last_lines


def test_the_tail_of_a_huge_log_is_read_without_the_rest(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("x" * 10_000_000 + "\nlast\n")
    assert last_lines(path)[-1] == "last"
    assert last_lines(tmp_path / "missing") == []


def test_an_error_that_could_only_be_printed_is_the_message(tmp_path):
    """On a full disk no event can be written."""
    path, ends = tmp_path / "log.txt", [End(None, 5, True)]
    path.write_text(
        "$ python -m stages.sft\nerror: /store: No space left on device\nthe error could not be written to the event log either\n"
    )
    assert str(describe_failure("sft", ends, None, None, path, 0)) == "sft: /store: No space left on device"
    failure = describe_failure("sft", ends, None, None, path, path.stat().st_size)  # another attempt's, which this one adds nothing to
    assert (str(failure), failure.exit_code) == ("sft: ended with exit code 5", 5)
