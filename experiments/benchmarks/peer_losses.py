"""TRL's preference losses on given log-probabilities: the other side of `preference_losses.py`, in its own environment.

    python peer_losses.py FILE

FILE is JSON with lists `policy`, `reference` and `tokens` (N, 2), the first column of the preferred responses, and the
settings. Prints JSON: the mean loss by name. TRL has the losses of DPO and KTO inside its trainers' methods: the very
statements are cut out of their source and run on these numbers.
"""

import ast
import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.kto_trainer import KTOTrainer


def statements(function: Any, marker: str, kind: type) -> Any:
    """The statement of `kind` in the source of `function` whose own head mentions `marker`, compiled."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kind) and marker in ast.unparse(node).split("\n")[0]
    ]
    return compile(ast.Module(found[:1], []), marker, "exec")


def dpo(name: str, data: dict[str, torch.Tensor], knobs: dict[str, Any]) -> float:
    policy, reference = data["policy"], data["reference"]
    ratios = policy - reference
    masks = [torch.arange(int(data["tokens"].max())) < data["tokens"][:, i, None] for i in (0, 1)]
    own = SimpleNamespace(
        loss_types=[name],
        loss_weights=[1.0],
        beta=knobs["beta"],
        label_smoothing=knobs["label_smoothing"],
        use_weighting=False,
        args=None,
    )
    scope = {
        "self": own,
        "F": F,
        "torch": torch,
        "chosen_logratios": ratios[:, 0],
        "rejected_logratios": ratios[:, 1],
        "chosen_scores": ratios[:, 0],
        "rejected_scores": ratios[:, 1],
        "delta_score": ratios[:, 0] - ratios[:, 1],
        "completion_mask": torch.cat(masks).long(),
        "loss": 0.0,
        "mode": "train",
        "device": "cpu",
    }
    exec(statements(DPOTrainer._compute_loss, "zip(self.loss_types", ast.For), scope)
    return float(scope["per_sequence_loss"].mean())


def kto(data: dict[str, torch.Tensor], knobs: dict[str, Any]) -> float:
    ratios = data["policy"] - data["reference"]
    own = SimpleNamespace(loss_type="kto", beta=knobs["beta"])
    losses = []
    for side, (marker, column) in {
        "chosen_losses": ("chosen_logps.shape[0] != 0", 0),
        "rejected_losses": ("rejected_logps.shape[0] != 0", 1),
    }.items():
        word = side.split("_")[0]
        scope = {
            "self": own,
            "F": F,
            "torch": torch,
            "kl": torch.tensor(knobs["kl"], dtype=torch.float64).clamp(min=0),
            f"{word}_logps": data["policy"][:, column],
            f"ref_{word}_logps": data["reference"][:, column],
        }
        exec(statements(knobs["kto_function"], marker, ast.If), scope)
        losses.append(scope[side])
    assert ratios.shape[1] == len(losses)
    return float(torch.cat(losses).mean())


def main() -> None:
    raw = json.loads(Path(sys.argv[1]).read_text())
    data = {name: torch.tensor(raw[name], dtype=torch.float64) for name in ("policy", "reference", "tokens")}
    knobs = raw["knobs"]
    holder = next(
        function
        for _, function in inspect.getmembers(KTOTrainer, inspect.isfunction)
        if "chosen_losses = 1 - F.sigmoid" in inspect.getsource(function)
    )
    knobs["kto_function"] = holder
    means = data["policy"] / data["tokens"]
    simpo = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        beta=knobs["beta"],
        simpo_gamma=knobs["margin"],
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    orpo = SimpleNamespace(beta=knobs["beta"], accelerator=SimpleNamespace(device="cpu"))
    found = {name: dpo(name, data, knobs) for name in ("sigmoid", "ipo", "hinge", "robust")}
    found["kto"] = kto(data, knobs)
    found["simpo"] = float(CPOTrainer.cpo_loss(simpo, means[:, 0], means[:, 1])[0].mean())
    ratio = ORPOTrainer.odds_ratio_loss(orpo, means[:, 0], means[:, 1])[0].mean()
    found["orpo"] = float(-means[:, 0].mean() - ratio)
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
