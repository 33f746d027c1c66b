from pipeline.launch.failure import last_lines


def test_the_tail_of_a_huge_log_is_read_without_the_rest(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("x" * 10_000_000 + "\nlast\n")
    assert last_lines(path)[-1] == "last"
    assert last_lines(tmp_path / "missing") == []
