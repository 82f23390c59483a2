"""The sentence and its warnings, in every variant."""

import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student
from synthetic_runs import CONFIG, PATH_SUMMARY

from rlaif.report.verdict import verdict
from rlaif.stages.rl.section import reward_rise


def summary(win, low, high, p, **changes):
    rate = {
        "eval/win_rate": win,
        "eval/win_rate_ci_low": low,
        "eval/win_rate_ci_high": high,
        "eval/p_value": p,
    }
    return PATH_SUMMARY | rate | {key.replace("_", "/", 1): value for key, value in changes.items()}


def test_win():
    found = verdict(PATH_SUMMARY, CONFIG)
    assert found.tone == "win" and found.warnings == ()
    assert found.sentence == (
        "The PPO policy beats the SFT policy: the judge (detailed) prefers it in 63% of 256 prompts "
        "(95% CI 57–69%, p < 0.001). Held-out ROUGE-L does not clearly move: 0.213 against 0.211 for the baseline, a "
        "difference of +0.002 (95% CI −0.004 to +0.008)."
    )


def test_loss():
    found = verdict(summary(0.40, 0.34, 0.46, 0.002), CONFIG)
    assert found.tone == "loss"
    assert found.sentence.startswith("The PPO policy loses to the SFT policy")
    assert "only 40% of 256 prompts (95% CI 34–46%, p = 0.002)" in found.sentence


def test_interval_with_half_is_no_difference():
    found = verdict(summary(0.53, 0.47, 0.59, 0.31), CONFIG)
    assert found.tone == "open"
    assert found.sentence.startswith("No clear difference: the judge (detailed) prefers the PPO policy")
    assert "50%, which means no difference, is within the interval" in found.sentence
    assert "beats" not in found.sentence


def test_interval_and_test_must_agree():
    found = verdict(summary(0.57, 0.505, 0.63, 0.06), CONFIG)
    assert found.tone == "open" and "not significant at 5%" in found.sentence


def test_without_an_interval_or_a_judge():
    bare = verdict({"eval/win_rate": 0.9}, {})
    assert (
        bare.tone == "open" and "no interval was recorded" in bare.sentence and "RL policy" in bare.sentence
    )
    assert verdict({}, {}).sentence == "No policy was judged in this run."


def test_judge_equal_to_the_labeler_warns():
    same = CONFIG | {"judge": CONFIG["labeler"] | {"batch_size": 8}}
    assert any("The judge is the labeler itself" in text for text in verdict(PATH_SUMMARY, same).warnings)
    family = CONFIG | {"judge": CONFIG["judge"] | {"backend": "transformers"}}
    assert any("labeler's model (model-one)" in text for text in verdict(PATH_SUMMARY, family).warnings)
    assert verdict(PATH_SUMMARY, CONFIG).warnings == ()
    rules = {"labeler": {"name": "a", "backend": "scripted"}, "judge": {"name": "b", "backend": "scripted"}}
    assert verdict(PATH_SUMMARY, CONFIG | rules).warnings == ()


def _config(labeler, judges, panel="none"):
    """A run whose labeler and judges run behind servers with models of these names."""

    def behind(name):
        return {"name": name}

    options = {"backend": "openai", "readout": {"kind": "choice"}}
    several = {
        name: {"judge": options | {"order": name}, "backend": behind(own)} for name, own in judges.items()
    }
    return {
        "labeler": options | {"order": "both"},
        "judge": options,
        "backend": behind(labeler),
        "judges": several,
        "eval": {"panel": panel},
    }


def test_a_judge_of_the_labelers_family_warns_in_its_own_words():
    config = _config("Qwen/Qwen2.5-7B", {"big": "Qwen/Qwen2.5-72B", "gpt": "gpt-4o"})
    (said,) = verdict(PATH_SUMMARY, config).warnings
    assert said == (
        "The judge big (Qwen/Qwen2.5-72B) is of the labeler's family (qwen: Qwen/Qwen2.5-7B) and may favour what it "
        "favours; compare its win rate with that of gpt."
    )
    single = config | {"judges": None, "labeler": config["labeler"] | {"backend": "scripted"}}
    assert verdict(PATH_SUMMARY, single).warnings == ()
    assert verdict(PATH_SUMMARY, _config("gpt-4o", {"a": "claude-3", "b": "Llama-3"})).warnings == ()


def test_the_same_model_elsewhere_is_the_same_model():
    (said,) = verdict(PATH_SUMMARY, _config("Qwen/Qwen2.5-7B", {"a": "/models/qwen2.5-7b"})).warnings
    assert said == (
        "The judge a runs on the labeler's model (Qwen/Qwen2.5-7B) and shares its biases; check the win rate with a "
        "judge of another family."
    )


def test_a_panel_with_the_labeler_in_it_warns_and_a_judge_that_does_not_decide_is_named():
    itself = {"gpt": "gpt-4o", "both": "Qwen/Qwen2.5-7B"}
    (panel,) = verdict(PATH_SUMMARY, _config("Qwen/Qwen2.5-7B", itself, "mean")).warnings
    assert panel.startswith("The judge both of the panel is the labeler itself.")
    assert "so its part of this win rate shows" in panel
    (beside,) = verdict(PATH_SUMMARY, _config("Qwen/Qwen2.5-7B", itself)).warnings
    assert beside.startswith("The judge both is the labeler itself.") and "so its win rate shows" in beside
    (first,) = verdict(PATH_SUMMARY, _config("gpt-4o", {"both": "gpt-4o", "b": "claude-3"})).warnings
    assert "so this win rate shows" in first
    gold = _config("Qwen/Qwen2.5-7B", itself, "mean") | {"rm": {"labels": "gold"}}
    assert verdict(PATH_SUMMARY, gold).warnings == (), "a policy that learnt from people pleases no labeler"


def test_a_rule_is_a_relative_of_the_same_rule_alone():
    def ruled(name, strength):
        return {"backend": "scripted", "scripted": {"rule": name, "strength": strength}}

    def told(judge):
        config = _config("x", {}) | {"labeler": ruled("longer", 6.0), "judge": judge}
        return verdict(PATH_SUMMARY, config).warnings

    assert told(ruled("overlap", 6.0)) == ()
    assert "of the labeler's family (rule longer: longer)" in told(ruled("longer", 2.0))[0]
    assert "is the labeler itself" in told(ruled("longer", 6.0))[0]


@pytest.mark.parametrize(
    ("kind", "warned"), [("rm", True), ("direct", True), ("rouge", False), ("length", False)]
)
def test_a_judge_is_no_labeler_where_none_had_a_part_in_the_reward(kind, warned):
    same = CONFIG | {"judge": CONFIG["labeler"], "reward": {"kind": kind}}
    found = verdict(PATH_SUMMARY, same).warnings
    assert any("The judge is the labeler itself" in text for text in found) is warned


def test_without_a_judged_policy_nothing_is_said_of_the_judge():
    same = CONFIG | {"judge": CONFIG["labeler"]}
    assert verdict({"rm/accuracy": 0.7}, same).warnings == ()
    # A comparison's arms have judges and rewards of their own: it carries their warnings with their names.
    assert verdict({"long/eval/win_rate": 0.6}, same).warnings == ()


def test_warnings_travel_with_the_arms_that_they_are_said_of():
    said = {
        "short/rl/warning": "KL ran away.",
        "long/rl/warning": "KL ran away.",
        "long/judge/warning": "The judge is the labeler itself.",
        "label/warning": "The labeler may be guessing.",
        "long_vs_short/eval/warning": "The judge may be guessing.",
        "long/eval/judge": "cot",
        "long/label/warning": None,
    }
    assert verdict(said, CONFIG).warnings == (
        "short, long: KL ran away.",
        "long: The judge is the labeler itself.",
        "The labeler may be guessing.",
        "long_vs_short: The judge may be guessing.",
    )


@pytest.mark.parametrize(
    ("labels", "kind", "warned"),
    [
        ("ai", "rm", True),
        ("mixed", "rm", True),
        ("gold", "rm", False),
        ("gold", "direct", True),
        ("ai", "hub", False),
    ],
)
def test_only_a_policy_that_pleased_the_labeler_is_said_to_have(labels, kind, warned):
    same = CONFIG | {"judge": CONFIG["labeler"], "reward": {"kind": kind}, "rm": {"labels": labels}}
    assert any("trained to please it" in text for text in verdict(PATH_SUMMARY, same).warnings) is warned


@pytest.mark.parametrize(
    ("rate", "words"),
    [((0.52, 0.46, 0.58, 0.5), "sees no clear gain"), ((0.4, 0.34, 0.46, 0.002), "prefers the baseline")],
)
def test_a_reward_that_rises_without_the_judge_warns(rate, words):
    gain = {"eval/reward_gain": 0.8, "eval/reward_gain_ci_low": 0.6, "eval/reward_gain_ci_high": 1.0}
    found = verdict(summary(*rate) | gain, CONFIG)
    assert len(found.warnings) == 1
    assert "over-optimisation" in found.warnings[0] and words in found.warnings[0]
    # None on what RL trained on alone, nor within the gain's noise, nor when the judge sees the gain too.
    assert verdict(summary(*rate), CONFIG).warnings == ()
    noise = gain | {"eval/reward_gain_ci_low": -0.1}
    assert verdict(summary(*rate) | noise, CONFIG).warnings == ()
    assert verdict(PATH_SUMMARY | gain, CONFIG).warnings == ()


def _rows(values):
    return [{"step": step, "rl/reward": float(value)} for step, value in enumerate(values)]


def test_reward_rise_is_a_line_through_all_iterations():
    rise = reward_rise({}, _rows(range(20)))
    assert (rise.start, rise.end, rise.clear) == pytest.approx((0.0, 19.0, True))
    # Two ends that differ by 3 and nothing between: the line rises, but not surely.
    noisy = reward_rise({}, _rows([0.0, 2.0, *[1.0] * 16, 1.0, 3.0]))
    fit = linregress(range(20), [0.0, 2.0, *[1.0] * 16, 1.0, 3.0])
    assert noisy.change.estimate == pytest.approx(19 * fit.slope) and not noisy.clear
    assert noisy.change.high - noisy.change.estimate == pytest.approx(
        19 * fit.stderr * student.ppf(0.975, 18)
    )
    assert not reward_rise({}, _rows([0.0, 1.0])).clear, "two iterations have no noise to compare with"
    assert reward_rise({"eval/reward_baseline": 0.2, "eval/reward_policy": 0.5}).end == 0.5
    assert reward_rise({"rl/reward": 0.5}) is None


def test_noise_is_rarely_a_rise():
    """Of 400 runs that do not learn, a line calls about 2.5% a rise; its ends alone, far more."""
    rng, lines, ends = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = rng.normal(0, 1, 12)
        lines += reward_rise({}, _rows(values)).clear
        ends += values[-1] - values[0] > 0.5
    assert lines / 400 <= 0.05 and ends / 400 > 0.3


def test_a_lead_that_is_length_warns():
    low = verdict(
        summary(0.63, 0.57, 0.69, 1e-5, eval_win_rate_lc=0.52, eval_win_rate_lc_ci_low=0.46), CONFIG
    )
    assert any("may be due to length (length 18.4 against 15.1)" in text for text in low.warnings)


def test_unparsed_verdicts_warn():
    found = verdict(PATH_SUMMARY | {"eval/unparsed_rate": 0.08}, CONFIG)
    assert found.warnings == ("8.0% of the judge's answers could not be parsed and count for neither side.",)


@pytest.mark.parametrize(
    ("policy", "bounds", "words"),
    [
        (0.30, (0.06, 0.12), "ROUGE-L rises: 0.300 against 0.211"),
        (0.12, (-0.11, -0.07), "ROUGE-L falls: 0.120 against 0.211"),
        (0.23, (-0.01, 0.05), "does not clearly move: 0.230 against 0.211"),
        (0.212, (0.0005, 0.0015), "ROUGE-L rises: 0.212 against 0.211"),
    ],
)
def test_held_out_rouge(policy, bounds, words):
    rouge = {
        "eval/rouge_l_policy": policy,
        "eval/rouge_l_gain": policy - 0.211,
        "eval/rouge_l_gain_ci_low": bounds[0],
        "eval/rouge_l_gain_ci_high": bounds[1],
    }
    assert words in verdict(PATH_SUMMARY | rouge, CONFIG).sentence
