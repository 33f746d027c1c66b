from pipeline.launch.events import EventReader


def test_a_torn_event_waits_for_its_end(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []
    with path.open("a") as stream:
        stream.write('{"event": "start"}\n{"event": "pro')
        stream.flush()
        assert reader.read() == [{"event": "start"}]
        stream.write('gress"}\nnot json\n[1]\n')
    assert reader.read() == [{"event": "progress"}]
    assert reader.read() == []
