from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.environment.secrets import MARK, redact, redact_arguments, redact_tree

ORDINARY = [
    "epoch 3 step 1200 | loss 0.3312 | lr 2.0e-05 | 1234.5 tokens/s | eta 0:12:31",
    " 45%|████▌     | 450/1000 [00:31<00:39, 13.95it/s, loss=0.21]",
    "num_memory_tokens=16, use_cls_token=True, pad_token_id: 0, max_new_tokens=512",
    "{'pad_token': '<pad>', 'cls_token': '[CLS]', 'eos_token': '</s>', 'mask_token': '<mask>'}",
    "commit 07f4974cb3f5b3a1d1c9f0a77c0a3bbf1ad0f5e1",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    '"integrity": "sha512-Zk3bE7q8dQyYxA+K0f3ZkQ7JwW1yX2z9aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789Zk3bE7q8dQ=="',
    "model.encoder.layer.11.attention.self.query.weight torch.Size([768, 768]) torch.float32",
    "/scratch/me/checkpoints/checkpoint_20261124-133155-123456_1000_best.milepost",
    "bert-fine-tuning_20261124-133155 550e8400-e29b-41d4-a716-446655440000",
    "BertForSequenceClassificationWithLayerNormalization2ForConditionalGeneration",
    "_ZN5torch8autograd13EngineThreadC2Ev2at6native12_GLOBAL__N_1",
    "def login(user: str, token: str, password: str = None) -> None:",
    'token = os.environ["HF_TOKEN"]',
    "api_key=self.api_key, key=lambda x: x[0], sort_keys=True, resume_key='bert'",
    "client = Client(password=get_password(), token=token)",
    "git@github.com:owner/repository.git ssh://git@github.com/owner/repository.git",
    "http://localhost:8080/path@1 https://example.org/?step=3&metric=loss",
    "author: Jane2, design=blue7, monkey=banana1, keyboard: abc123",
    "the token is invalid; password for root was refused, secret ingredients are good",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0mF3c9q8Zk1xTz7cU2vY4wB6nH5gR0sD9eL8aK7jQw me@host",
    "num_key_value_heads=8 key_dim: 64 author_pass=1 forward_pass=2 passes: 3 signal=5",
    "PWD=/home/me/work OLDPWD=/home/me",
    "password: None, api_key='', token=****, secret: <hidden>",
]


@pytest.mark.parametrize("line", ORDINARY)
def test_words_of_the_field_stay_as_they_are(line: str) -> None:
    assert redact(line) == line


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("PASSWORD=correcthorse", f"PASSWORD={MARK}"),
        ("export DB_PASS=correcthorse", f"export DB_PASS={MARK}"),
        ("  password: hunter", f"  password: {MARK}"),
        ('password="a\'b c", n=1', f'password="{MARK}", n=1'),
        (r'"{\"api_key\": \"abc\", \"n\": 1}"', rf'"{{\"api_key\": \"{MARK}\", \"n\": 1}}"'),
        ("login(password=b'abc')", f"login(password=b'{MARK}')"),
        ("AccountName=me;AccountKey=q83vEjRWeJASNA+/abc==;x=1", f"AccountName=me;AccountKey={MARK};x=1"),
        ("postgres://me:pa/ss@db:5432/x", f"postgres://{MARK}@db:5432/x"),
        ("postgres://me:p@ss@db:5432/x", f"postgres://{MARK}@db:5432/x"),
        ("Basic dXNlcjpwYXNzd29yZA==", f"Basic {MARK}"),
        ("Cookie: a=1; b=2", f"Cookie: {MARK}"),
        ("-----BEGIN PRIVATE KEY-----\\nMIIE\\n-----END PRIVATE KEY-----, x", f"{MARK}, x"),
    ],
)
def test_only_the_value_is_replaced(line: str, shown: str) -> None:
    assert redact(line) == shown


def test_a_private_key_is_replaced_line_by_line_even_without_its_start_or_end() -> None:
    start, body, end = (
        "-----BEGIN OPENSSH PRIVATE KEY-----\r",
        ["Proc-Type: 4,ENCRYPTED", "abc\r", "xyz=="],
        "-----END RSA ",
    )
    end += "PRIVATE KEY-----"
    for lines in ([start, *body], [*body, end], [start, *body, end]):
        shown = redact("\n".join(["x = 1", *lines, "y = 2"])).split("\n")
        assert (shown[0], shown[-1]) == ("x = 1", "y = 2")
        assert not set(shown) & set(body)


_pieces = st.sampled_from(
    ["password", "api_key", "token", "=", ":", " ", '"', "'", "\\", "\n", "--", "://", "@", "?", "&", "a1",
     "[redacted]", "Bearer ", "Authorization: ", "-----BEGIN PRIVATE KEY-----", "x" * 20, "aB3" * 12,
     "(", "]", "\r", "\x85"]
)  # fmt: skip


@given(st.lists(_pieces | st.text(max_size=5), max_size=12).map("".join))
def test_lines_keep_their_number_and_a_second_pass_changes_nothing(text: str) -> None:
    once = redact(text)
    assert once.count("\n") == text.count("\n")
    assert redact(once) == once


def test_a_megabyte_without_a_space_takes_no_more_than_linear_time() -> None:
    # A quadratic pattern would run for hours here, and into the timeout of the suite.
    for line in (
        "a" * 1_000_000,
        "key" * 300_000,
        "eyJ" * 300_000,
        "a-" * 500_000,
        "x://" * 250_000 + "@",
        "=" * 10**6,
    ):
        assert len(redact(line)) > 0


def test_trees_keep_their_types() -> None:
    Pair = namedtuple("Pair", "api_key rate")  # noqa: PYI024 - plain ones occur in configurations
    tree = OrderedDict(a=[1, 2.5, None, True], b=("x",), c={"y"}, d=Pair("abc", 0.1), e={3: "z"}, password=1234, f=b"q")
    assert redact_tree(tree) == {
        "a": [1, 2.5, None, True],
        "b": ("x",),
        "c": {"y"},
        "d": (MARK, 0.1),
        "e": {3: "z"},
        "password": MARK,
        "f": b"q",
    }


def test_everything_below_a_telling_key_is_replaced() -> None:
    tree = {"credentials": {"user": "me", "codes": ["abc", 7]}, "tokens": ["<pad>", "hello"], "use_auth_token": True}
    shown = redact_tree(tree)
    assert shown["credentials"] == {"user": MARK, "codes": [MARK, MARK]}
    assert shown["tokens"] == ["<pad>", "hello"]
    assert shown["use_auth_token"] is True


def test_a_tree_that_contains_itself_ends() -> None:
    tree: dict[str, object] = {}
    tree["again"] = tree
    assert "redacted" in repr(redact_tree(tree))


def test_an_option_takes_the_argument_after_it_along() -> None:
    assert redact_arguments(["t.py", "--api-key", "abc", "--lr", "1", "--password"]) == [
        "t.py", "--api-key", MARK, "--lr", "1", "--password",
    ]  # fmt: skip
