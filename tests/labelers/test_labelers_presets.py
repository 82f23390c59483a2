"""Every preset composes, at `labeler` and at `judge`, and gives valid options; bad values are named."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hydra import compose, initialize_config_dir
from labeler_cases import CONF, options, pairs, templates
from omegaconf import OmegaConf

from rlaif.backends.scripted import ScriptedBackend
from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelerOptions, ReadoutOptions
from rlaif.labelers.options import STAGE_KEYS

PRESETS = [
    "base",
    "detailed",
    "fewshot",
    "cot",
    "cot_fewshot",
    "self_consistency",
    "score",
    "likelihood",
    "scripted",
]


def composed(override: str, key: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[override])[key], resolve=True)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_every_option_and_is_the_same_at_judge(name):
    values = composed(f"+labeler={name}", "labeler")
    assert values["name"] == name
    own = {field.name for field in dataclasses.fields(LabelerOptions)} - {"seed"}
    assert set(values) == own | STAGE_KEYS
    assert set(values["readout"]) == {field.name for field in dataclasses.fields(ReadoutOptions)}
    assert composed(f"+judge={name}", "judge") == values
    built = LabelerOptions.from_mapping(values, seed=3)
    assert built.seed == 3 and built.exemplars == values["exemplars"]
    backend = ScriptedBackend(**values["scripted"])
    result = Labeler(backend, templates(), built, store=None, progress=None).label(pairs(2))
    assert [preference.state for preference in result.preferences] == ["ok", "ok"]


def test_there_is_no_other_preset_and_no_package_header():
    files = {path.stem: path.read_text() for path in (CONF / "labeler").glob("*.yaml")}
    assert set(files) == {*PRESETS, "_common"}
    assert not any("@package" in text or "${" in text for text in files.values())
    assert yaml.safe_load(files["_common"])["order"] == "both"
    assert (CONF / "judge").resolve() == CONF / "labeler", "no judge is written by hand"


def test_presets_differ_from_each_other_as_named():
    built = {
        name: LabelerOptions.from_mapping(composed(f"+labeler={name}", "labeler"), seed=0) for name in PRESETS
    }
    assert built["detailed"] == dataclasses.replace(built["base"], preamble="detailed")
    assert built["fewshot"] == dataclasses.replace(built["base"], exemplars=2)
    assert built["cot"] == dataclasses.replace(built["base"], cot=True)
    assert built["cot_fewshot"] == dataclasses.replace(built["base"], cot=True, exemplars=2)
    assert built["self_consistency"].samples == 4 and built["self_consistency"].cot
    assert built["scripted"] == built["base"]
    assert (built["score"].readout.kind, built["likelihood"].readout.kind) == ("score", "likelihood")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"order": "twice"}, r"labeler\.order is 'twice'; write one of first, random, both"),
        (
            {"readout_kind": "score", "preamble": "long"},
            r"labeler\.preamble=long .* write labeler\.preamble=base",
        ),
        ({"averaging": "mean"}, r"labeler\.averaging"),
        ({"samples": 0}, r"labeler\.samples is 0; write a number of at least 1"),
        ({"batch_size": True}, r"labeler\.batch_size"),
        ({"temperature": float("nan")}, r"labeler\.temperature"),
        ({"exemplars": -1}, r"labeler\.exemplars is -1"),
        ({"readout_kind": "vibes"}, r"labeler\.readout\.kind is 'vibes'; write one of choice, score"),
        ({"readout_direction": "up"}, r"labeler\.readout\.direction"),
        ({"readout_normalize": "chars"}, r"labeler\.readout\.normalize"),
        ({"readout_temperature": 0.0}, r"labeler\.readout\.temperature is 0\.0; write a number above 0"),
        ({"samples": 4}, r"labeler\.samples=4 would repeat one answer"),
        ({"samples": 4, "cot": True}, r"labeler\.temperature above 0"),
        ({"readout_kind": "score", "cot": True}, r"labeler\.cot=false"),
        ({"readout_kind": "likelihood", "exemplars": 1}, r"labeler\.exemplars=0"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_its_key(change, said):
    with pytest.raises(UserError, match=said):
        options(**change)


def test_unknown_and_missing_keys_are_named():
    values = composed("+labeler=base", "labeler")
    with pytest.raises(UserError, match=r"labeler\.ordr is no option of a labeler"):
        LabelerOptions.from_mapping(values | {"ordr": "both"}, seed=0)
    with pytest.raises(UserError, match=r"labeler\.cot is missing"):
        LabelerOptions.from_mapping({key: value for key, value in values.items() if key != "cot"}, seed=0)
    with pytest.raises(UserError, match=r"labeler\.readout\.king is no option"):
        LabelerOptions.from_mapping(values | {"readout": values["readout"] | {"king": 1}}, seed=0)
    with pytest.raises(UserError, match=r"set labeler\.readout\.kind"):
        LabelerOptions.from_mapping(values | {"readout": "score"}, seed=0)
