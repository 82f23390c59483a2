"""trainer.devices=2: the same artifacts as one process makes, from one command, and no process is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rlaif.errors import UserError
from rlaif.io import read_json
from rlaif.models.weights import TOP_FILE
from rlaif.stages.common.context import Context
from rlaif.stages.common.training.ranks import training_together

TWO = ("trainer.devices=2", "trainer.strategy=ddp")


def _followers(folder: Path) -> list[int]:
    """Processes that follow a fit below `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rlaif.app.follow" in words and any(w.startswith(str(folder).encode()) for w in words):
            found.append(int(entry.parent.name))
    return found


def _weights(root, record, kind):
    digest = {row.kind: row.digest for row in record.lineage}[kind]
    return load_file(root / "artifacts" / f"{kind}-{digest}" / TOP_FILE)


def _gap(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_processes_make_what_one_makes(run, pipeline, copied_root, warm_root):
    """Reward model and PPO, whose tolerance on fp32 weights is 1e-5; the artifacts have the same names."""
    root = copied_root(["sft", "sample", "label"])
    two = run("stage=rl", *TWO, root=root)
    assert {row.kind for row in two.lineage if not row.reused} == {"rm", "rl"}
    for kind in ("rm", "rl"):
        assert _gap(_weights(warm_root, pipeline, kind), _weights(root, two, kind)) < 1e-5, kind
    for name in ("rm/best_val_loss", "rl/reward", "rl/kl", "rl/loss"):
        assert two.summary[name] == pytest.approx(pipeline.summary[name], abs=1e-4), name
    steps = [row["rl/reward"] for row in two.history if "rl/reward" in row]
    assert len(steps) == two.summary["rl/iterations"], "one process alone keeps the record"
    assert not list((root / "artifacts").glob("*/work")) and not _followers(root)


def test_a_killed_leader_leaves_nobody_and_is_resumed(start_process, run, warm_root, tmp_path):
    """From the command line, and to what one process makes without a break."""
    words = ("stage=sft", "sft.num_epochs=20")
    leader = start_process(*words, "profile=smoke", "tracking=none", *TWO, f"paths.root={tmp_path}")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("artifacts/.partial-*/work/checkpoints/last.ckpt")):
        assert leader.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert len(_followers(tmp_path)) == 1
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    while _followers(tmp_path):
        assert time.monotonic() < deadline, "the follower ends with its leader"
        time.sleep(0.1)
    resumed, whole = run(*words, root=tmp_path), run(*words)
    assert _gap(_weights(warm_root, whole, "sft"), _weights(tmp_path, resumed, "sft")) < 1e-5
    assert read_json(next(tmp_path.glob("artifacts/sft-*/manifest.json")))["resumed"]


def test_a_process_that_fails_is_told_of(tmp_path):
    cfg = OmegaConf.create({"trainer": {"devices": 2, "threads": 1, "progress": False}})
    cfg.paths = {"root": str(tmp_path), "code": os.environ["RLAIF_ROOT"]}
    ctx = Context(cfg, None)
    ctx.model_spec = type("Spec", (), {"device": "cpu"})  # type: ignore[misc, assignment]
    with (
        pytest.raises(RuntimeError, match=r"devices has failed \(KeyError: 'nothing'\).*rank1\.log"),
        training_together(ctx, "nothing", tmp_path / "folder"),
    ):
        raise AssertionError("nobody has come")
    assert not _followers(tmp_path)


@pytest.mark.parametrize(
    ("stage", "word", "said"),
    [
        ("sft", "trainer.devices=0", r"trainer\.devices=0 is out of range: write a whole number from 1"),
        ("sft", "trainer.devices=9", r"sft\.batch_size=8: write trainer\.devices=8"),
        ("rm", "trainer.strategy=fsdp", r"trainer\.strategy=fsdp is not known"),
        ("rl", "trainer.devices=5", r"rl\.minibatch_rollouts=4: write trainer\.devices=4"),
    ],
)
def test_processes_that_there_cannot_be_are_refused(run, tmp_path, stage, word, said):
    with pytest.raises(UserError, match=said):
        run(f"stage={stage}", word, root=tmp_path)
    assert not list(tmp_path.glob("artifacts/*"))
