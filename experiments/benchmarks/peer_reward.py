"""TRL's RewardTrainer, DPOTrainer or SFTTrainer on given rows: the other side of `reward.py`, in its own environment.

    python peer_reward.py rm|dpo|sft FOLDER --batch 8 --dtype bfloat16

FOLDER is what `reward.py` wrote: the models `rm/`, `sft/` and `ref/`, and `rows.json` with token ids. Rows are taken in
order, the first batch twice: the first time is a warm-up. The learning rate is zero, which does not change the work
but lets the losses of both sides be compared. Prints JSON with the seconds and the loss of each step.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """When each optimiser step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: object, state: object, control: object, logs: dict, **_: object) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


class TokenisedDPO(DPOTrainer):
    """A DPOTrainer whose rows are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rm", "dpo", "sft"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    rows = json.loads((args.folder / "rows.json").read_text())
    rows = rows[: args.batch] + rows
    source, clock = args.folder / ("rm" if args.what == "rm" else "sft"), Clock()
    tokenizer = AutoTokenizer.from_pretrained(source)
    common = {
        "output_dir": str(args.folder / "trl"),
        "per_device_train_batch_size": args.batch,
        "max_steps": len(rows) // args.batch,
        "learning_rate": 0.0,
        "train_sampling_strategy": "sequential",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_length": None,
        "disable_tqdm": True,
    }
    dtype = getattr(torch, args.dtype)
    if args.what == "rm":
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=dtype)
        pairs = [
            {"chosen_ids": r["prompt"] + r["chosen"], "rejected_ids": r["prompt"] + r["rejected"]}
            for r in rows
        ]
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**common),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs),
            callbacks=[clock],
        )
    elif args.what == "dpo":
        model, reference = (
            AutoModelForCausalLM.from_pretrained(args.folder / name, dtype=dtype) for name in ("sft", "ref")
        )
        pairs = [{f"{part}_ids": r[part] for part in ("prompt", "chosen", "rejected")} for r in rows]
        trainer = TokenisedDPO(
            model=model,
            ref_model=reference,
            args=DPOConfig(**common, beta=0.1, precompute_ref_log_probs=True),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs),
            callbacks=[clock],
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        texts = [
            {
                "input_ids": r["prompt"] + r["chosen"],
                "completion_mask": [0] * len(r["prompt"]) + [1] * len(r["chosen"]),
            }
            for r in rows
        ]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**common, completion_only_loss=True),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(texts),
            callbacks=[clock],
        )
    trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({"seconds": seconds, "losses": clock.losses[1:], "gib": peak}))


if __name__ == "__main__":
    main()
