"""What changed between two artifacts is found where it was made, and what it did stands side by side."""

from pipeline.store.compare import Figure, changed_leaves, compare_lines, compare_manifests, describe_change
from pipeline.store.manifest import CodeState, FileEntry, Manifest, Parent


def manifest(kind, version, content, parents=(), **fields):
    return Manifest(
        kind=kind,
        version=version,
        content_id=content * 64,
        created_utc="2026-01-01T00:00:00+00:00",
        files=[FileEntry(path="model/a", size=1, sha256=content * 64)],
        parents=[Parent(ref=f"{parent.kind}@v{parent.version}", content_id=parent.content_id) for parent in parents],
        **fields,
    )


def words(difference):
    return [change.words for change in difference.changes]


def test_config_data_code_packages_and_machine_are_told():
    old = manifest(
        "sft",
        1,
        "a",
        config={"seed": 1, "sft": {"epochs": 3.0, "lora": None}, "stage_version": 4},
        data={"demonstrations.train": "sha256:1", "demonstrations.eval": "sha256:2"},
        code=CodeState(commit="0" * 40),
        packages={"torch": "2.13"},
        device="cpu",
        metrics={"eval/loss": 0.4, "eval/old": 1.0},
        counts={"demonstrations": 10, "prompts_cut": 0},
    )
    new = manifest(
        "sft",
        2,
        "b",
        config={"seed": 1, "sft": {"epochs": 5.0, "lora": None}, "stage_version": 5},
        data={"demonstrations.train": "sha256:3", "demonstrations.eval": "sha256:2"},
        code=CodeState(commit="1" * 40, dirty=True),
        packages={"torch": "2.14"},
        device="cuda",
        metrics={"eval/loss": 0.3},
        counts={"demonstrations": 12, "prompts_cut": 0},
    )
    found = compare_manifests(old, new)
    assert (found.old, found.new, found.same_content) == ("sft@v1", "sft@v2", False)
    assert words(found) == [
        "sft.epochs changed 3.0 -> 5.0",
        "the stage's code changed (version 4 -> 5)",
        "demonstrations.train changed 1 -> 3",
        "code changed 000000000000000 -> 111111111111111 with changes",
        "torch changed 2.13 -> 2.14",
        "device changed cpu -> cuda",
    ]
    assert found.figures == (Figure("eval/loss", 0.4, 0.3), Figure("eval/old", 1.0, None))
    assert found.counts == (Figure("demonstrations", 10, 12),)


def test_a_block_that_is_switched_on_or_off_is_one_change():
    lora, free = {"rank": 8, "merge": False}, {"request": {"a.b": 1}, "trainer_args": {}}
    off = {"sft": {"lora": None, "epochs": 1.0, **free}}
    on = {"sft": {"lora": lora, "epochs": 2.0, **free, "trainer_args": {"max_steps": 3}}}
    told = [describe_change(*change) for change in changed_leaves(off, on)]
    assert told == [
        "sft.epochs changed 1.0 -> 2.0",
        'sft.lora changed null -> {"rank": 8, "merge": false}',
        "sft.trainer_args.max_steps changed null -> 3",
    ]
    assert list(changed_leaves(on, off))[1] == ("sft.lora", lora, None)
    other = {"sft": {**on["sft"], "lora": {"rank": 4, "merge": False}}}
    assert list(changed_leaves(on, other)) == [("sft.lora.rank", 8, 4)]
    assert not list(changed_leaves(on, on)) and not list(changed_leaves(off, off))


def test_a_change_is_found_in_the_ancestor_that_made_it():
    sft = manifest("sft", 1, "a", config={"sft": {"epochs": 3}})
    rm = manifest("rm", 1, "b", [sft])
    mild = manifest("ppo", 1, "c", [sft, rm], config={"ppo": {"kl_coef": 0.05}})
    free = manifest("ppo", 2, "d", [sft, rm], config={"ppo": {"kl_coef": 0.0}})
    tested = manifest("evaluation", 1, "e", [sft, rm, mild]), manifest("evaluation", 2, "f", [sft, rm, free])
    found = compare_lines([tested[0], mild, rm, sft], [tested[1], free, rm, sft])
    assert [(part.kind, part.old, part.new) for part in found] == [
        ("sft", "sft@v1", "sft@v1"),
        ("rm", "rm@v1", "rm@v1"),
        ("ppo", "ppo@v1", "ppo@v2"),
        ("evaluation", "evaluation@v1", "evaluation@v2"),
    ]
    assert [words(part) for part in found] == [[], [], ["ppo.kl_coef changed 0.05 -> 0.0"], [f"ppo changed {'c' * 12} -> {'d' * 12}"]]


def test_equal_content_under_another_number_is_no_change():
    first, second = manifest("sft", 1, "a"), manifest("sft", 2, "a")
    (found,) = compare_lines([first], [second])
    assert found.same_content
    assert compare_manifests(manifest("rm", 1, "b", [first]), manifest("rm", 2, "b", [second])).changes == ()


def test_an_ancestor_that_only_one_has_is_named_without_a_comparison():
    pretrained = manifest("pretrain", 1, "0")
    found = compare_lines([manifest("sft", 1, "a")], [manifest("sft", 2, "b", [pretrained]), pretrained])
    assert {part.kind: (part.old, part.new) for part in found} == {"pretrain": (None, "pretrain@v1"), "sft": ("sft@v1", "sft@v2")}


def test_artifacts_of_two_kinds_are_compared_by_themselves():
    sft = manifest("sft", 1, "a", config={"seed": 1, "stage_version": 2, "sft": {"epochs": 3}}, metrics={"eval/a": 1.0, "eval/b": 2.0})
    ppo = manifest("ppo", 3, "b", config={"seed": 2, "stage_version": 1, "ppo": {"kl_coef": 0.05}}, metrics={"eval/b": 3.0})
    (found,) = compare_lines([ppo, sft], [sft])
    assert (found.old, found.new) == ("ppo@v3", "sft@v1")
    assert words(found) == ["seed changed 2 -> 1"]  # what only one has is no difference
    assert found.figures == (Figure("eval/b", 3.0, 2.0),)


def test_kinds_stand_in_the_order_of_the_stages_that_make_them():
    ppo = manifest("ppo", 1, "a")
    line = [manifest("evaluation", 1, "b", [ppo]), ppo, manifest("adapters", 1, "c")]
    assert [found.kind for found in compare_lines(line, line)] == ["ppo", "evaluation", "adapters"]
