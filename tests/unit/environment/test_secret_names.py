from __future__ import annotations

import pytest

from milepost.environment.secret_names import verdict

SECRET = """password DB_PASSWORD dbPassword api_key apiKey API-KEY openai.api_key HF_TOKEN hub_token accessToken
    AWS_SECRET_ACCESS_KEY client_secret secret_id password_hash smtp_pass Authorization WANDB_API_KEY"""
UNDECIDED = "token tokens pad_token cls_token my_token"
HARMLESS = """num_memory_tokens_per_layer use_cls_token_first tokenizer key sort_key resume_key num_key_value_heads
key_file token_path credentials_dir author forward_pass PWD secret_dim 123"""


@pytest.mark.parametrize("name", SECRET.split())
def test_these_are_always_secret(name: str) -> None:
    assert verdict(name) == "always"


@pytest.mark.parametrize("name", UNDECIDED.split())
def test_these_are_secret_if_the_value_looks_random(name: str) -> None:
    assert verdict(name) == "opaque"


@pytest.mark.parametrize("name", HARMLESS.split())
def test_these_say_nothing(name: str) -> None:
    assert verdict(name) == "nothing"
