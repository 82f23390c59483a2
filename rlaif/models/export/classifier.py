"""A reward model as transformers' sequence classifier with one label, where there is one that computes the same."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.export.folder import with_text
from rlaif.models.parts.view import shallow, with_modules
from rlaif.models.sizes import skeleton
from rlaif.models.split import ScalarHead, Top

NEW_PAD = "<|pad|>"
_PAD, _TOKEN = 0, 1


def require_classifier(hf_config: Any) -> str:
    """The path of the score head in the sequence classifier that transformers has for this type of model.

    Raises UserError if there is none, if it has parts that a reward model lacks (a pooler, say), or if it reads its
    score anywhere but at the last token that is no pad. No weight is needed.
    """
    from transformers import AutoModelForSequenceClassification

    advice = "so that a reward model of it cannot be exported: leave export out, and use its artifact"
    if type(hf_config) not in AutoModelForSequenceClassification._model_mapping:
        raise UserError(
            f"export: transformers has no sequence classifier for model type {hf_config.model_type!r}, {advice}"
        )
    lm = skeleton(hf_config)
    config = _one_label(hf_config, pad=_PAD)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config).eval()
    name = type(classifier).__name__
    try:
        path = _score_path(classifier, lm)
        pooled = path is not None and _pools_last(classifier, path)
    except Exception as error:  # its forward is other people's code
        raise UserError(f"export: {name} cannot be followed ({_first_line(error)}), {advice}") from error
    if path is None:
        raise UserError(f"export: {name} is more than the model and one linear layer, {advice}")
    if not pooled:
        raise UserError(f"export: {name} does not score the last token that is no pad, {advice}")
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _one_label(hf_config: Any, pad: int | None) -> Any:
    config = deepcopy(hf_config)
    config.num_labels = 1
    config._attn_implementation = "eager"
    for part in with_text(config):
        part.pad_token_id = pad
    return config


def _score_path(classifier: nn.Module, lm: nn.Module) -> str | None:
    """The path of the only linear layer that the classifier has beside the backbone of `lm`; None if not so."""
    base = str(classifier.base_model_prefix)
    theirs, ours = classifier.state_dict(), lm.state_dict()
    own = {name: value for name, value in theirs.items() if not _same(ours.get(name), value)}
    heads = [
        name
        for name, part in classifier.named_modules()
        if isinstance(part, nn.Linear) and part.out_features == 1 and f"{name}.weight" in own
    ]
    kept = {f"{head}.{name}" for head in heads for name in ("weight", "bias")}
    lost = [name for name in ours if name.startswith(f"{base}.") and name not in theirs]
    return heads[0] if len(heads) == 1 and not set(own) - kept and not lost else None


def _same(ours: Tensor | None, theirs: Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape


def _pools_last(classifier: nn.Module, path: str) -> bool:
    """Whether the score is read at the last token that is no pad, by a backbone whose states are the positions."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    base = str(classifier.base_model_prefix)
    head: nn.Linear = classifier.get_submodule(path)  # type: ignore[assignment]
    backbone = shallow(classifier.get_submodule(base))

    def forward(input_ids: Tensor | None = None, **_: Any) -> Any:
        assert input_ids is not None
        places = torch.arange(input_ids.shape[1], dtype=torch.float32).expand(input_ids.shape)
        states = places[..., None].expand(*input_ids.shape, head.in_features)
        return BaseModelOutputWithPast(last_hidden_state=states)

    backbone.__dict__["forward"] = forward
    mean = nn.Linear(head.in_features, 1, bias=False)
    nn.init.constant_(mean.weight, 1 / head.in_features)
    probe = with_modules(classifier, {base: backbone, path: mean})
    lengths = [5, 3, 1]
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    ids = torch.where(mask, _TOKEN, _PAD)
    with torch.no_grad():
        logits = probe(input_ids=ids, attention_mask=mask.long()).logits
    wanted = torch.tensor(lengths, dtype=torch.float32)[:, None] - 1
    return logits.shape == wanted.shape and torch.allclose(logits.float(), wanted, atol=1e-3)


def reward_classifier(top: Top, head: ScalarHead, vocabulary: int) -> nn.Module:
    """transformers' sequence classifier (one label) that scores as `top` and `head` do, in float32.

    Its embedding has at least `vocabulary` rows; further ones are zero. Raises UserError as `require_classifier` does.
    """
    from transformers import AutoModelForSequenceClassification

    path = require_classifier(top.trunk.hf_config)
    whole = top.whole()
    config = _one_label(top.trunk.hf_config, pad=None)
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, vocabulary)
    classifier = AutoModelForSequenceClassification.from_config(config).float().eval()
    wanted = classifier.state_dict()
    state = {
        name: value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu()
        for name, value in whole.state_dict().items()
        if name in wanted
    }
    state = {name: _lengthened(value, wanted[name].shape) for name, value in state.items()}
    state[f"{path}.weight"] = head.weight.detach().cpu().float()
    if f"{path}.bias" in wanted:
        state[f"{path}.bias"] = torch.zeros(1)
    classifier.load_state_dict(state)
    return classifier


def _lengthened(value: Tensor, shape: torch.Size) -> Tensor:
    """`value`, or an embedding with rows of zeros up to `shape`."""
    if value.shape[1:] != shape[1:] or len(value) >= shape[0]:
        return value
    return torch.cat([value, value.new_zeros(shape[0] - len(value), *shape[1:])])


def with_pad(tokenizer: Any) -> tuple[Any, int]:
    """The tokenizer with one more token, the pad, and its id."""
    more = deepcopy(tokenizer)
    more.add_special_tokens({"pad_token": NEW_PAD})
    return more, more.pad_token_id
