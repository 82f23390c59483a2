"""TRL's PPOTrainer on given prompts: the other side of `rl.py`, in its own environment.

    python peer_rl.py FOLDER --batch 16 --updates 3 --new-tokens 32 --dtype bfloat16 --lr 3e-6 --threads 2

FOLDER is what `rl.py` wrote: the models `policy/` and `rm/`, and `prompts.json` with token ids, which are taken
in order. No stop token is set, so that each response has its full length. Prints JSON with the seconds between the
ends of updates (the first one is a warm-up), each update's mean score, and the peak memory.

With --check it makes one update and writes what TRL computed in it, token by token, to FOLDER/check.json. The
policy is first moved away from the reference, so that there is a KL.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD = "<file_sep>"  # TRL masks pads inside a response too: this one is never sampled
LOSSES = ("loss/policy_avg", "loss/value_avg", "val/ratio", "objective/kl")


class Clock(TrainerCallback):
    """When each update ended, and what it logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logs: list[dict] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
        self.logs.append(logs)


def wrap(name: str, seen: Callable[[tuple, Any], None]) -> None:
    """Show `seen` the arguments and the result whenever TRL's training loop calls its function `name`."""
    function = getattr(ppo_trainer, name)

    def call(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        seen(arguments, result)
        return result

    setattr(ppo_trainer, name, call)


def expect_tokens(count: int) -> None:
    """Stop unless every response has `count` tokens, none of them a pad."""

    def seen(arguments: tuple, result: Any) -> None:
        queries, pad = arguments[1], arguments[3]
        new = result[0][:, queries.shape[1] :]
        if new.shape[1] != count or (new == pad).any():
            raise SystemExit(f"a response of TRL does not have {count} tokens")

    wrap("batch_generation", seen)


class Recorder:
    """The first calls of the functions that make up an update."""

    NAMES = ("batch_generation", "selective_log_softmax", "get_reward", "masked_whiten")

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple]] = {name: [] for name in self.NAMES}
        for name, calls in self.calls.items():
            wrap(name, lambda *call, calls=calls: calls.append(call) if len(calls) < 2 else None)

    def found(self) -> dict[str, list]:
        """The rollout and its numbers: (N, R) for each token, (N,) for each response."""
        ((_, queries, _, pad, _), (sequences, _)), *_ = self.calls["batch_generation"]
        logprobs, reference = (result for _, result in self.calls["selective_log_softmax"])
        (_, (values, _, _)), (_, (_, scores, _)) = self.calls["get_reward"]
        ((advantages, *_), _), *_ = self.calls["masked_whiten"]
        context = queries.shape[1]
        return {
            "prompts": [[token for token in row if token != pad] for row in queries.tolist()],
            "responses": sequences[:, context:].tolist(),
            "logprobs": logprobs.tolist(),
            "ref_logprobs": reference.tolist(),
            "values": values[:, context - 1 : -1, 0].tolist(),
            "scores": scores.tolist(),
            "advantages": advantages.tolist(),
        }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro", type=int, required=True, help="rows that an update has in memory at once")
    parser.add_argument("--updates", type=int, required=True, help="timed updates, after one to warm up")
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--autocast", action="store_true", help="compute in bf16 whatever the weights' dtype")
    return parser.parse_args()


def config(args: argparse.Namespace, updates: int) -> PPOConfig:
    """TRL's own values where they are those of `rl=ppo`; the temperature is 1."""
    return PPOConfig(
        output_dir=str(args.folder / "trl"),
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.batch // args.micro,
        total_episodes=args.batch * updates,
        num_ppo_epochs=4,
        num_mini_batches=1,
        response_length=args.new_tokens,
        temperature=1.0,
        stop_token=None,
        local_rollout_forward_batch_size=args.batch,
        num_sample_generations=0,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        bf16=args.autocast,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def build(args: argparse.Namespace, updates: int, clock: Clock) -> PPOTrainer:
    tokenizer = AutoTokenizer.from_pretrained(args.folder / "policy", padding_side="left", pad_token=PAD)
    prompts = json.loads((args.folder / "prompts.json").read_text())[: args.batch * updates]
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    dtype = getattr(torch, args.dtype)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(args.folder / "policy", dtype=dtype) for _ in range(2)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(args.folder / "rm", num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    if args.check:
        with torch.no_grad():
            policy.model.norm.weight.mul_(1.02)
    trainer = PPOTrainer(
        args=config(args, updates),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(1)),
        callbacks=[clock],
    )
    # Its own loader shuffles: both sides must have the same prompts in each update.
    trainer.dataloader = DataLoader(rows, batch_size=args.batch, collate_fn=trainer.data_collator)
    return trainer


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    updates, clock = 1 if args.check else args.updates + 1, Clock()
    expect_tokens(args.new_tokens)
    recorder = Recorder() if args.check else None
    build(args, updates, clock).train()
    if recorder:
        losses = {name: clock.logs[0][name] for name in LOSSES}
        (args.folder / "check.json").write_text(json.dumps({**recorder.found(), **losses}))
    result = {
        "seconds": [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)],
        "rewards": [logs["objective/scores"] for logs in clock.logs if "objective/scores" in logs],
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
