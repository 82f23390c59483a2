"""Every preset composes, at `labeler` and at `judge`, and gives valid options; bad values are named."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir
from labeler_cases import CONF, options, pairs, templates
from omegaconf import OmegaConf

from rlaif.backends.encoder import EncoderBackend
from rlaif.backends.scripted import ScriptedBackend
from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelerOptions
from rlaif.options.labeling import LabelingOptions
from rlaif.options.read import plain, read

PRESETS = [
    "base",
    "detailed",
    "fewshot",
    "cot",
    "cot_fewshot",
    "self_consistency",
    "score",
    "likelihood",
    "reference",
    "scripted",
]


def composed(override: str, key: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[override])[key], resolve=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_every_option_and_is_the_same_at_judge(name):
    values = composed(f"+labeler={name}", "labeler")
    assert values["name"] == name
    node = read(LabelingOptions, values, "labeler")
    assert plain(node) == values
    assert composed(f"+judge={name}", "judge") == values
    built = LabelerOptions.of(node, seed=3)
    assert built.seed == 3 and built.exemplars == values["exemplars"]
    backend = ScriptedBackend(**values["scripted"])
    if name == "reference":
        backend = EncoderBackend(**values["encoder"], device="cpu")
    asked = [dataclasses.replace(pair, reference="Return the sum of all items.") for pair in pairs(2)]
    result = Labeler(backend, templates(), built, store=None, progress=None).label(asked)
    assert [preference.state for preference in result.preferences] == ["ok", "ok"]


def test_there_is_no_other_preset_and_no_package_header():
    files = {path.stem: path.read_text() for path in (CONF / "labeler").glob("*.yaml")}
    assert set(files) == {*PRESETS, "_common"}
    assert not any("@package" in text or "${" in text for text in files.values())
    assert yaml.safe_load(files["_common"])["order"] == "both"
    assert (CONF / "judge").resolve() == CONF / "labeler", "no judge is written by hand"


def test_presets_differ_from_each_other_as_named():
    built = {
        name: LabelerOptions.of(read(LabelingOptions, composed(f"+labeler={name}", "labeler")), seed=0)
        for name in PRESETS
    }
    assert built["detailed"] == dataclasses.replace(built["base"], preamble="detailed")
    assert built["fewshot"] == dataclasses.replace(built["base"], exemplars=2)
    assert built["cot"] == dataclasses.replace(built["base"], cot=True)
    assert built["cot_fewshot"] == dataclasses.replace(built["base"], cot=True, exemplars=2)
    assert built["self_consistency"].samples == 4 and built["self_consistency"].cot
    assert built["scripted"] == built["base"]
    kinds = {name: built[name].readout.kind for name in ("score", "likelihood", "reference")}
    assert kinds == {name: name for name in kinds} and built["reference"].readout.temperature == 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"order": "twice"},
            r"labeler\.order=twice is not known: write first, random, both or both_consistent",
        ),
        ({"averaging": "mean"}, r"labeler\.averaging=mean is not known"),
        ({"samples": 0}, r"labeler\.samples=0 is out of range: write a whole number from 1"),
        ({"batch_size": True}, r"labeler\.batch_size=true is not a whole number"),
        ({"temperature": float("nan")}, r"labeler\.temperature=nan is out of range"),
        ({"exemplars": -1}, r"labeler\.exemplars=-1 is out of range"),
        ({"retry": "some"}, r"labeler\.retry=some is not known: write unparsed, failed, all or null"),
        (
            {"readout.kind": "vibes"},
            r"labeler\.readout\.kind=vibes is not known: write choice, score, likelihood",
        ),
        ({"readout.direction": "up"}, r"labeler\.readout\.direction=up"),
        ({"readout.normalize": "chars"}, r"labeler\.readout\.normalize=chars"),
        (
            {"readout.temperature": 0.0},
            r"labeler\.readout\.temperature=0\.0 is out of range: write a number above 0",
        ),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_its_key(change, said):
    values = composed("+labeler=base", "labeler")
    for key, value in change.items():
        place, _, name = key.rpartition(".")
        (values[place] if place else values)[name] = value
    with pytest.raises(UserError, match=said):
        read(LabelingOptions, values, "labeler")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"readout_kind": "score", "preamble": "long"},
            r"labeler\.preamble=long .* write labeler\.preamble=base",
        ),
        ({"samples": 4}, r"labeler\.samples=4 would repeat one answer"),
        ({"samples": 4, "cot": True}, r"labeler\.temperature above 0"),
        ({"readout_kind": "score", "cot": True}, r"labeler\.cot=false"),
        ({"readout_kind": "likelihood", "exemplars": 1}, r"labeler\.exemplars=0"),
    ],
)
def test_a_combination_without_meaning_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        options(**change)


def test_unknown_and_missing_keys_are_named():
    values = composed("+labeler=base", "labeler")
    for changed, said in (
        (
            values | {"ordr": "both"},
            r"labeler\.ordr is not a configuration key: did you mean labeler\.order\?",
        ),
        ({key: value for key, value in values.items() if key != "cot"}, r"labeler\.cot is missing"),
        (
            values | {"readout": values["readout"] | {"king": 1}},
            r"labeler\.readout\.king is not a .*readout\.kind",
        ),
        (values | {"readout": "score"}, r"write labeler\.readout\.KEY=VALUE"),
    ):
        with pytest.raises(UserError, match=said):
            read(LabelingOptions, changed, "labeler")
