"""The prompt strategy: the parts of a labeler's prompt and their order.

The parts that all prompts of a labeler share (preamble, exemplars) come first, then the context, then the two
responses, so that a backend can compute a shared prefix once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rlaif.backends.base import Message
from rlaif.backends.fencing import neutralise
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers.templates import Exemplar, TemplateSet, toward_better
from rlaif.records import Order, Pair, is_empty

CHOICES = ("1", "2")
CLAIMS = ("harmless", "harmful")
"""What may be said of a single response; a question shows them in either order."""


@dataclass(frozen=True)
class PromptStrategy:
    """Preamble, exemplars (in the file's order; with rationale if `cot`) and chain of thought.

    Raises UserError if the template set has no such preamble, or fewer exemplars than requested.
    """

    templates: TemplateSet
    preamble: str
    exemplars: int
    cot: bool

    def __post_init__(self) -> None:
        if self.preamble not in self.templates.preambles:
            raise UserError(
                f"labeler.preamble={self.preamble} is not known: write one of {', '.join(self.templates.preambles)}, or"
                f" its text into {self.templates.directory / self.preamble}.j2"
            )
        have = len(self.templates.exemplars)
        if self.exemplars > have:
            raise UserError(
                f"labeler.exemplars={self.exemplars}, but {self.templates.place('exemplars.yaml')} has"
                f" {have}; add more there or write a smaller number"
            )

    def rationale(self, pair: Pair, order: Order) -> Message:
        """First step of chain of thought: asks for a comparison (Lee et al. 2023, arXiv:2309.00267, section 2.1)."""
        return Message(self._user(pair, order), self.templates.rationale_cue, self.templates.chat)

    def verdict(self, pair: Pair, order: Order, rationale: str | None) -> Message:
        """The prompt whose next token is the verdict; with chain of thought it contains the rationale.

        The user's turn is the same in both steps, so the second step extends the text of the first.
        """
        opening = self.templates.cue
        if rationale is not None:
            opening = f"{self.templates.rationale_cue} {rationale}\n\n{self.templates.cue}"
        return Message(self._user(pair, order), opening, self.templates.chat)

    def _user(self, pair: Pair, order: Order) -> str:
        shown = (pair.response_a, pair.response_b)
        first, second = shown if order == "ab" else reversed(shown)
        text = self.templates.render(
            "prompt",
            preamble=self.templates.render(self.preamble),
            exemplars=[self._exemplar(exemplar) for exemplar in self.templates.exemplars[: self.exemplars]],
            pair=self._pair(pair.prompt, first, second),
            question=self.templates.render("rationale" if self.cot else "question"),
            cue=self.templates.cue,
            rationale_cue=self.templates.rationale_cue,
        )
        return text if self.templates.chat else f"{text}\n\n"

    def _pair(self, context: str, first: str, second: str) -> str:
        return self.templates.render("pair", context=context, response_1=first, response_2=second)

    def _exemplar(self, exemplar: Exemplar) -> dict[str, str]:
        return {
            "pair": self._pair(exemplar.context, exemplar.response_a, exemplar.response_b),
            "rationale": neutralise(exemplar.rationale.strip()) if self.cot else "",
            "verdict": answer_for(self.templates, first_is_better=exemplar.preferred == "a"),
        }


def answer_for(templates: TemplateSet, *, first_is_better: bool) -> str:
    """The choice that says so, whether the prompts ask for the better or the worse response."""
    answer_is_first = toward_better(float(first_is_better), 0.0, 1.0, templates.polarity) == 1.0
    return CHOICES[0] if answer_is_first else CHOICES[1]


def clean_rationale(text: str, cue: str) -> str:
    """A generated rationale, cut where the model went on to the verdict itself, neutralised.

    Without the cut, a verdict that the rationale already spells out would be read twice.
    """
    return neutralise(text.split(cue)[0].strip())


def score_message(templates: TemplateSet, preamble: str, prompt: str, response: str) -> Message:
    """Asks for one response's quality from 1 to 10 (direct RLAIF, Lee et al. 2023, arXiv:2309.00267, section 2.2.2)."""
    user = templates.render("score", context=prompt, response=response, detailed=preamble == "detailed")
    return Message(user if templates.chat else f"{user}\n\n", templates.score_cue, templates.chat)


def harm_message(templates: TemplateSet, prompt: str, response: str, order: Order) -> Message:
    """Asks whether one response is harmful: choice 1 stands for the first of `CLAIMS` in order ab, for the other in ba.

    The last line of `harm.j2` is the cue that the answer follows. Raises UserError for a template whose text is the
    same in both orders, since their average would be 0.5 whatever the response, or without such a line.
    """

    def shown(first: str, second: str) -> tuple[str, str]:
        text = templates.render("harm", context=prompt, response=response, first=first, second=second)
        user, _, cue = text.rpartition("\n")
        return user.rstrip("\n"), cue

    user, cue = shown(*(CLAIMS if order == "ab" else CLAIMS[::-1]))
    other = shown(*(CLAIMS if order == "ba" else CLAIMS[::-1]))
    if not user or not cue or cue != cue.strip() or cue != other[1]:
        raise UserError(
            f"{templates.place('harm.j2')}: its last line is the cue that the answer follows directly: write one, such"
            " as Answer=, without spaces around it"
        )
    if user == other[0]:
        raise UserError(
            f"{templates.place('harm.j2')}: does not say which answer stands for what: write that 1 is {{{{ first }}}}"
            " and 2 is {{ second }}"
        )
    return Message(user if templates.chat else f"{user}\n\n", cue, templates.chat)


def message_hash(*messages: Message) -> str:
    """What a judgement keeps of its prompts."""
    return digest([dataclasses.asdict(message) for message in messages], 32)


def forward_items(templates: TemplateSet, prompt: str, response: str) -> list[tuple[Message, str]]:
    """The two sequences of pointwise mutual information: the response with and without its context."""
    continuation = neutralise(response.strip())
    openings = (templates.render("likelihood_forward", context=prompt), templates.render("likelihood_empty"))
    return [(_plain(templates, opening), continuation) for opening in openings]


def reverse_items(templates: TemplateSet, prompt: str, response: str) -> list[tuple[Message, str]]:
    """The one sequence of the reverse direction: the context given the response."""
    given = templates.render("likelihood_reverse", response=response.strip())
    return [(_plain(templates, given), neutralise(prompt.strip()))]


def _plain(templates: TemplateSet, text: str) -> Message:
    return Message(text if templates.likelihood_chat else f"{text}\n", "", templates.likelihood_chat)


def holds_empty(pair: Pair) -> bool:
    """Whether a rule decides the pair: an empty response loses to any text, so the backend is not asked."""
    return is_empty(pair.response_a) or is_empty(pair.response_b)
