"""What a labeling is expected to read: every token for its price, what neighbours share once for its time."""

from __future__ import annotations

import pytest
from labeler_cases import Recorder, options, pair, scripted, templates

from rlaif.labelers import Labeler, estimate

STRATEGIES = [
    {},
    {"order": "first"},
    {"exemplars": 2},
    {"cot": True},
    {"readout_kind": "text"},
    {"readout_kind": "score"},
    {"readout_kind": "likelihood"},
    {"readout_kind": "likelihood", "readout_direction": "reverse"},
]


def texts_asked(batch, changes):
    """The texts that a labeler really sends, by kind of call, in their order."""
    backend = Recorder(scripted())
    Labeler(backend, templates(), options(**changes, batch_size=1000), store=None, progress=None).label(batch)
    kinds = [[m for m, *_ in backend.generated], [m for m, *_ in backend.chosen]]
    texts = [[m.user + m.assistant for m in kind] for kind in kinds]
    return [*texts, [m.user + m.assistant + text for m, text in backend.sequences]]


@pytest.mark.parametrize("changes", STRATEGIES, ids=lambda c: "-".join(map(str, c.values())) or "base")
def test_it_counts_the_texts_that_are_sent(changes):
    batch = [pair(n, response_a=f"A long answer {'word ' * 9}{n}") for n in range(5)]
    found = estimate(batch, templates(), options(**changes))
    sent = [text for kind in texts_asked(batch, changes) for text in kind]
    assert found.calls == len(sent)
    written = found.tokens_out if changes.get("cot") else 0
    assert found.tokens_in == pytest.approx(sum(map(len, sent)) / 4 + written, rel=0.1)
    assert 0 < found.tokens_run <= found.tokens_in


def test_what_neighbours_share_is_read_once():
    one, two = pair(0), pair(1)
    alone, both = (estimate(batch, templates(), options(exemplars=2)) for batch in ([one], [one, two]))
    # The second pair shares preamble and exemplars with the first; its two orders share its context.
    assert both.tokens_run - alone.tokens_run < 0.4 * alone.tokens_run
    again = estimate([one, one], templates(), options(exemplars=2))
    assert again.tokens_run - alone.tokens_run < both.tokens_run - alone.tokens_run
    first, swapped = (estimate([one], templates(), options(order=order)) for order in ("first", "both"))
    assert first.tokens_run == first.tokens_in
    assert swapped.tokens_run - first.tokens_run < 0.6 * first.tokens_run
