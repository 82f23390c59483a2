"""Which judges are relatives of the labeler that a policy was trained to please: itself, its model, its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.backends.family import family, model_name
from rlaif.stages.common.engines import ENGINES
from rlaif.stages.common.rewards.kinds import KINDS

Relation = Literal["self", "model", "family"]
_BOUNDS = ("batch_size", "max_unparsed", "min_alignment", "retry")


@dataclass(frozen=True)
class Party:
    """A labeler or judge: its engine, the name of its model (of a rule, the rule), its family, and its settings.

    `settings` are what its verdicts depend on, without batching and stopping bounds.
    """

    engine: str
    model: str | None
    family: str | None
    settings: Mapping[str, Any]

    @property
    def alone(self) -> bool:
        """Whether it is a rule or an encoder, which no setting of `backend` changes."""
        return self.engine in ENGINES and ENGINES[self.engine].alone


def party(labeling: Mapping[str, Any], backend: Mapping[str, Any]) -> Party:
    """The labeler or judge of a job's plain options, or of those that a run recorded."""
    settings = {key: value for key, value in labeling.items() if key not in _BOUNDS}
    engine = str(labeling.get("backend") or "")
    own = {"scripted": _value(labeling, "scripted", "rule"), "encoder": _value(labeling, "encoder", "name")}
    model = own.get(engine, backend.get("name") if engine else None)
    name = None if model is None else str(model)
    return Party(engine, name, family(engine, name), settings)


def _value(options: Mapping[str, Any], group: str, key: str) -> Any:
    found = options.get(group)
    return found.get(key) if isinstance(found, Mapping) else None


def relation(judge: Party, labeler: Party) -> Relation | None:
    """How the judge is related to the labeler, the closest that holds; None if it is not, or nothing is known."""
    both = judge.model, labeler.model
    same_model = None not in both and model_name(str(both[0])) == model_name(str(both[1]))
    if judge.settings and judge.settings == labeler.settings and (judge.alone or same_model or None in both):
        return "self"
    if same_model and not (judge.alone or labeler.alone):
        return "model"
    return "family" if judge.family is not None and judge.family == labeler.family else None


def labeler_of(config: Mapping[str, Any]) -> Party:
    """The labeler of a run's configuration."""
    return party(_group(config, "labeler"), _group(config, "backend"))


def judges_of(config: Mapping[str, Any]) -> dict[str, Party]:
    """The judges of a run's configuration by name; `judge` alone under the empty name."""
    several = _group(config, "judges")
    if not several:
        return {"": party(_group(config, "judge"), _group(config, "backend"))}
    return {name: party(_group(own, "judge"), _group(own, "backend")) for name, own in several.items()}


def pleases_labeler(config: Mapping[str, Any]) -> bool:
    """Whether RL's reward comes from the labeler: its own score, or a reward model trained on its labels.

    A policy that revises its own responses asks no labeler.
    """
    if _group(config, "rl").get("reviser") == "policy":
        return False
    kind = str(_group(config, "reward").get("kind", "rm"))
    return KINDS.get(kind, KINDS["rm"]).pleases_labeler(_group(config, "rm").get("labels", "ai"))


def _group(config: Any, name: str) -> Mapping[str, Any]:
    found = config.get(name) if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}
