"""The sentence encoder against transformers alone, one text at a time, and folders that it must not misread."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from rlaif.backends.encoder import EncoderBackend, encoder_folder, pooled
from rlaif.errors import UserError

TEXTS = [
    "Return the sum of two numbers.",
    "Adds a pair of values and gives back the total.",
    "Open a connection to the database and wait until it answers, or raise a timeout error.",
    "x",
]


def backend(name="embedded", max_tokens=256):
    return EncoderBackend(name=name, revision=None, max_tokens=max_tokens, device="cpu")


def alone(folder, text):
    """The mean of the last layer's token vectors of one unpadded text, in float64."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for row in rows:
        total += row
    return total / len(rows)


def test_similarity_is_the_cosine_of_mean_token_vectors():
    items = [(a, b) for a in TEXTS for b in TEXTS]
    found = backend().similarities(items)
    vectors = {text: alone(encoder_folder("embedded", None), text) for text in TEXTS}
    for (a, b), score in zip(items, found, strict=True):
        wanted = vectors[a] @ vectors[b] / (vectors[a].norm() * vectors[b].norm())
        assert score.similarity == pytest.approx(float(wanted), abs=1e-5)
        assert score.error is None and score.tokens_in > 0
    near, far = (backend().similarities([(TEXTS[0], other)])[0].similarity for other in TEXTS[1:3])
    assert near > far + 0.2, "the paraphrase is nearer than another sentence"


def test_padding_has_no_weight():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pooled(hidden, mask, "mean").tolist() == [[2.0, 3.0]]
    assert pooled(hidden, mask, "cls").tolist() == [[1.0, 2.0]]


def test_an_end_that_is_not_read_is_told_once(caplog):
    short = backend(max_tokens=8)
    with caplog.at_level(logging.WARNING):
        first = short.similarities([(TEXTS[2], TEXTS[3])])[0]
        short.similarities([(TEXTS[2] + " Later.", TEXTS[3])])
    assert sum("longer than encoder.max_tokens=8" in line for line in caplog.messages) == 1
    assert first.tokens_in == 8 + 3  # [CLS] x [SEP]
    assert short.identity() != backend().identity()


@pytest.fixture
def folder(tmp_path):
    """A small BERT with the embedded encoder's vocabulary."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, max_position_embeddings=64), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(encoder_folder("embedded", None)).save_pretrained(tmp_path)
    return tmp_path


def modules(folder, *kinds, pooling=None):
    rows = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    if pooling:
        place = folder / f"{kinds.index('Pooling')}_Pooling"
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))


def test_any_encoder_by_its_folder(folder):
    found = backend(str(folder)).similarities([(TEXTS[0], TEXTS[1])])[0].similarity
    a, b = (alone(folder, text) for text in TEXTS[:2])
    assert found == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)


def test_the_first_token_where_the_folder_says_so(folder):
    mean = backend(str(folder)).identity()
    modules(folder, "Transformer", "Pooling", pooling={"pooling_mode_cls_token": True})
    assert mean["pooling"] == "mean" and backend(str(folder)).identity()["pooling"] == "cls"


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "a module Dense"),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "write an encoder with one of",
        ),
    ],
)
def test_what_would_change_the_vector_is_refused(folder, kinds, pooling, said):
    modules(folder, *kinds, pooling=pooling)
    with pytest.raises(UserError, match=said):
        backend(str(folder)).identity()


def test_missing_weights_and_folders_are_refused(folder, tmp_path_factory):
    with pytest.raises(UserError, match="encoder.name=/no/such: no such directory"):
        backend("/no/such")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.0.attention.self.query.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match="lacks 1 of its weights, such as encoder.layer.0.attention.self.query"
    ):
        backend(str(folder)).similarities([("a", "b")])
    bare = tmp_path_factory.mktemp("bare")
    (bare / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no safetensors file"):
        backend(str(bare)).identity()
