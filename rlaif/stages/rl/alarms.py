"""The alarms of stage=rl: raised while it trains, and repeated by every run that builds on the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.stages.common.context import Context
from rlaif.stages.common.training.history import read_history
from rlaif.stages.rl.alarm_rules import Alarm, alarms
from rlaif.store import Artifact


def raise_alarms(ctx: Context, history: Sequence[Mapping[str, float]]) -> list[Alarm]:
    """The alarms that `history` sets off; the run alerts once for each, however often this is called."""
    found = alarms(history, ctx.options.rl.alarms)
    if ctx.run is not None:
        for alarm in found:
            ctx.run.alert(alarm.title, alarm.text)
    return found


def review_policy(ctx: Context, policy: Artifact) -> dict[str, Any]:
    """Summary entries of a policy's alarms, from its history and this job's limits, however old the policy is."""
    # The tracker's last row is not an iteration.
    found = raise_alarms(ctx, [row for row in read_history(policy) if "rl/kl" in row])
    warning = {"rl/warning": " ".join(alarm.text for alarm in found)} if found else {}
    return {"rl/alarms": len(found), **warning}
