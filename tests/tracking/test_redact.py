"""Secrets are hidden, and nothing else is."""

from __future__ import annotations

import pytest

from rlaif.tracking.redact import REDACTED, is_secret_key, redact, redact_assignments

SECRET = [
    "api_key",
    "apiKey",
    "openai_api_key",
    "OPENAI_API_KEY",
    "token",
    "hf_token",
    "HF_TOKEN",
    "accessToken",
]
SECRET += ["secret", "client_secret", "secrets", "password", "db.password", "Authorization", "credentials"]
PLAIN = ["api_key_env", "max_new_tokens", "tokens_in", "tokenizer", "choice_tokens", "pad_token", "eos_token"]
PLAIN += ["usd_per_token", "token_budget", "secretary", "model", "key", ""]


@pytest.mark.parametrize("key", SECRET)
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize("key", PLAIN)
def test_keys_that_only_look_like_it(key: str) -> None:
    assert not is_secret_key(key)


def test_redact_walks_nested_values_and_leaves_the_original() -> None:
    config = {
        "backend": {"api_key": "sk-1", "max_new_tokens": 32, "headers": [{"Authorization": "Bearer x"}]},
        "url": "https://me:pw@host/v1",
        "secrets": {"a": 1},
        "password": 1234,
        "token": None,
        "lr": 1e-5,
    }
    assert redact(config) == {
        "backend": {"api_key": REDACTED, "max_new_tokens": 32, "headers": [{"Authorization": REDACTED}]},
        "url": f"https://{REDACTED}@host/v1",
        "secrets": REDACTED,
        "password": REDACTED,
        "token": None,
        "lr": 1e-5,
    }
    assert config["backend"]["api_key"] == "sk-1"  # type: ignore[index]


def test_values_of_secret_environment_variables_are_hidden_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_API_KEY", "sk-very-secret")
    monkeypatch.setenv("SHORT_TOKEN", "cat")  # too short: it would hide every cat
    monkeypatch.setenv("PLAIN_NAME", "harmless-value")
    assert redact({"a": "x sk-very-secret y", "b": "cat", "c": "harmless-value"}) == {
        "a": f"x {REDACTED} y",
        "b": "cat",
        "c": "harmless-value",
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backend.api_key=sk-1", f"backend.api_key={REDACTED}"),
        ("+backend.hf_token='a b'", f"+backend.hf_token={REDACTED}"),
        ("backend={api_key:sk-1,name:m}", f"backend={{api_key:{REDACTED},name:m}}"),
        ("sft.lr=1e-5,2e-5", "sft.lr=1e-5,2e-5"),
        ("labeler.max_new_tokens=32", "labeler.max_new_tokens=32"),
        ("backend.url=http://u:p@h:80/v1", f"backend.url=http://{REDACTED}@h:80/v1"),
    ],
)
def test_overrides(override: str, expected: str) -> None:
    assert redact_assignments(override) == expected
