"""The alarms of stage=rl: raised while it trains, and repeated by every run that builds on the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.io import read_jsonl, write_jsonl
from rlaif.io.plain import json_ready
from rlaif.stages.common.context import Context
from rlaif.stages.rl.alarm_rules import Alarm, alarms
from rlaif.store import Artifact

HISTORY_FILE = "history.jsonl"


def raise_alarms(ctx: Context, history: Sequence[Mapping[str, float]]) -> list[Alarm]:
    """The alarms that `history` sets off; the run alerts once for each, however often this is called."""
    found = alarms(history, ctx.options.rl.alarms)
    if ctx.run is not None:
        for alarm in found:
            ctx.run.alert(alarm.title, alarm.text)
    return found


def write_history(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the iterations' metrics; values that are not finite become null (strict JSON has no NaN)."""
    write_jsonl(file, [json_ready(dict(row)) for row in rows])


def read_history(policy: Artifact) -> list[dict[str, Any]]:
    """The rows that `write_history` wrote, null read as NaN: a value that was not finite stays so."""
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in read_jsonl(policy.file(HISTORY_FILE))
    ]


def review_policy(ctx: Context, policy: Artifact) -> dict[str, Any]:
    """Summary entries of a policy's alarms, from its history and this job's limits, however old the policy is."""
    # The tracker's last row is not an iteration.
    found = raise_alarms(ctx, [row for row in read_history(policy) if "rl/kl" in row])
    warning = {"rl/warning": " ".join(alarm.text for alarm in found)} if found else {}
    return {"rl/alarms": len(found), **warning}
