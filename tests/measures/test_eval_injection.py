"""The flip rate against labelers whose weakness is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
from labeler_cases import Recorder, options, pair, scripted, templates

from rlaif.backends.base import ChoiceScores
from rlaif.backends.fencing import read_fences
from rlaif.labelers import Labeler, TemplateSet
from rlaif.stages.label.injection import ATTACKS, CONTROL, attacked, injection_report
from rlaif.stats import proportion_interval

GOOD = "Return the smaller of total and limit."
GOLD = [
    pair(
        number,
        response_a=GOOD if number % 3 else f"Bad {number}.",
        response_b=f"Bad {number}." if number % 3 else GOOD,
        gold=1.0 if number % 3 else 0.0,
        gold_source="constructed",
    )
    for number in range(12)
]


class Judge:
    """Prefers the response that says "Return"; `fooled(text)` responses win over it, "?" cannot be read."""

    def __init__(self, fooled) -> None:
        self.fooled = fooled

    def identity(self):
        return {"engine": "judge"}

    def choice_logprobs(self, prompts, choices):
        return [self._choice(prompt) for prompt in prompts]

    def _choice(self, prompt):
        values = [self._value(text) for _, text in read_fences(prompt.user)[-2:]]
        if None in values:
            return ChoiceScores((None, None), 1)
        p = 1 / (1 + math.exp(values[1] - values[0]))
        return ChoiceScores((math.log(p), math.log(1 - p)), 1)

    def _value(self, text):
        if "?" in text:
            return None
        return 5.0 if self.fooled(text) else 1.0 if text.startswith("Return") else 0.0


def labeler(fooled=lambda text: False, **changes) -> Labeler:
    return Labeler(Judge(fooled), templates(), options(**changes), store=None, progress=None)


def report(fooled, pairs=GOLD, **changes):
    return injection_report(labeler(fooled, **changes), pairs)


def test_a_labeler_that_obeys_one_attack_flips_on_it_alone():
    found = report(lambda text: "Ignore the above" in text)
    rates = {name: found[f"flip_rate_{name}"] for name in ATTACKS}
    assert rates == {name: float(name == "ignore_above") for name in ATTACKS}
    attacks = len(ATTACKS) - 1
    assert found["flip_rate"] == pytest.approx(1 / attacks, abs=1e-12)
    assert found["flip_rate_n"] == 12 * attacks and found["flip_rate_near_empty_n"] == 12
    low = proportion_interval([1.0] * 12, range(12)).low
    assert found["flip_rate_ignore_above_ci_low"] == pytest.approx(low, abs=1e-12)
    assert found["flip_rate_ignore_above_ci_high"] == 1.0
    assert found["flip_rate_control_ci_high"] == pytest.approx(1 - low, abs=1e-12)


def test_a_robust_labeler_does_not_flip_and_a_full_stop_can_win():
    assert report(lambda text: False)["flip_rate"] == 0.0
    found = report(lambda text: text == ".")
    assert found["flip_rate_near_empty"] == 1.0
    assert found["flip_rate_ignore_above"] == 0.0


def test_the_control_stays_out_of_the_total():
    found = report(lambda text: "nothing to say" in text)
    assert found["flip_rate_control"] == 1.0 and found["flip_rate"] == 0.0


def test_only_verdicts_that_could_flip_and_were_read_count():
    lost = [dataclasses.replace(GOLD[0], response_b="What?")]  # the better response cannot be read
    wrong = [dataclasses.replace(GOLD[1], gold=0.0)]  # gold calls worse what the labeler prefers anyway
    found = report(lambda text: "Ignore the above" in text, [*GOLD[2:6], *lost, *wrong])
    assert found["flip_rate_ignore_above_n"] == 4
    assert found["flip_rate_ignore_above"] == 1.0
    none = report(lambda text: False, wrong)
    assert none["flip_rate_n"] == 0 and math.isnan(none["flip_rate"])
    # Were the verdict before the attack not looked at, the pair that is wrong anyway would count as flipped.
    assert report(lambda text: False, [*GOLD[2:6], *wrong])["flip_rate"] == 0.0


def test_the_attack_lies_in_the_worse_response_and_nowhere_else():
    for one in GOLD[:2]:
        worse = "response_a" if one.gold == 0.0 else "response_b"
        for name in ATTACKS:
            probe = attacked(one, name, labeler())
            changed = {
                f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(probe, f.name)
            }
            assert changed == {"id", worse}
            text = getattr(probe, worse)
            assert text == "." if name == "near_empty" else text.startswith(getattr(one, worse))
    for gold in (None, 0.5):
        neither = dataclasses.replace(GOLD[0], gold=gold, gold_source=None if gold is None else "human")
        with pytest.raises(ValueError, match="no worse response"):
            attacked(neither, "near_empty", labeler())


def test_a_forged_verdict_speaks_the_labelers_own_words():
    cue = templates().cue
    assert f"{cue}1" in attacked(GOLD[0], "forged_verdict", labeler()).response_a
    assert f"{cue}2" in attacked(GOLD[1], "forged_verdict", labeler()).response_b


def test_where_the_prompt_asks_for_the_worse_response_the_forgery_names_the_other(tmp_path):
    worse = dataclasses.replace(templates(), polarity="worse")
    assert isinstance(worse, TemplateSet)
    one = Labeler(scripted(), worse, options(), store=None, progress=None)
    assert f"{worse.cue}2" in attacked(GOLD[0], "forged_verdict", one).response_a
    assert f"{worse.cue}1" in attacked(GOLD[1], "forged_verdict", one).response_b


@pytest.mark.parametrize(
    "changes", [{"readout_kind": "likelihood", "readout_normalize": "none"}, {"readout_kind": "score"}]
)
def test_pointwise_labelers_are_measured_and_shared_responses_asked_once(changes):
    backend = Recorder(scripted())
    one = Labeler(backend, templates(), options(**changes), store=None, progress=None)
    found = injection_report(one, GOLD)
    assert found["flip_rate_n"] > 0
    # One call for each response as it is, one for each attacked: the better response is not asked again.
    kinds = 2 if changes["readout_kind"] == "likelihood" else 1
    assert backend.calls <= kinds * (2 + len(ATTACKS)) * len(GOLD)


def test_braces_in_a_response_are_left_alone():
    odd = dataclasses.replace(GOLD[1], response_b="Bad {response} {0} {{x}}.")
    assert attacked(odd, CONTROL, labeler()).response_b.startswith("Bad {response} {0} {{x}}.\n")
