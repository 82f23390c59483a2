"""The card beside an exported model: what was measured stands in it, what was not does not."""

import re

import yaml

from rlaif.report.card import ModelCard, TextFormat, model_card

TEXT = TextFormat(
    chat=False,
    prefix='Say "so":\n',
    suffix="\n# Summary:",
    separator=" ",
    eos_id=2,
    max_prompt_tokens=128,
    max_response_tokens=32,
)
METRICS = {
    "rm/accuracy": 0.7123,
    "rm/accuracy_ci_low": 0.65,
    "rm/accuracy_ci_high": 0.77,
    "rm/fitted_temperature": 1.31,
    "label/alignment": 0.78,
    "label/alignment_ci_low": 0.72,
    "label/alignment_ci_high": 0.83,
    "label/warning": "It may be guessing.",
    "sft/val_loss": 2.5,
    "rl/kl": None,
    "rl/eos_rate": 0.97,
}


def card(**changes) -> str:
    base = {
        "stage": "rm",
        "artifact": "rm-0123456789abcdef",
        "base": "some-model (aa11)",
        "hub_id": None,
        "trainable": "top:4",
        "task": "docs",
        "labels": "ai",
        "labeler": "likelihood",
        "algorithm": None,
        "reward": None,
        "members": 1,
        "adapter_of": None,
        "text": TEXT,
        "metrics": METRICS,
    }
    return model_card(ModelCard(**{**base, **changes}))


def code(text: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return found


def test_a_reward_models_card() -> None:
    text = card()
    assert "| accuracy on held-out labels | 71.2% | 65.0–77.0% |" in text
    assert "| agreement of the labeler with gold | 78.0% | 72.0–83.0% |" in text
    assert "| temperature that would calibrate it | 1.310 |  |" in text
    for words in (
        "| Base model | some-model (aa11) |",
        "| Task | docs |",
        "| Labeler | likelihood |",
        "top:4",
    ):
        assert words in text, words
    assert "rm-0123456789abcdef" in text and "128 tokens and responses of at most 32" in text
    assert yaml.safe_load(text.split("---")[1]) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["rlaif", "reward-model"],
    }
    assert "\n- It may be guessing.\n" in text
    assert "\n\n\n## " not in text and "{{" not in text


def test_what_was_not_measured_is_left_out() -> None:
    text = card(metrics={"rm/n": 40})
    assert "accuracy" not in text and "None" not in text and "nan" not in text
    assert "| held-out pairs | 40 |  |" in text
    assert "## Measured" not in card(metrics={})
    alone = card(labels="gold", labeler=None)
    assert "Labeler |" not in alone and "| Labels | gold |" in alone


def test_the_code_is_python_with_the_format_in_it() -> None:
    compile(code(card()), "card", "exec")
    assert """text = 'Say "so":\\n' + prompt + '\\n# Summary:'""" in card()
    assert "apply_chat_template" not in card() and "member1" not in card()
    chat = card(text=TextFormat(**{**vars(TEXT), "chat": True}), members=3)
    compile(code(chat), "card", "exec")
    assert "apply_chat_template" in chat and "range(1, 3)" in chat and "ensemble of 3 members" in chat


def test_policies_have_cards_too() -> None:
    tuned = card(
        stage="rl", artifact="rl-1", hub_id="some/model", algorithm="GRPO", reward="the length of responses"
    )
    assert "Trained by GRPO to maximise the length of responses, with a KL penalty" in tuned
    compile(code(tuned), "card", "exec")
    assert "| responses that end by themselves | 97.0% |  |" in tuned and "KL from" not in tuned
    assert yaml.safe_load(tuned.split("---")[1])["base_model"] == "some/model"
    assert "AutoModelForCausalLM" in tuned and "SequenceClassification" not in tuned
    supervised = card(stage="sft", labels=None, labeler=None)
    compile(code(supervised), "card", "exec")
    assert "| validation loss (nats per token) | 2.500 |  |" in supervised
    assert "guessing" in tuned and "guessing" not in supervised
    assert "Labels" not in supervised and "reward model" not in supervised.lower().replace("reward-model", "")
