"""backend=openai from the command line's words: labels, a moved server, the doctor, and a key that stays unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_server import LocalServer

from rlaif.errors import UserError
from rlaif.io import stable_uniform

KEY = "sk-stays-in-the-environment"


def _shares(prompt: str) -> dict[str, float]:
    p = 0.05 + 0.8 * stable_uniform(prompt)
    return {"1": p, "2": 0.9 - p, "~": 0.1}


@pytest.fixture
def words(monkeypatch):
    """`words(server)`: the settings of backend=openai for it."""
    monkeypatch.setenv("TOY_VARIABLE", KEY)

    def settings(server: LocalServer) -> tuple[str, ...]:
        server.key = KEY
        return (
            "labeler=detailed",
            "backend=openai",
            f"backend.base_url={server.base_url}",
            "backend.name=toy-model",
            "backend.api=chat",
            "backend.api_key_env=TOY_VARIABLE",
        )

    return settings


def test_labels_by_a_server_that_moves(run, copied_root, pipeline, words):
    root = copied_root(["sft", "sample"])
    with LocalServer({"top_k"}, distribution=_shares) as server:
        record = run("stage=label", *words(server), root=root)
        asked = server.asked("/v1/chat/completions")
    assert record.summary["label/n"] > 20 and record.summary["label/failed_rate"] == 0
    assert record.summary["label/server"].startswith("probabilities of the 20 likeliest next tokens")
    assert record.summary["label/choice_mass"] == pytest.approx(0.9)
    assert len({body["messages"][0]["content"] for body in asked}) == len(asked)
    with LocalServer({"top_k"}, distribution=_shares) as elsewhere:
        again = run("stage=label", *words(elsewhere), root=root)
        assert elsewhere.requests == []
    assert again.summary["label/alignment"] == record.summary["label/alignment"]
    written = [file for file in Path(root).rglob("*") if file.is_file()]
    assert len(written) > 20 and not [file for file in written if KEY.encode() in file.read_bytes()]


def test_an_unreadable_server_is_said_to_give_no_text_and_estimates_are_marked(
    run, copied_root, pipeline, words
):
    """No text, no log-probabilities, no usage, and no seed taken: each is named where the run ends."""

    def mute(path, body, status, answer):
        if "seed" in body:
            return 400, [{"error": {"message": 'Unknown name "seed": Cannot find field.'}}]
        if status == 200 and "choices" in answer:
            answer = {"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]}
        return status, answer

    root = copied_root(["sft", "sample"])
    with LocalServer({"sample"}, distribution=_shares) as server:
        server.twist = mute
        with pytest.raises(UserError) as caught:
            run("stage=label", *words(server), "backend.choice_samples=1", root=root)
        said = str(caught.value)
        assert (
            "100.0%" in said
            and "some answers hold no text" in said
            and "seed is refused and left out" in said
        )
        server.twist = lambda path, body, status, answer: (status, {**answer, "usage": None})
        server.abilities = frozenset({"top_k"})
        record = run("stage=label", *words(server), "backend.revision=other", root=root)
    assert record.summary["label/usage_estimated"] == 1.0 and record.summary["label/tokens_in"] > 1000


def test_the_doctor_describes_the_server(run, pipeline, words, capsys):
    with LocalServer({"top_k"}, distribution=_shares) as server:
        run("stage=doctor", *words(server), "doctor.injection_pairs=0")
    told = " ".join(capsys.readouterr().out.split())
    assert "toy-model at http://127.0.0.1" in told and "20 likeliest" in told and KEY not in told


def test_the_doctor_waits_for_a_dead_server_once(run, pipeline, words, capsys):
    """Each check of the labeler would wait for all retries again."""
    with LocalServer({"top_k"}) as server:
        gone = words(server)
    with pytest.raises(UserError, match="doctor: labeler's server failed"):
        run("stage=doctor", *gone, "backend.max_retries=1", "backend.backoff_s=0.01")
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("not checked: the labeler's server failed") == 2


def test_a_plan_asks_nothing(run, pipeline, words):
    with LocalServer({"top_k"}) as server:
        run("stage=label", "plan=true", *words(server))
        assert server.requests == []


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["backend=openai"], "backend.name has no value|backend.base_url has no value"),
        (["labeler.backend=openai"], "labeler.backend=openai .* backend=openai"),
        (
            ["backend.engine=vllm"],
            "backend.engine=vllm is not known: write backend=transformers or backend=openai",
        ),
        (
            ["backend=openai", "backend.base_url=http://127.0.0.1:1/v1", "backend.name=no/such-model"],
            "backend.tokenizer=no/such-model: .* backend.api=chat",
        ),
    ],
)
def test_settings_that_cannot_work(run, pipeline, overrides, said):
    with pytest.raises(UserError, match=said):
        run("stage=label", *overrides)
