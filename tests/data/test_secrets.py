"""S11: what is a secret, and what only looks like one."""

import base64
import html
import json
import shlex
import time
from urllib.parse import quote

import pytest

from data.secrets import holds_environment_secret, holds_secret, names_secret, redact, redact_values

SHAPES = [
    "hf_abcdefghij0123456789",
    "ghp_abcdefghij0123456789",
    "gho_abcdefghij0123456789",
    "github_pat_11ABCDEFG0123456789_abc",
    "glpat-abcDEF0123456789",
    "xoxb-123456789012-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "sk-proj-abcdefghijklmnop1",
    "sk_live_abcdefghijklmnop1",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc/+=\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\\nMIIEowIBAAKCAQEA\\n-----END PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SHAPES)
def test_texts_of_a_known_shape_are_blotted_out_wherever_they_stand(secret):
    assert holds_secret(secret)
    for before, after in (("", ""), ("x ", " y"), ("'", "'"), ("(", ")"), ("key=", ",")):
        assert redact(f"{before}{secret}{after}", {}) == f"{before}***{after}"


def test_a_private_key_that_is_cut_off_is_blotted_out_as_far_as_it_goes():
    assert redact("a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\nZXktdjE=", {}) == "a\n***"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:pw@host/x", "https://***@host/x"),
        ("git clone https://abcdefghij0123456789@host/x", "git clone https://***@host/x"),
        ("GET /x?api_key=1&page=2", "GET /x?api_key=***&page=2"),
        ("?a=1&amp;token=xyz#top", "?a=1&amp;token=***#top"),
        ("s3?X-Amz-Credential=a%2Fb&X-Amz-Signature=0f&X-Amz-Date=3", "s3?X-Amz-Credential=***&X-Amz-Signature=***&X-Amz-Date=3"),
        ("Endpoint=sb://x/;SharedAccessKey=abc", "Endpoint=sb://x/;SharedAccessKey=***"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic bWU6cHc=", "Authorization: Basic ***"),
    ],
)
def test_of_an_address_only_the_secret_is_blotted_out(text, kept):
    assert redact(text, {}) == kept and holds_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/org/model",
        "https://host/pkg:name@1.0/x",
        "sk-learn-like-estimators, task-12345678901234567",
        "hf_hub_download, hf_transfer",
        "?page=1&sort=key&author=bob&monkey=3&tokens=5",
        "basic understanding of bearer bonds",
        "max_prompt_tokens: 512, pad_token: <pad>, eos_token='</s>'",
        "-----BEGIN PUBLIC KEY-----",
        "the ratio a:b @ noon; key=value",
        "train/loss 0.1234, learning_rate 1e-05",
        "d41d8cd98f00b204e9800998ecf8427e",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact(text, {"A": "1"}) == text and not holds_secret(text)


SECRET_NAMES = "HF_TOKEN DB_PASSWD SSH_KEY GITHUB_PAT OPENAI_KEY OPENAI_API_KEY apiKey X-Api-Key DATABASE_URL SENTRY_DSN MY_SECRET"
SECRET_NAMES += " HEROKU_KEY2 TOKEN1 DJANGO_SALT AZURE_SAS CLIENT_PASSCODE OAUTH BEARER"
SECRET_NAMES += " AWS_ACCESS_KEY_ID DB_PWD PGPASSWORD MYTOKEN CREDENTIALS SMTP_PASS SECRET_KEY_BASE SLACK_WEBHOOK_URL MONGO_URI"
OTHER_NAMES = "PATH PWD OLDPWD TOKENIZERS_PARALLELISM HF_TOKEN_PATH SSL_KEY_FILE SSH_AUTH_SOCK KEYBOARD MONKEY COMPAT SPATIAL pad_token"
OTHER_NAMES += " eos_token max_tokens_limit GIT_CONFIG_KEY_0 PATTERN AUTHOR HOME LANG SECRET_NAME PASSING"


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_that_say_that_their_value_is_secret(name):
    assert names_secret(name)


@pytest.mark.parametrize("name", OTHER_NAMES.split())
def test_names_that_only_sound_like_it(name):
    assert not names_secret(name)


@pytest.mark.parametrize(
    ("value", "text", "kept"),
    [
        ("canary-4711-canary", "a canary-4711-canary b", "a *** b"),
        ("canary-4711-canary", "acanary-4711-canaryb", "a***b"),
        ("hunter2", "pw hunter2, (hunter2)", "pw ***, (***)"),
        ("hunter2", "hunter2000 xhunter2", "hunter2000 xhunter2"),
        ("p4ss", "p4ss p4ssage", "*** p4ssage"),
        ("xKqPzRt", "xKqPzRt", "***"),
        ("swordfish", "swordfish swordfishes", "*** swordfishes"),
        ("12345678", "12345678 3123456789", "*** 3123456789"),
        ('a"b\\c\né-0123456789', 'json "a\\"b\\\\c\\n\\u00e9-0123456789"', 'json "***"'),
        ("a b/c?d=0123456789", "quoted a%20b/c%3Fd%3D0123456789", "quoted ***"),
        ("0123456789abcdef0123456789abcdef0123456789", "cut '0123456789abcdef0123456789abc...'", "cut '***...'"),
        ("line one 0815\nline two 4711", "first: line one 0815\nsecond: line two 4711", "first: ***\nsecond: ***"),
        ("postgres://me:pa55word@host/db", "postgres://me:pa55word@host/db and pa55word", "*** and ***"),
    ],
)
def test_the_value_of_a_secret_variable_is_blotted_out_in_every_way_of_writing_it(value, text, kept):
    assert redact(text, {"MY_TOKEN": value}) == kept
    assert redact(text, {"HARMLESS": value}) == (text if "://" not in value else "postgres://***@host/db and ***")


def encoded(text, before=""):
    return base64.b64encode(f"{before}{text}".encode()).decode()


@pytest.mark.parametrize("before", ["", "u", "me:", "user:"])  # as in `Authorization: Basic`: at each of three places in a group
def test_a_secret_in_base64_keeps_no_byte_of_its_own_but_the_last(before):
    secret = "s3cr3tValue/with+odd=chars"
    for text in (encoded(secret, before), encoded(secret, before).translate(str.maketrans("+/", "-_"))):
        left = redact(f"auths: {text}", {"MY_TOKEN": secret}).removeprefix("auths: ")
        assert "***" in left and len(left) <= len("***") + len(encoded(before)) + 4
    assert redact(secret.encode().hex(), {"MY_TOKEN": secret}) == "***"


@pytest.mark.parametrize(
    ("written", "as_found"),
    [
        (html.escape('it\'s <0815> & "4711"'), "HTML"),
        (shlex.quote('it\'s <0815> & "4711"')[1:-1], "a shell"),
        (json.dumps(json.dumps('it\'s <0815> & "4711"')[1:-1])[1:-1], "JSON in JSON"),
        (quote('it\'s <0815> & "4711"', "").lower(), "an address in small letters"),
    ],
)
def test_a_secret_is_found_in_what_libraries_make_of_it(written, as_found):
    assert redact(f"a {written} b", {"MY_TOKEN": 'it\'s <0815> & "4711"'}) == "a *** b", as_found


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (json.dumps({"client_id": "harmless-4711", "client_secret": "q8-0123456789"}), "q8-0123456789"),
        (json.dumps([{"private_key": "-----BEGIN KEY-----\nMIIE0815abc\n"}]), "MIIE0815abc"),
        ("host=db.internal password=hunter22 user=me", "hunter22"),
        ("Endpoint=https;AccountName=me;AccountKey=Zm9vYmFyMTIz==;x=y", "Zm9vYmFyMTIz=="),
        ("https://me:p%40ss%2Fw0rd@host/x", "p@ss/w0rd"),
        ("https://me:p@ss-w0rd@host/x", "p@ss-w0rd"),
        ("https://0123456789abcdef0123@host/x", "0123456789abcdef0123"),
    ],
)
def test_a_secret_within_the_value_of_any_variable_is_one_by_itself(value, secret):
    assert redact(f"found {secret}, harmless-4711 db.internal", {"HARMLESS": value}) == "found ***, harmless-4711 db.internal"


def test_a_password_in_an_address_may_hold_the_sign_that_ends_it():
    assert redact("see https://me:p@ss-w0rd@host/x?to=a@b", {}) == "see https://***@host/x?to=a@b"


def test_settings_in_a_variable_that_only_sound_like_secrets_are_none():
    text = "tokens.end_token=<|im_end|> ppo.stop_token=<|stop-42|> sft.max_tokens=4096"
    assert redact(text, {"SET": text, "MAKEFLAGS": f" -- SET={text}"}) == text


@pytest.mark.parametrize("value", ["", "1", "on", "abc", "true", "demo", "Train", "NONE", "4096", "1e-5", "0.001", "/usr/bin", "~"])
def test_what_stands_in_ordinary_text_by_chance_is_left_alone(value):
    text = f"{value} true demo 1 4096 /usr/bin/env Train"
    assert redact(text, {"MY_TOKEN": value, "KEY": value}) == text


def test_nested_values_are_redacted_and_numbers_and_ordinary_names_kept():
    row = {"step": 3, "objective/kl": 0.5, "of hunter2": [True, None, ("x hunter2", {"url": "https://a:b@c"})]}
    environment = {"DB_PASSWD": "hunter2", "KEY": "objective", "TOKEN": "3"}
    assert redact_values(row, environment) == {"step": 3, "objective/kl": 0.5, "of ***": [True, None, ["x ***", {"url": "https://***@c"}]]}
    assert redact_values({"a": "objective"}, environment) == {"a": "***"}
    plain = {"prompt": "hello", "figures": {"a": 1}}
    assert redact_values(plain, environment) is plain


def test_a_recipe_may_hold_words_but_no_long_secret_of_the_environment():
    environment = {"A_KEY": "demonstrations", "B_TOKEN": "demo", "C_TOKEN": "q8-0123456789"}
    assert [holds_environment_secret(text, environment) for text in ("demonstrations demo", "/data/q8-0123456789/x")] == [False, True]


def test_redaction_costs_little():
    """A megabyte of a log in well under a second, a row of 40 figures in well under a millisecond; ten times as much is allowed here."""
    environment = {f"VARIABLE_{i}": f"value {i}" for i in range(80)} | {f"K{i}_TOKEN": f"secret-{i}-0123456789abcdef" for i in range(10)}
    log = "{'loss': 0.1234, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'epoch': 0.1} step 12/400 [00:12<02:11,  3.1it/s]\n" * 10_000
    row = {f"train/figure_{i}": i / 7 for i in range(40)}
    begin = time.process_time()
    assert redact(log, environment) == log
    middle = time.process_time()
    for _ in range(100):
        redact_values(row, environment)
    end = time.process_time()
    assert middle - begin < 3 and end - middle < 1
