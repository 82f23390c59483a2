"""What the reward model is trained, validated and tested on, drawn anew for each member of an ensemble."""

from __future__ import annotations

from dataclasses import replace

from rlaif.data.datamodule import PreferenceRow
from rlaif.stages.common.context import Context
from rlaif.stages.common.preferences.data import REWARD_MODEL, PreferenceData, preference_data
from rlaif.stages.common.stage import Parents
from rlaif.stages.rm.bootstrap import bootstrap_counts


def reward_data(ctx: Context, parents: Parents) -> PreferenceData:
    """The labelled pairs, their training rows weighted for the members of an ensemble."""
    data = preference_data(ctx, parents, REWARD_MODEL)
    return replace(data, phases=[[_drawn(ctx, row) for row in phase] for phase in data.phases])


def _drawn(ctx: Context, row: PreferenceRow) -> PreferenceRow:
    """The row, with a weight per member if an ensemble's members draw their own bootstrap samples."""
    weight = row.weight
    if not ctx.options.rm.bootstrap:
        return row
    assert isinstance(weight, float)
    counts = bootstrap_counts(row.pair.id, members=ctx.options.rm.ensemble, seed=ctx.options.seeds.rm)
    return replace(row, weight=tuple(weight * count for count in counts))
