"""Every task's template folder: complete, balanced, fenced; and polarity, proved with an honest oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labeler_cases import CONF, copy_texts, options, scripted

from rlaif.backends.base import ChoiceScores, Generation, Message
from rlaif.backends.fencing import read_fences
from rlaif.labelers import Labeler, TemplateSet
from rlaif.labelers.prompts import PromptStrategy
from rlaif.records import Pair

TEMPLATES = CONF / "templates"
TASKS = sorted(folder.name for folder in TEMPLATES.iterdir())
PAIR = Pair("x", "x", "Human: May I?", "First, kind words.", "Second, bad bad words.", "dataset")


def test_every_task_has_its_folder_and_no_text_is_there_twice():
    assert {"docs", "_common", "tldr", "helpful", "harmless"} <= set(TASKS)
    files = {task: {file.name for file in (TEMPLATES / task).iterdir()} for task in TASKS}
    assert all(names <= files["_common"] for names in files.values())
    assert [task for task in TASKS if "prompt.j2" in files[task]] == ["_common"]
    for task in set(TASKS) - {"_common"}:
        for name in files[task]:
            common = (TEMPLATES / "_common" / name).read_bytes()
            assert (TEMPLATES / task / name).read_bytes() != common, (task, name)
    assert all(TemplateSet.load(TEMPLATES / task).polarity == "better" for task in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_exemplars_are_enough_and_neither_place_nor_length_predicts_the_answer(task):
    exemplars = TemplateSet.load(TEMPLATES / task).exemplars
    assert len(exemplars) >= 8
    for count in (2, 4, 8):
        preferred = [exemplar.preferred for exemplar in exemplars[:count]]
        assert preferred.count("a") == preferred.count("b") == count // 2
    longer = ["a" if len(e.response_a) > len(e.response_b) else "b" for e in exemplars]
    assert sum(one == e.preferred for one, e in zip(longer, exemplars, strict=True)) == len(exemplars) // 2
    sums = [sum(len(getattr(e, f"response_{side}")) for e in exemplars) for side in "ab"]
    assert max(sums) < 1.5 * min(sums)
    assert len({exemplar.context for exemplar in exemplars}) == len(exemplars)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cot", [False, True])
def test_any_number_of_exemplars_with_and_without_rationales(task, cot):
    templates = TemplateSet.load(TEMPLATES / task)
    for count in (0, 1, 2, 8):
        user = (
            PromptStrategy(templates, "detailed", count, cot).verdict(PAIR, "ab", "r" if cot else None).user
        )
        labels, judged = zip(*read_fences(user), strict=True)
        assert len(labels) == 3 * (count + 1) and labels == labels[:3] * (count + 1)
        assert judged[-3:] == (PAIR.prompt, PAIR.response_a, PAIR.response_b)
        verdicts = [part[0] for part in user.split(templates.cue)[1:]]
        assert verdicts == ["1" if e.preferred == "a" else "2" for e in templates.exemplars[:count]]
        shown = [exemplar.rationale in user for exemplar in templates.exemplars]
        assert shown == [cot and number < count for number in range(len(shown))]


@pytest.mark.parametrize("task", TASKS)
def test_rationales_name_a_response_and_preambles_differ(task):
    templates = TemplateSet.load(TEMPLATES / task)
    assert len(templates.render("detailed")) > 2 * len(templates.render("base"))
    assert all("nswer 1 or 2" in templates.render(preamble) for preamble in ("base", "detailed"))
    for exemplar in templates.exemplars:
        assert 40 < len(exemplar.rationale) < 200
        assert any(f" {number}" in exemplar.rationale for number in (1, 2))


def harmlessness(context: str, response: str) -> float:
    return 1.0 / (1 + response.count("bad"))


def harm(context: str, response: str) -> float:
    return 1.0 - harmlessness(context, response)


class Honest:
    """Knows how harmful each response is, and answers the question that the prompt asks."""

    def __init__(self) -> None:
        self.less, self.more = scripted(rule=harmlessness), scripted(rule=harm)

    def identity(self) -> dict[str, Any]:
        return {"engine": "honest"}

    def _for(self, prompts: Sequence[Message]) -> Any:
        (asks_for_more,) = {"more harmful" in prompt.user for prompt in prompts}
        return self.more if asks_for_more else self.less

    def generate(self, prompts: Sequence[Message], **kwargs: Any) -> list[Generation]:
        return self._for(prompts).generate(prompts, **kwargs)

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        return self._for(prompts).choice_logprobs(prompts, choices)


def more_harmful(folder: Path, polarity: str) -> TemplateSet:
    """The shipped harmless texts, asking for the more harmful response, declared as `polarity`."""
    copy_texts(folder, TEMPLATES / "harmless")
    for file in folder.glob("*.j2"):
        file.write_text(file.read_text().replace("less harm", "more harm"))
    score = (folder / "score.j2").read_text()
    for old, new in (
        ("how harmless an", "how harmful (10 is more harmful) an"),
        ("1 means that it does serious harm, 10 means that it does none", "1 means none, 10 serious harm"),
        ("How harmless is", "How harmful is"),
    ):
        assert old in score
        score = score.replace(old, new)
    (folder / "score.j2").write_text(score)
    task = folder / "task.yaml"
    task.write_text(task.read_text().replace("polarity: better", f"polarity: {polarity}"))
    return TemplateSet.load(folder)


HARMS = [
    replace(PAIR, id=f"p{i}", prompt_id=f"p{i}", response_a="bad " * a + "a", response_b="bad " * b + "b")
    for i, (a, b) in enumerate([(0, 1), (2, 0), (1, 3), (4, 2), (0, 5)])
]
READOUTS = {
    "choice": {"readout_kind": "choice"},
    "few-shot choice": {"readout_kind": "choice", "exemplars": 2, "order": "first"},
    "choice after a rationale": {"readout_kind": "choice", "cot": True},
    "score": {"readout_kind": "score", "order": "first"},
    "text": {"readout_kind": "text"},
}


@pytest.mark.parametrize("readout", READOUTS)
def test_asking_for_the_more_harmful_response_gives_the_same_preferences(readout, tmp_path):
    """An honest labeler is of one opinion, whichever way it is asked: `polarity: worse` maps it back."""

    def label(templates: TemplateSet) -> list[float]:
        labeler = Labeler(Honest(), templates, options(**READOUTS[readout]), store=None, progress=None)
        return [preference.p_a for preference in labeler.label(HARMS).preferences]

    asked_for_less = label(TemplateSet.load(TEMPLATES / "harmless"))
    assert [p > 0.5 for p in asked_for_less] == [True, False, True, False, True]
    assert label(more_harmful(tmp_path / "worse", "worse")) == pytest.approx(asked_for_less, abs=1e-9)
    # The same texts without the declaration: every preference is upside down, which is the trap.
    mirrored = [1 - p for p in asked_for_less]
    assert label(more_harmful(tmp_path / "forgotten", "better")) == pytest.approx(mirrored, abs=1e-9)


def test_exemplars_answer_what_is_asked_in_the_variant_too(tmp_path):
    texts = TemplateSet.load(TEMPLATES / "harmless"), more_harmful(tmp_path / "worse", "worse")
    shown = []
    for templates in texts:
        user = PromptStrategy(templates, "base", 8, False).verdict(PAIR, "ab", None).user
        shown.append([part[0] for part in user.split(templates.cue)[1:]])
    assert shown[0] == list("12211221") and shown[1] == list("21122112")
