"""S5: refs, kinds and aliases follow strict patterns."""

import pytest

from pipeline.errors import StoreError
from pipeline.store.refs import ContentPrefix, Ref, check_alias, check_kind, parse_ref, parse_version_directory, version_directory

HOSTILE = [
    "",
    "..",
    "../sft",
    "sft/../rm",
    "/etc/passwd",
    "-rf",
    "--help",
    "sft\n",
    "sft\0",
    "a\x1b[31mred",
    "a b",
    "$(touch x)",
    "`id`",
    "ünïcode",
    "s" * 300,
    ".hidden",
    "C:\\x",
    "a;b",
    "sft@",
]


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("ppo", Ref("ppo")),
        ("ppo@latest", Ref("ppo")),
        ("ppo@v3", Ref("ppo", version=3)),
        ("ppo@v0003", Ref("ppo", version=3)),
        ("ppo@best-so.far_2", Ref("ppo", alias="best-so.far_2")),
        ("ppo@version", Ref("ppo", alias="version")),
        ("abcdef", ContentPrefix("abcdef")),
        ("0" * 64, ContentPrefix("0" * 64)),
        ("abcde", Ref("abcde")),
    ],
)
def test_a_ref_is_read(text, ref):
    assert parse_ref(text) == ref


@pytest.mark.parametrize("ref", ["ppo@latest", "ppo@v12", "ppo@best", "abcdef12"])
def test_a_ref_is_written_as_it_is_read(ref):
    assert str(parse_ref(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        *(f"sft@{name}" for name in HOSTILE),
        "SFT",
        "12345",
        "0" * 65,
        "ppo@3",
        "ppo@v1@v2",
        "ppo@V/1",
        "ppo@v0",
        f"ppo@v1{'0' * 23}",
    ],
)
def test_a_hostile_ref_is_refused_in_one_plain_line(text):
    with pytest.raises(StoreError) as refusal:
        parse_ref(text)
    assert refusal.value.exit_code == 2
    assert refusal.value.message.isprintable() and len(refusal.value.message) < 400


@pytest.mark.parametrize("name", [*HOSTILE, "latest", "v3", "v0003", "a..b", "3"])
def test_a_hostile_or_computed_alias_is_refused(name):
    with pytest.raises(StoreError) as refusal:
        check_alias(name)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("kind", [*HOSTILE, "Sft", "sft.1", "facade", "1sft"])
def test_a_hostile_kind_or_one_that_reads_like_a_content_id_is_refused(kind):
    with pytest.raises(StoreError) as refusal:
        check_kind(kind)
    assert refusal.value.exit_code == 2


def test_version_directories_are_read_as_they_are_written_and_nothing_else_is():
    assert [version_directory(version) for version in (1, 42, 9999, 12345)] == ["v0001", "v0042", "v9999", "v12345"]
    assert [parse_version_directory(name) for name in ("v0001", "v9999", "v12345")] == [1, 9999, 12345]
    for name in ("v1", "v0000", "v00001", "0001", "v0001 ", "v0001.tmp", "v-001", "v٠٠٠١", "v" + "9" * 30):
        assert parse_version_directory(name) is None
