"""`reward=hub`: a sequence classifier that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlaif.data.encode import Encoder
from rlaif.inference.classifier import ClassifierSpec, TextClassifier
from rlaif.models.files.source import expanded
from rlaif.models.kernels.devices import resolve_device, resolve_dtype
from rlaif.records import Sample
from rlaif.stages.common.context import Context

Row = dict[str, list[int]]


def _spec(ctx: Context) -> ClassifierSpec:
    options, device = ctx.options.reward, resolve_device(ctx.options.trainer.accelerator)
    return ClassifierSpec(
        name=expanded(options.name),
        revision=options.revision,
        dtype=resolve_dtype(options.dtype, device, "reward.dtype"),
        device=device,
        trust_remote_code=options.trust_remote_code,
        max_tokens=options.max_tokens,
    )


def classifier_identity(ctx: Context) -> dict[str, Any]:
    """The reward as a slice for digests. Raises UserError if there is no such model."""
    options = ctx.options.reward
    read = {"kind": options.kind, "format": options.format, "normalize_rows": options.normalize_rows}
    return {**_spec(ctx).describe(ctx.cache_dir), **read}


def check_classifier(ctx: Context) -> None:
    """Raises UserError for options that `reward=hub` cannot have."""
    classifier_identity(ctx)
    _spec(ctx).check()


def text_scorer(ctx: Context) -> Callable[[Sequence[Sample]], list[float]]:
    """Scores of samples, by the text that `reward.format` makes of them; the model is loaded here."""
    classifier = _spec(ctx).load()
    row = _as_policy(ctx, classifier) if ctx.options.reward.format == "policy" else _as_text(ctx, classifier)
    return lambda samples: classifier.scores([row(sample) for sample in samples])


def _as_text(ctx: Context, classifier: TextClassifier) -> Callable[[Sample], Row]:
    prefix, suffix = ctx.options.task.prefix, ctx.options.task.suffix
    read = classifier.as_chat if ctx.options.reward.format == "chat" else classifier.as_pair
    return lambda sample: read(prefix + sample.prompt + suffix, sample.response)


def _as_policy(ctx: Context, classifier: TextClassifier) -> Callable[[Sample], Row]:
    """Rows like those that this project's exported models were trained on: a cut response has no end of text.

    If the classifier shares the policy's vocabulary, it reads the very tokens that the policy wrote.
    """
    tokenizer = classifier.tokenizer
    encoder = Encoder(tokenizer, eos_id=tokenizer.eos_token_id, **ctx.encoding)
    same = tokenizer.get_vocab() == ctx.model().tokenizer.get_vocab()

    def row(sample: Sample) -> Row:
        if same and sample.ids is not None:
            return classifier.as_tokens([*encoder.prompt(sample.prompt), *sample.ids])
        response = encoder.response(sample.response)
        cut = not sample.finished and response[-1] == encoder.eos_id
        return classifier.as_tokens(encoder.prompt(sample.prompt) + (response[:-1] if cut else response))

    return row
