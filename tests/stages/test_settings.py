"""Every setting has a rule, and a value out of range, of another kind or under an unknown key is one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from rlaif.app.compose import read_options, resolved
from rlaif.errors import UserError
from rlaif.options.job import Options
from rlaif.options.read import all_rules, leaves, plain, unknown_key
from rlaif.options.rules import Anything, Number
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES

CONF = Path(__file__).resolve().parents[2] / "conf"
GIVEN = {
    "custom": ["task.path=x.jsonl"],
    "openai": ["backend.base_url=http://x", "backend.name=x"],
    "hub": ["++model.name=x", "++reward.name=x"],
}
CHOICES = {
    "task": ["docs", "tldr", "helpful", "harmless", "custom"],
    "model": ["embedded", "hub"],
    "sft": ["default", "revisions"],
    "backend": ["transformers", "openai"],
    "reward": ["rm", "ensemble", "hub", "direct", "rouge", "length", "random", "none"],
    "rl": [
        "ppo",
        "reinforce",
        "rloo",
        "grpo",
        "drgrpo",
        "raft",
        "ppo_huang2024",
        "reinforce_lee2023",
        "dpo",
        "online_dpo",
        "best_of_n",
        "sft_revisions",
    ],
    "stage": ["pipeline", "doctor", "compare", "report", "dashboard", "clean", "label"],
    "dashboard": ["ablation", "rl", "labels"],
    "labeler": ["likelihood", "scripted", "cot_fewshot", "self_consistency", "score"],
    "profile": ["demo", "smoke"],
    "tracking": ["wandb", "none"],
}


@pytest.fixture
def composed():
    def start(*words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(words))

    return start


def test_every_key_of_every_option_has_a_field_and_every_field_a_key(composed) -> None:
    rules, seen = all_rules(Options), set()
    open_nodes = {key for key, rule in rules.items() if isinstance(rule, Anything) and "." not in key}
    of_layouts = "dashboard.sections"  # sections and panels are the user's own
    for group, options in CHOICES.items():
        for option in options:
            cfg = composed(f"{group}={option}", *GIVEN.get(option, ()))
            values = resolved(cfg)
            keys = {key for key, _ in leaves(values)}
            seen |= {
                of_layouts if key.startswith(of_layouts) else key
                for key in keys
                if key.split(".")[0] not in open_nodes
            }
            read_back = {key for key, _ in leaves(plain(read_options(cfg)))}
            assert read_back == keys, "the options say what the configuration says, and no more"
    assert seen == rules.keys() - open_nodes


@pytest.mark.parametrize(
    "word, said",
    [
        ("sft.gradient_clip=-1", "sft.gradient_clip=-1 is out of range: write a number from 0"),
        ("rl.gamma=2", "rl.gamma=2 is out of range: write a number from 0 to 1"),
        ("rl.lam=5", "rl.lam=5 is out of range: write a number from 0 to 1"),
        ("rl.clip=-1", "rl.clip=-1 is out of range: write a number above 0"),
        ("sft.warmup_fraction=5", "write a number from 0 to 1"),
        ("sft.num_rows=-5", "sft.num_rows=-5 is out of range: write a whole number from 1"),
        ("rm.lr=0", "rm.lr=0 is out of range: write a number above 0"),
        ("rm.lr=null", "rm.lr=null is not a number: write a number above 0"),
        ("rm.lr=[1,2]", "rm.lr=[1, 2] is not a number: write one, such as rm.lr=0.0001"),
        ("rm.lr=nan", "rm.lr=nan is out of range"),
        ("rm.lr=inf", "rm.lr=inf is out of range"),
        ("seed=1.5", "seed=1.5 is not a whole number: write one, such as seed=0, or null"),
        ("seed=-1", "seed=-1 is out of range: write a whole number from 0, or null"),
        ("seeds.rm=a", "seeds.rm=a is not a whole number"),
        ("rm.test_fraction=1", "rm.test_fraction=1 is out of range: write a number from 0 and below 1"),
        ("rm.labels={}", "rm.labels. is not a configuration key"),
        ("rm.labels=human", "rm.labels=human is not known: write ai, gold, mixed, ai_then_gold or shuffled"),
        ("rm.label_noise=1.5", "rm.label_noise=1.5 is out of range: write a number from 0 to 1"),
        ("rm.n=0", "rm.n=0 is out of range: write a whole number from 1, or null"),
        ("rm.n=many", "rm.n=many is not a whole number"),
        ("rm.n=true", "rm.n=true is not a whole number"),
        ("rm.n=2.5", "rm.n=2.5 is not a whole number"),
        ("rm.min_confidence=0.6", "rm.min_confidence=0.6 is out of range: write a number from 0 to 0.5"),
        ("rm.confidence_weight=-1", "rm.confidence_weight=-1 is out of range: write a number from 0"),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp is not known: write auto or ddp"),
        ("rm.patience=0", "write a whole number from 1, or null"),
        ("rm.bootstrap=1", "rm.bootstrap=1 is not a switch: write rm.bootstrap=true or false"),
        (
            "judge.readout.temperature=0",
            "judge.readout.temperature=0 is out of range: write a number above 0",
        ),
        ("labeler.max_unparsed=10", "labeler.max_unparsed=10 is out of range: write a number from 0 to 1"),
        ("trainer.threads=-2", "trainer.threads=-2 is out of range: write a whole number from 1, or null"),
        ("task.max_response_tokens=true", "task.max_response_tokens=true is not a whole number"),
        ("model.name=''", "model.name is empty"),
        ("tracking.tags=[a,null]", "tracking.tags=['a', None] is not a list of texts"),
        ("task.prefix=[a]", "task.prefix=['a'] is not a text"),
        ("+sft.learning_rate=1e-4", "sft.learning_rate is not a configuration key: did you mean sft.lr?"),
        ("++sft.num_epoch=3", "did you mean sft.num_epochs?"),
        ("+learning_rate=1", "learning_rate is not a configuration key"),
        ("+rm.lr.x=1", "not a configuration key"),
        ("+kl_coef=1", "not a configuration key"),
        ("+task.columns.respones_a=x", "did you mean task.columns.response_a?"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(run, tmp_path, word, said) -> None:
    try:
        run("stage=sft", word, root=tmp_path / "root")
    except UserError as error:
        told = str(error)
    except Exception as error:  # Hydra refuses some words by itself
        from rlaif.app.command.words import one_sentence

        told = one_sentence(error)
    else:
        raise AssertionError(f"{word} was taken")
    assert said in told and "\n" not in told
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["reward.kind=length"], "reward.target is missing: write reward=length"),
        (["reward.kind=hub"], "reward.name is missing: write reward=hub"),
        (["+reward.target=3"], "reward.target has no meaning with reward=rm: leave it out"),
        (["reward=rouge", "+reward.how=min"], "reward.how has no meaning with reward=rouge"),
        (["backend.engine=openai", "labeler=base"], "backend.base_url is missing: write backend=openai"),
        (["task.source=custom"], "task.source=custom reads task.path, which task=docs does not have"),
    ],
)
def test_a_choice_needs_its_own_settings_and_no_others(context, words, said) -> None:
    ctx = context("stage=eval", *words)
    with pytest.raises(UserError, match=re.escape(said)):
        Graph(ctx, STAGES).check("eval")


def test_one_and_one_point_nought_are_one_setting(composed) -> None:
    rates = [read_options(composed(f"rl.temperature={text}")).rl.temperature for text in ("1", "1.0")]
    assert list(map(repr, rates)) == ["1.0", "1.0"]
    assert repr(read_options(composed("sft.num_rows=4")).sft.num_rows) == "4"


def test_keys_of_other_options_and_old_names_are_told() -> None:
    assert unknown_key("reward.how").startswith(
        "reward.how is not a setting of this reward=: choose an option"
    )
    assert unknown_key("ppo.lr").endswith("did you mean rl.lr?")


@pytest.mark.parametrize("word", ["++sft.lr=1e-3", "+prices.mine=1", "+arms.mine=[a]", "seed=3", "rm.n=5"])
def test_words_that_stay_possible(composed, word) -> None:
    read_options(composed(word))


def test_the_stage_of_the_policy_has_two_names(composed) -> None:
    assert read_options(composed("stage=ppo", "rl=grpo")).stage == "rl"
    assert read_options(composed("stage=compare", "until=ppo")).until == "rl"


def test_a_number_may_come_from_the_environment(composed, monkeypatch) -> None:
    monkeypatch.setenv("LR", "3e-4")
    monkeypatch.setenv("STEPS", "7")
    sft = read_options(composed("sft.lr=${oc.env:LR}", "sft.num_epochs=${oc.env:STEPS}")).sft
    assert sft.lr == 3e-4 and sft.num_epochs == 7
    for text, said in (("fast", "sft.lr=fast is not a number"), ("-1", "sft.lr=-1 is out of range")):
        monkeypatch.setenv("LR", text)
        with pytest.raises(UserError, match=said):
            read_options(composed("sft.lr=${oc.env:LR}"))
    with pytest.raises(
        UserError, match="sft.lr refers to the environment variable NOWHERE, which is not set"
    ):
        read_options(composed("sft.lr=${oc.env:NOWHERE}"))


def test_a_key_that_a_file_adds_is_refused_too(composed) -> None:
    cfg = composed()
    with open_dict(cfg):
        cfg.rm.learning_rate = 1.0
    with pytest.raises(UserError, match="rm.learning_rate is not a configuration key: did you mean rm.lr?"):
        read_options(cfg)


def test_arms_are_held_to_the_same_rules(run, tmp_path) -> None:
    arms = "++arms={a:['rm.lr=1e-3'],b:['rm.label_noise=2']}"
    with pytest.raises(UserError, match="rm.label_noise=2 is out of range"):
        run("stage=compare", "until=rm", arms, root=tmp_path / "root")
    with pytest.raises(UserError, match="did you mean rm.lr?"):
        run("stage=compare", "until=rm", "++arms={a:['+rm.learning_rate=1'],b:[]}", root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_examples_and_suggestions_are_allowed_values() -> None:
    for key, rule in all_rules(Options).items():
        if isinstance(rule, Number):
            text = rule.example(key)
            assert rule.wrong(key, rule.read(text)) is None, key
    assert unknown_key("zzz").endswith("see --help for groups and conf/config.yaml")
