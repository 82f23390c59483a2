"""The in-process engine against plain forward passes of the same tiny model."""

import math

import pytest
import torch

from rlaif.backends.base import Message
from rlaif.backends.transformers import LEAST_GAP, READS, TransformersBackend
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample

TEXTS = ("How are you?", "b", "Which one is better: 1 or 2? Say it.", "a rather long question " * 3)
LIMIT = 4096  # positions of the tiny model; one token a byte


@pytest.fixture
def engine(tiny_model):
    """(model, its top with peaked distributions, backend with the same weights)."""
    model = tiny_model("top:1")
    model.trunk.lm.model.norm.weight *= 10
    return model, model.trunk.new_top(), TransformersBackend({"name": "tiny"}, lambda: model, max_rows=3)


def _plain(text):
    return Message(text, chat=False)


def _ids(model, message):
    """Prompt ids, written out apart from the backend."""
    if not message.chat:
        return model.tokenizer.encode(message.user + message.assistant)
    turn = f"<|im_start|>user\n{message.user}<|im_end|>\n<|im_start|>assistant\n{message.assistant}"
    return model.tokenizer.encode(turn)


def _logprob(model, top, message, continuation):
    prefix, suffix = _ids(model, message), model.tokenizer.encode(continuation)
    logits = top.logits(top(model.trunk(torch.tensor([[*prefix, *suffix]]))))[0].log_softmax(-1)
    return sum(logits[len(prefix) + i - 1, token].item() for i, token in enumerate(suffix))


def _choice_logprob(model, top, message, choice):
    """Of both spellings; the one behind a space, which is a token of its own, counts where the space is likely."""
    plain, spaced = (_logprob(model, top, message, text) for text in (choice, f" {choice}"))
    if _logprob(model, top, message, " ") <= LEAST_GAP:
        return plain
    return math.log(math.exp(plain) + math.exp(spaced))


def _generate(backend, prompts, seeds, temperature=1.0, top_k=0, new=9):
    return backend.generate(prompts, max_new_tokens=new, temperature=temperature, top_k=top_k, seeds=seeds)


MESSAGES = [message for text in TEXTS for message in (Message(text), _plain(text), Message(text, "Answer: "))]


def test_identity_needs_no_weights():
    def load():
        raise AssertionError("loaded")

    backend = TransformersBackend({"name": "x", "weights": "abc", "dtype": "float32"}, load, max_rows=4)
    expected = {"engine": "transformers", "reads": READS, "name": "x", "weights": "abc", "dtype": "float32"}
    assert backend.identity() == expected


def test_the_model_is_loaded_once(tiny_model):
    loads = []

    def load():
        loads.append(1)
        return tiny_model("top:1")

    backend = TransformersBackend({}, load, max_rows=4)
    for _ in range(2):
        _generate(backend, [Message("a")], [0])
        backend.choice_logprobs([Message("a")], ["1", "2"])
    assert len(loads) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generate_equals_the_sampler(engine, temperature):
    model, top, backend = engine
    seeds = list(range(len(MESSAGES)))
    drawn = sample(
        top,
        [_ids(model, message) for message in MESSAGES],
        seeds,
        Decoding(9, temperature),
        eos_ids=model.eos_ids,
        max_rows=1,
    )
    with torch.no_grad():
        got = _generate(backend, MESSAGES, seeds, temperature)
        for message, mine, theirs in zip(MESSAGES, got, drawn, strict=True):
            body = theirs.ids[:-1] if theirs.finished else theirs.ids
            assert mine.text == model.tokenizer.decode(body, skip_special_tokens=True)
            assert mine.finished == theirs.finished
            assert mine.tokens_in == len(_ids(model, message))
            assert mine.tokens_out == len(theirs.ids)
            assert mine.error is None


def test_greedy_takes_the_likeliest_token(engine):
    model, top, backend = engine
    with torch.no_grad():
        for got in _generate(backend, [_plain("b")], [5], temperature=0.0, new=4):
            ids = model.tokenizer.encode("b")
            for _ in range(4):
                ids.append(int(top.logits(top(model.trunk(torch.tensor([ids]))))[0, -1].argmax()))
            assert got.text == model.tokenizer.decode(ids[1:])


def test_a_generation_depends_on_its_own_seed_only(engine):
    _, _, backend = engine
    seeds = [100 + i for i in range(len(MESSAGES))]
    together = _generate(backend, MESSAGES, seeds)
    alone = [_generate(backend, [m], [s])[0] for m, s in zip(MESSAGES, seeds, strict=True)]
    assert together == alone
    reverse = _generate(backend, MESSAGES[::-1], seeds[::-1])
    assert reverse[::-1] == together
    changed = _generate(backend, MESSAGES, [seeds[0] + 1000, *seeds[1:]])
    assert changed[0].text != together[0].text
    assert changed[1:] == together[1:]


def test_top_k_one_is_greedy(engine):
    _, _, backend = engine
    seeds = list(range(len(MESSAGES)))
    assert _generate(backend, MESSAGES, seeds, top_k=1) == _generate(
        backend, MESSAGES, seeds, temperature=0.0
    )
    assert _generate(backend, MESSAGES, seeds) != _generate(backend, MESSAGES, seeds, temperature=0.0)


@pytest.mark.parametrize("choices", [("1", "2"), ("A", "bb", "first one"), ("1", "10", "2")])
def test_choices_equal_plain_passes(engine, choices):
    model, top, backend = engine
    scores = backend.choice_logprobs(MESSAGES, choices)
    with torch.no_grad():
        for message, got in zip(MESSAGES, scores, strict=True):
            expected = [_choice_logprob(model, top, message, choice) for choice in choices]
            assert got.logprobs == pytest.approx(expected, abs=1e-4)
            assert got.token_counts == tuple(len(choice) for choice in choices)
            assert got.tokens_in == len(_ids(model, message))
            assert got.error is None
        swapped = backend.choice_logprobs(MESSAGES, choices[::-1])
        assert [s.logprobs[::-1] for s in swapped] == [pytest.approx(s.logprobs, abs=1e-4) for s in scores]
    assert min(abs(s.logprobs[0] - s.logprobs[1]) for s in scores) > 1e-3


def test_a_shared_start_runs_once_and_changes_nothing(engine):
    model, top, backend = engine
    prompts = [_plain("the same preamble for all of them " + text) for text in TEXTS]
    scores = backend.choice_logprobs(prompts, ["1", "2"])
    with torch.no_grad():
        for message, got in zip(prompts, scores, strict=True):
            expected = [_choice_logprob(model, top, message, choice) for choice in "12"]
            assert got.logprobs == pytest.approx(expected, abs=1e-4)
    # 34 shared bytes, run once instead of four times: 34 * 3 / 4 = 25 a prompt.
    assert [got.tokens_cached for got in scores] == [25] * 4


def test_choice_texts_of_the_prompt_matter(engine):
    """Mutation: the score of another prompt is not within the tolerance used above."""
    model, top, backend = engine
    scores = backend.choice_logprobs([Message(text) for text in TEXTS], ["1", "2"])
    with torch.no_grad():
        wrong = _logprob(model, top, Message(TEXTS[0], "Answer: "), "1")
    assert all(abs(got.logprobs[0] - wrong) > 1e-3 for got in scores)


def test_sequences_equal_plain_passes_in_any_order(engine):
    model, top, backend = engine
    first, second, third = Message("one"), _plain("two"), Message("three", "so ")
    items = [
        (first, "yes"),
        (second, "a longer continuation"),
        (first, "no, never"),
        (third, "x"),
        (second, "short"),
        (first, "yes"),
    ]
    results = backend.sequence_logprobs(items)
    with torch.no_grad():
        for (message, continuation), got in zip(items, results, strict=True):
            assert got.logprob == pytest.approx(_logprob(model, top, message, continuation), abs=1e-4)
            assert got.tokens == len(continuation)
            assert got.tokens_in == len(_ids(model, message)) + len(continuation)
            assert got.error is None
    # The first item of each prompt pays for it.
    paid = [len(_ids(model, m)) if i in (2, 4, 5) else 0 for i, (m, _) in enumerate(items)]
    assert [got.tokens_cached for got in results] == paid
    assert len({round(got.logprob, 3) for got in results}) == 5, "only the two equal items are equal"
    backwards = backend.sequence_logprobs(items[::-1])
    assert [s.logprob for s in backwards[::-1]] == pytest.approx([s.logprob for s in results], abs=1e-4)


def test_an_empty_continuation_is_an_error_of_its_own(engine):
    model, top, backend = engine
    message = Message("one")
    results = backend.sequence_logprobs([(message, "yes"), (message, ""), (message, "no"), (_plain("b"), "")])
    assert [got.error for got in results] == [None, "nothing to score", None, "nothing to score"]
    with torch.no_grad():
        for index, text in ((0, "yes"), (2, "no")):
            assert results[index].logprob == pytest.approx(_logprob(model, top, message, text), abs=1e-4)
    assert (results[1].logprob, results[1].tokens) == (0.0, 0)


def test_an_empty_plain_prompt_starts_with_bos(engine):
    model, top, backend = engine
    with torch.no_grad():
        logits = top.logits(top(model.trunk(torch.tensor([[model.tokenizer.bos_token_id]]))))[0, -1]
    token = model.tokenizer.encode("a")[0]
    expected = logits.log_softmax(-1)[token].item()
    assert backend.sequence_logprobs([(_plain(""), "a")])[0].logprob == pytest.approx(expected, abs=1e-4)
    got = backend.choice_logprobs([_plain("")], ["a", "b"])[0]
    assert got.logprobs[0] == pytest.approx(expected, abs=1e-4)
    assert got.tokens_in == 1


def test_too_long_prompts_fail_alone(engine):
    model, top, backend = engine
    long, fine = _plain("x" * (LIMIT + 1)), _plain("fine")
    limit = f"exceed the model's context of {LIMIT}"
    generated = _generate(backend, [long, fine, long], [1, 2, 3])
    assert [limit in (got.error or "") for got in generated] == [True, False, True]
    assert (generated[0].text, generated[0].tokens_out, generated[0].finished) == ("", 0, False)
    assert generated[1] == _generate(backend, [fine], [2])[0]
    for choices in (["1", "2"], ["1", "10"]):
        scores = backend.choice_logprobs([fine, long], choices)
        with torch.no_grad():
            expected = [_choice_logprob(model, top, fine, choice) for choice in choices]
        assert scores[0].logprobs == pytest.approx(expected, abs=1e-4)
        assert scores[1].logprobs == (None, None)
        assert limit in scores[1].error
    results = backend.sequence_logprobs([(long, "a"), (fine, "yes"), (fine, "y" * LIMIT), (long, "b")])
    assert [limit in (got.error or "") for got in results] == [True, False, True, True]
    with torch.no_grad():
        assert results[1].logprob == pytest.approx(_logprob(model, top, fine, "yes"), abs=1e-4)


def test_all_too_long_is_no_crash(engine):
    _, _, backend = engine
    long = _plain("x" * (LIMIT + 1))
    assert _generate(backend, [long], [0])[0].error
    assert backend.choice_logprobs([long], ["1", "2"])[0].error
    assert backend.sequence_logprobs([(long, "a")])[0].error


def test_nothing_in_nothing_out(engine):
    _, _, backend = engine
    assert _generate(backend, [], []) == []
    assert backend.choice_logprobs([], ["1", "2"]) == []
    assert backend.sequence_logprobs([]) == []


def test_verdicts_go_on_from_the_prompts_of_their_rationales(engine):
    model, top, backend = engine
    before = [Message(text, "Reason:") for text in TEXTS]
    reasons = _generate(backend, before, [1, 2, 3, 4])
    verdicts = [Message(m.user, f"Reason: x{r.text}\nVerdict:") for m, r in zip(before, reasons, strict=True)]
    warm = backend.choice_logprobs(verdicts, ("1", "2"))
    assert [score.tokens_cached for score in warm] == [sum(len(_ids(model, m)) for m in before) // 4] * 4
    cold = TransformersBackend({"name": "tiny"}, lambda: model, max_rows=3).choice_logprobs(
        verdicts, ("1", "2")
    )
    with torch.no_grad():
        for message, one, other in zip(verdicts, warm, cold, strict=True):
            expected = [_logprob(model, top, message, choice) for choice in ("1", "2")]
            assert one.logprobs == pytest.approx(expected, abs=1e-4)
            assert other.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("choices", [("1", "2"), ("1", "10")])
@pytest.mark.parametrize("logit", [30, 6])
def test_an_answer_behind_a_space_is_read_where_it_was_said(engine, choices, logit):
    """A model that writes a space first: nearly always, or about every second time."""
    model, top, _ = engine
    (space,) = model.tokenizer.encode(" ")

    class Spaced(TransformersBackend):
        def _ready(self):
            return model, top

    prompt = [Message("Which one?", "Answer=")]
    others = [Message(f"Which one? {text}", "Answer=") for text in ("this", "or that, then")]
    before = Spaced({}, lambda: model, max_rows=3).choice_logprobs(prompt, choices)[0]
    with torch.no_grad():
        hidden = top(model.trunk(torch.tensor([_ids(model, prompt[0])])))[0, -1]
        head = top._head.weight
        head[space] = hidden / hidden.norm() * logit / hidden.norm()
        opening = math.exp(_logprob(model, top, prompt[0], " "))
    assert (opening > 0.99) if logit == 30 else (0.2 < opening < 0.8)
    after = Spaced({}, lambda: model, max_rows=3).choice_logprobs(prompt, choices)[0]
    with torch.no_grad():
        expected = [_choice_logprob(model, top, prompt[0], choice) for choice in choices]
        plain = [_logprob(model, top, prompt[0], choice) for choice in choices]
    assert after.logprobs == pytest.approx(expected, abs=1e-4)
    least = 0.5 if logit == 30 else 0.1
    assert max(abs(e - p) for e, p in zip(expected, plain, strict=True)) > least, "read behind the space too"
    assert before.logprobs != pytest.approx(after.logprobs, abs=1e-2)
    together = Spaced({}, lambda: model, max_rows=3).choice_logprobs([*prompt, *others], choices)
    with torch.no_grad():
        for message, scores in zip([*prompt, *others], together, strict=True):
            each = [_choice_logprob(model, top, message, choice) for choice in choices]
            assert scores.logprobs == pytest.approx(each, abs=1e-4)
