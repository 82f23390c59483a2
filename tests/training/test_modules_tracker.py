"""The over-optimisation tracker: its rule by hand, what it measures, when it stops, and that it resumes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ppo_cases import equal, letter_share, make_module, policy_top, random_rollout, train, untimed

from rlaif.stages.common.training.logprobs import mean_log_ratio
from rlaif.stages.common.training.trainer import CHECKPOINT
from rlaif.stages.rl.online.tracker import Point, Tracker, TrackOptions, best_point, over_optimised

PROMPTS = 16


def _golds(mean, noise=0.01):
    """Measures of single prompts about a mean: small differences that cancel out."""
    return [mean + noise * (-1) ** i for i in range(PROMPTS)]


def _points(*pairs):
    """Points known prompt by prompt, of which every other one has noise of the other sign."""
    return [
        Point(i, proxy, gold, 0.0, _golds(gold, 0.01 * (-1) ** i)) for i, (proxy, gold) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("pairs", "patience", "stops"),
    [
        ([(0, 0.5)], 1, False),
        ([(0, 0.5), (1, 0.6)], 1, False),
        ([(0, 0.5), (1, 0.4)], 1, True),
        ([(0, 0.5), (1, 0.5)], 1, False),  # standing still is no fall
        ([(0, 0.5), (1, 0.495)], 1, False),  # nor is noise
        ([(0, 0.5), (-1, 0.4)], 1, False),  # both fall: RL fails, the proxy is not gamed
        ([(0, 0.5), (1, 0.6), (2, 0.5)], 2, False),
        ([(0, 0.5), (1, 0.6), (2, 0.5), (3, 0.55)], 2, True),
        ([(0, 0.5), (1, 0.6), (2, 0.5), (0.9, 0.55)], 2, False),  # against the best point's proxy
        ([(0, 0.5), (1, 0.6), (2, 0.5), (3, 0.61)], 2, False),
        ([(0, 0.5), (1, 0.6), (2, 0.59), (3, 0.55), (4, 0.599)], 2, True),  # by the last two together
        ([(0, math.nan), (1, 0.5), (2, math.nan)], 1, False),  # nothing was read
    ],
)
def test_the_rule_to_stop(pairs, patience, stops):
    assert over_optimised(_points(*pairs), patience) is stops


def test_without_the_single_prompts_there_is_no_noise_to_judge_by():
    known = _points((0, 0.5), (1, 0.1))
    assert over_optimised(known, 1)
    assert not over_optimised([replace(point, golds=()) for point in known], 1)
    assert not over_optimised([known[0], replace(known[1], golds=known[1].golds[1:])], 1)


def test_prompts_that_could_not_be_read_do_not_count():
    """Two prompts lost of two read: that may be chance, whatever the others would have said."""
    start, end = _points((0, 1.0), (1, 0.0))
    few = [math.nan] * (PROMPTS - 2) + [0.0, 0.0]
    assert over_optimised([start, end], 1) and not over_optimised([start, replace(end, golds=few)], 1)


def _stopped(rng, means, patience, *, correlation, deviation=0.14, prompts=64):
    """Whether a run with these true means stops; scores of a prompt are correlated from measurement to measurement."""
    own = rng.normal(0, deviation * math.sqrt(correlation), prompts)
    points = []
    for i, mean in enumerate(means):
        scores = mean + own + rng.normal(0, deviation * math.sqrt(1 - correlation), prompts)
        points.append(Point(i, 0.1 * i, float(scores.mean()), float(i), scores.tolist()))
        if i and over_optimised(points, patience):
            return True
    return False


@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize(("looks", "rise"), [(4, 0.027), (8, 0.027), (4, 0.0), (16, 0.0)])
def test_a_run_that_does_not_fall_is_stopped_in_5_percent_at_most(patience, looks, rise):
    rng, runs = np.random.default_rng(looks), 800
    means = np.linspace(0.15, 0.15 + rise, looks)
    early = sum(_stopped(rng, means, patience, correlation=rng.choice([0.3, 0.7])) for _ in range(runs))
    assert early <= 0.05 * runs


def test_a_true_fall_is_seen():
    rng, runs = np.random.default_rng(0), 200
    fall = [0.15, 0.2, 0.24, 0.2, 0.15, 0.1, 0.08]
    for patience in (1, 2):
        assert sum(_stopped(rng, fall, patience, correlation=0.5) for _ in range(runs)) > 0.9 * runs
    # Win and loss are coarser, and seen too.
    stopped = 0
    for _ in range(100):
        golds = [(rng.random(64) < p).astype(float).tolist() for p in (0.5, 0.75, 0.35)]
        stopped += over_optimised([Point(i, i, float(np.mean(g)), 0.0, g) for i, g in enumerate(golds)], 1)
    assert stopped > 80


def test_the_best_point_is_the_first_of_equals():
    assert best_point(_points((0, 0.5), (1, 0.7), (2, 0.7), (3, math.nan))).iteration == 1


def test_the_kl_is_that_of_a_plain_loop(tiny_model):
    model = tiny_model("top:1")
    reference, policy = policy_top(model), policy_top(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    rollout = random_rollout(model)
    total = 0.0
    with torch.no_grad():
        for row in range(len(rollout)):
            end, start = int(rollout.last[row]) + 1, int(rollout.response_mask[row].int().argmax())
            features = model.trunk(rollout.ids[row : row + 1, :end])
            new, old = ((top.logits(top(features))[0] / 0.7).log_softmax(-1) for top in (policy, reference))
            for t in range(start, end):
                total += float(new[t - 1, rollout.ids[row, t]] - old[t - 1, rollout.ids[row, t]])
    assert mean_log_ratio(policy, reference, rollout.batches(4), 0.7) == pytest.approx(total / 6, abs=1e-4)
    assert abs(total / 6) > 1e-2 and mean_log_ratio(reference, reference, rollout.batches(4), 0.7) == 0.0
    assert mean_log_ratio(policy, reference, rollout.batches(4), 1.0) != pytest.approx(total / 6, abs=1e-4)


def _module(tiny_model, golds, *, every=1, patience=None, keep="last", iterations=4):
    """A module whose tracker reads the held-out measure from `golds`, by how often it was asked; with the asked."""
    model = tiny_model("top:1")
    asked = []

    def tracker(policy):
        def measure():
            point = len(made.points)
            asked.append({name: value.clone() for name, value in policy.state_dict().items()})
            return float(point), golds[point], 0.25 * point, _golds(golds[point])

        def again():
            """The policy as it stands, and the start, on prompts on which all is worse."""
            asked.append({name: value.clone() for name, value in policy.state_dict().items()})
            return (9.0, 0.2, 0.5, _golds(0.2)), (-1.0, 0.1, 0.0, _golds(0.1))

        made = Tracker(policy, measure, TrackOptions(every, patience, keep), again=again)
        return made

    module = make_module(
        model, iterations=iterations, rollouts=32, reward=letter_share(model), lr=3e-3, tracker=tracker
    )
    return module, asked


RISE_AND_FALL = [0.3, 0.4, 0.6, 0.5, 0.45, 0.4, 0.3]


def test_it_measures_before_an_iteration_and_changes_no_update(tiny_model, tmp_path):
    module, asked = _module(tiny_model, RISE_AND_FALL, every=2)
    plain = make_module(
        tiny_model("top:1"), iterations=4, rollouts=32, reward=letter_share(tiny_model("top:1")), lr=3e-3
    )
    start = {name: value.clone() for name, value in plain.policy.state_dict().items()}
    train(module, tmp_path / "tracked", 4)
    train(plain, tmp_path / "plain", 4)
    assert equal(asked[0], start) and not equal(asked[1], start)
    assert [point.iteration for point in module._tracker.points] == [0, 2]
    assert [row.get("rl/track_gold") for row in module.history] == [0.3, None, 0.4, None]
    assert [row.get("rl/track_kl") for row in module.history] == [0.0, None, 0.25, None]
    bare = [{k: v for k, v in row.items() if not k.startswith("rl/track")} for row in untimed(module.history)]
    assert bare == untimed(plain.history)
    assert equal(dict(module.state_dict()), dict(plain.state_dict()))


def test_it_stops_by_its_rule_and_gives_the_best_policy(tiny_model, tmp_path):
    module, asked = _module(tiny_model, RISE_AND_FALL, patience=2, keep="best", iterations=6)
    train(module, tmp_path, 6)
    assert len(module.history) == 5, "measured after 4 iterations: two without a gain since the best"
    assert "rl/ratio_first" not in module.history[4], "the last row has rollouts and no update"
    assert equal(asked[4], dict(module.policy.state_dict()))
    kept = module._tracker.keep()
    assert kept == Point(2, 2.0, 0.6, 0.5, _golds(0.6))
    assert equal(dict(module.policy.state_dict()), asked[2]) and not equal(asked[2], asked[4])
    told = module._tracker.told()
    assert told == (Point(2, 9.0, 0.2, 0.5, _golds(0.2)), Point(0, -1.0, 0.1, 0.0, _golds(0.1)))
    assert equal(asked[-1], asked[2]), "the kept policy was measured again, not the last"
    module, asked = _module(tiny_model, RISE_AND_FALL, patience=2, keep="last", iterations=6)
    train(module, tmp_path / "last", 6)
    assert module._tracker.told() == (module._tracker.points[-1], module._tracker.points[0]), (
        "nothing was chosen"
    )
    assert module._tracker.keep().iteration == 4
    assert equal(dict(module.policy.state_dict()), asked[4])


def test_the_end_is_measured_once(tiny_model, tmp_path):
    module, asked = _module(tiny_model, RISE_AND_FALL, iterations=2)
    train(module, tmp_path, 2)
    assert (
        module._tracker.measure(2)
        == module._tracker.measure(2)
        == {
            "rl/track_proxy": 2.0,
            "rl/track_gold": 0.6,
            "rl/track_kl": 0.5,
        }
    )
    assert len(asked) == 3


@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_tracks_stops_and_keeps_the_same(tiny_model, tmp_path, after):
    def run(folder, parts):
        for epochs in parts:
            module, _ = _module(tiny_model, RISE_AND_FALL, patience=2, keep="best", iterations=6)
            train(module, tmp_path / folder, epochs)
        return module

    whole, resumed = run("whole", [6]), run("resumed", [after, 6])
    assert untimed(resumed.history) == untimed(whole.history) and len(whole.history) == 5
    assert resumed._tracker.points == whole._tracker.points
    assert resumed._tracker.keep() == whole._tracker.keep()
    assert equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    for _ in range(3):  # killed after the stop: the same command stops at the same place, however often
        again = run("whole", [6])
        assert untimed(again.history) == untimed(whole.history)
        assert again._tracker.points == whole._tracker.points


def test_a_forgotten_best_policy_would_be_seen(tiny_model, tmp_path):
    whole, _ = _module(tiny_model, RISE_AND_FALL, keep="best")
    train(whole, tmp_path / "whole", 4)
    part, _ = _module(tiny_model, RISE_AND_FALL, keep="best")
    train(part, tmp_path / "parts", 3)
    file = tmp_path / "parts" / "checkpoints" / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)
    best = checkpoint["ppo_tracker"]["best"]
    checkpoint["ppo_tracker"]["best"] = {name: torch.zeros_like(value) for name, value in best.items()}
    torch.save(checkpoint, file)
    resumed, _ = _module(tiny_model, RISE_AND_FALL, keep="best")
    train(resumed, tmp_path / "parts", 4)
    assert whole._tracker.keep() == resumed._tracker.keep()
    assert not equal(dict(resumed.policy.state_dict()), dict(whole.policy.state_dict()))
