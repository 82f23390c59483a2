"""How much faster the labeler is than a plain way of asking the same model the same questions.

    python experiments/benchmarks/labeling.py --pairs hh_harmless.jsonl.gz

Both sides run the same `Labeler`, prompts, weights and dtype; they differ in the engine behind it.
The plain engine runs transformers on one prompt at a time: the full prompt for each order, logits of the
whole vocabulary at every position, `generate` for rationales. Ours is `TransformersBackend`.

Sides alternate (A-B-A-B); a side's time is the median of its repetitions after one warm-up. Results must be
equal: preferences are compared pair by pair, for chain of thought on the same rationales.

Matrix work is 2 x (weights of all layers x unique tokens + weights of the vocabulary head x positions where
it is read) floating-point operations. Unique tokens are the nodes of the prefix tree of everything that the
model had to read, so that a beginning shared by several prompts counts once, and the prompt of a rationale
is not counted again for its verdict; attention scores are not counted. The share of the machine's rate is
this work / time / the best measured rate of one large matrix product in the same dtype.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import torch

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.transformers import TransformersBackend
from rlaif.data.files.hh import split_dialogue
from rlaif.data.files.readers import HubPart, read_rows
from rlaif.labelers import Labeler, LabelerOptions, LabelResult, TemplateSet
from rlaif.labelers.templates import Exemplar
from rlaif.models.kernels.devices import resolve_dtype
from rlaif.models.load import LanguageModel, ModelSpec, load_model
from rlaif.models.weights import export_policy
from rlaif.options.labeling import ReadoutOptions
from rlaif.records import Pair

TEMPLATES = Path(__file__).parents[2] / "conf" / "templates" / "harmless"
RATIONALE_TOKENS = 64

PREAMBLE = """You judge answers of an assistant. You are shown a conversation between a person and the \
assistant and two possible next answers. A harmless answer does not help anybody to hurt people, animals or \
property, does not insult, does not spread hatred against groups, and keeps private facts private. It may \
decline, and it is better when it says why and offers help that is safe. A harmful answer gives the means or \
the encouragement to do damage, or makes light of it. Length and tone do not matter, and neither does the \
place where an answer stands. An answer that misses the question but does no harm is \
better than one that is useful and dangerous. Read the whole conversation first, then both answers, and \
weigh what could follow if a person acted on each of them. Decide for the less harmful one."""

EXEMPLARS = (
    Exemplar(
        context="Human: My neighbour's dog barks all night and I have not slept properly for a week. "
        "Nobody in the house opens when I ring, and the landlord does not answer my letters. I am so tired "
        "that I think of leaving something in the garden that makes the dog sick for a while.",
        response_a="You could mix something bitter into minced meat and throw it over the fence after dark, "
        "when nobody is looking. Most dogs eat it at once and are quiet for a day or two afterwards.",
        response_b="A week without sleep is hard, and I am sorry. Please do not harm the dog: it would suffer "
        "and you would be liable. Note the times, and ask the town's office for noise complaints to "
        "mediate; earplugs may help until then.",
        rationale="Answer 1 explains how to make an animal ill. Answer 2 takes the trouble seriously, "
        "refuses the harm and names a way that can work.",
        preferred="b",
    ),
    Exemplar(
        context="Human: I want to surprise my sister for her birthday. Assistant: What a kind idea! What did "
        "you have in mind? Human: She has a diary with a lock, and I would like to read it first so that I "
        "know what she wishes for. How do I open the lock without leaving a trace?",
        response_a="A diary is private, and reading it could hurt her more than any present would please "
        "her. Ask her friends what she likes, or offer her a day together and let her choose what the two of "
        "you will do. I am glad to help with ideas for that.",
        response_b="Small diary locks are simple. Bend a hairpin into a hook, push it in and turn it "
        "gently until something gives way, and close the lock again when you have read enough of it.",
        rationale="Answer 1 protects the sister's privacy and offers another way to a good present. Answer 2 "
        "teaches how to break into something that is hers alone.",
        preferred="a",
    ),
)


@dataclass(frozen=True)
class Setting:
    """A labeler to time: number of exemplars, chain of thought, and the ratio that the project aims for."""

    name: str
    exemplars: int
    cot: bool
    aim: float


SETTINGS = (
    Setting("0 exemplars", 0, False, 2.5),
    Setting("2 exemplars", 2, False, 5.0),
    Setting("chain of thought", 0, True, 4.0),
)


class PlainBackend:
    """transformers, one prompt at a time: the obvious first version."""

    def __init__(self, directory: Path, dtype: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    def identity(self) -> dict[str, Any]:
        return {"engine": "plain"}

    def encode(self, message: Message) -> torch.Tensor:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message.user}], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer.encode(text + message.assistant, add_special_tokens=False)
        return torch.tensor([ids])

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Message], *, max_new_tokens: int, **_: Any) -> list[Generation]:
        answers = []
        for prompt in prompts:
            ids = self.encode(prompt)
            mask = torch.ones_like(ids)
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
            )
            new = out[0, ids.shape[1] :]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            answers.append(Generation(text, False, ids.shape[1], len(new)))
        return answers

    @torch.inference_mode()
    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        answers = []
        for prompt in prompts:
            ids = self.encode(prompt)
            scores = self.model(ids).logits.float().log_softmax(-1)[0, -1, self.tokens_of(choices)]
            answers.append(ChoiceScores(tuple(scores.tolist()), ids.shape[1]))
        return answers

    def tokens_of(self, choices: Sequence[str]) -> list[int]:
        return [self.tokenizer.encode(choice, add_special_tokens=False)[0] for choice in choices]

    @torch.inference_mode()
    def unrounded_gap(self, prompt: Message, choices: tuple[str, str]) -> float:
        """Log-odds of the first choice with the vocabulary head in float32: without the rounding of bf16 logits."""
        hidden = self.model.model(self.encode(prompt)).last_hidden_state[0, -1].float()
        first, second = self.model.lm_head.weight[self.tokens_of(choices)].float() @ hidden
        return float(first - second)

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        raise NotImplementedError("this benchmark has no likelihood readout")


@dataclass
class Recorder:
    """A backend that forwards all calls and remembers their prompts and the number of generated tokens."""

    inner: Any
    read: list[Message] = field(default_factory=list)
    verdicts: list[Message] = field(default_factory=list)
    generated: int = 0

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def generate(self, prompts: Sequence[Message], **options: Any) -> list[Generation]:
        self.read += prompts
        answers = self.inner.generate(prompts, **options)
        self.generated += sum(answer.tokens_out for answer in answers)
        return answers

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        self.read += prompts
        self.verdicts += prompts
        return self.inner.choice_logprobs(prompts, choices)


def templates() -> TemplateSet:
    """The shipped task `harmless` with this file's preamble and exemplars."""
    shipped = TemplateSet.load(TEMPLATES)
    return replace(
        shipped, exemplars=EXEMPLARS, templates={**shipped.templates, "base": jinja2.Template(PREAMBLE)}
    )


def options(setting: Setting, batch_size: int) -> LabelerOptions:
    readout = ReadoutOptions(
        kind="choice", temperature=1.0, direction="forward", normalize="none", max_tokens=8
    )
    return LabelerOptions(
        preamble="base",
        exemplars=setting.exemplars,
        cot=setting.cot,
        readout=readout,
        order="both",
        averaging="prob",
        samples=1,
        temperature=0.0,
        top_k=0,
        max_rationale_tokens=RATIONALE_TOKENS,
        min_mass=0.0,
        batch_size=batch_size,
        seed=0,
    )


def read_pairs(path: str, count: int, model: LanguageModel) -> list[Pair]:
    """The first `count` dialogues whose parts have at most 320 tokens together."""
    pairs: list[Pair] = []
    for row in read_rows(path, HubPart("train", None)):
        split = split_dialogue(str(row.values["chosen"]), str(row.values["rejected"]))
        if split is None:
            continue
        texts = (split.prompt, split.chosen.strip(), split.rejected.strip())
        if sum(len(model.tokenizer.encode(text)) for text in texts) <= 320:
            name = f"pair-{len(pairs)}"
            pairs.append(Pair(name, name, *texts, "dataset"))
        if len(pairs) == count:
            return pairs
    raise SystemExit(f"{path} has fewer than {count} usable pairs")


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def unique_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Nodes of the prefix tree of the rows: neighbours in sorted order share their common prefix."""
    total, previous = 0, list[int]()
    for row in sorted(map(list, rows)):
        same = next((i for i, (x, y) in enumerate(zip(previous, row, strict=False)) if x != y), None)
        shared = min(len(previous), len(row)) if same is None else same
        total, previous = total + len(row) - shared, row
    return total


def peak_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, the best of ten."""
    size = 2048
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    return 2 * size**3 / min(seconds_of(lambda: left @ right)[0] for _ in range(10))


def matrix_work(recorder: Recorder, plain: PlainBackend, model: LanguageModel) -> float:
    """Operations that the answers needed, by the formula at the top of this file."""
    config = model.trunk.config
    attention = config.hidden_size * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layers = config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    tokens = unique_tokens([plain.encode(message)[0].tolist() for message in recorder.read])
    reads = recorder.generated + len(recorder.verdicts)
    return 2.0 * (layers * tokens + config.vocab_size * config.hidden_size * reads)


def differences(ours: LabelResult, recorder: Recorder, plain: PlainBackend) -> dict[str, float]:
    """Our verdicts against the plain engine's on the very same prompts (and so the same rationales)."""
    known = dict(zip(recorder.verdicts, plain.choice_logprobs(recorder.verdicts, ("1", "2")), strict=True))
    gaps, engine_gaps, flips, undecided = list[float](), list[float](), 0, 0
    for judgement, message in zip(ours.judgements, recorder.verdicts, strict=True):
        first, second = known[message].logprobs
        assert first is not None and second is not None and judgement.p_a is not None
        p_first = 1 / (1 + math.exp(second - first))
        own = judgement.p_a if judgement.order == "ab" else 1 - judgement.p_a
        gaps.append(abs(own - p_first))
        engine_gaps.append(abs(own - 1 / (1 + math.exp(-plain.unrounded_gap(message, ("1", "2"))))))
        if abs(p_first - 0.5) < 0.02:
            undecided += 1
        elif (own > 0.5) != (p_first > 0.5):
            flips += 1
    return {
        "max_dp": max(gaps),
        "max_dp_unrounded": max(engine_gaps),
        "flips": flips,
        "undecided": undecided,
        "verdicts": len(gaps),
    }


def run_setting(
    setting: Setting,
    pairs: list[Pair],
    engines: tuple[PlainBackend, TransformersBackend],
    model: LanguageModel,
    args: argparse.Namespace,
) -> dict[str, Any]:
    plain, ours = engines
    texts, chosen = templates(), options(setting, args.batch_size)

    def label(backend: Any, rows: list[Pair]) -> LabelResult:
        return Labeler(backend, texts, chosen, store=None, progress=None).label(rows)

    recorder = Recorder(ours)
    result = label(recorder, pairs)
    label(plain, pairs[:1])
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(args.repeats):
        times["plain"].append(seconds_of(lambda: label(plain, pairs))[0])
        times["ours"].append(seconds_of(lambda: label(ours, pairs))[0])
    middle = {side: median(values) for side, values in times.items()}
    rate = matrix_work(recorder, plain, model) / middle["ours"]
    return {
        "setting": setting.name,
        "plain_pairs_per_s": len(pairs) / middle["plain"],
        "ours_pairs_per_s": len(pairs) / middle["ours"],
        "ratio": middle["plain"] / middle["ours"],
        "ratios": [a / b for a, b in zip(times["plain"], times["ours"], strict=True)],
        "aim": setting.aim,
        "prompt_tokens": sum(plain.encode(m).shape[1] for m in recorder.verdicts) / len(recorder.verdicts),
        "rationale_tokens": recorder.generated / len(recorder.verdicts),
        "rate": rate,
        **differences(result, recorder, plain),
    }


def peak_memory(args: argparse.Namespace) -> float:
    """GiB that a separate process takes to label all pairs with two exemplars and chain of thought."""
    command = [sys.executable, __file__, "--pairs", args.pairs, "--dtype", args.dtype, "--cache", args.cache]
    command += ["--count", str(4 * args.count), "--batch-size", str(args.batch_size), "--memory-only"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["gib"])


def label_for_memory(pairs: list[Pair], backend: TransformersBackend, batch_size: int) -> None:
    chosen = options(Setting("memory", 2, True, 0.0), batch_size)
    Labeler(backend, templates(), chosen, store=None, progress=None).label(pairs)
    print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def table(rows: Sequence[dict[str, Any]], peak: float) -> str:
    lines = [
        "| setting | prompt tokens | plain pairs/s | ours pairs/s | ratio (each) | aim | "
        "max \\|dp\\| (plain head in fp32) | other argmax | matrix rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        each = ", ".join(f"{ratio:.2f}" for ratio in r["ratios"])
        lines.append(
            f"| {r['setting']} | {r['prompt_tokens']:.0f} | {r['plain_pairs_per_s']:.2f} | "
            f"{r['ours_pairs_per_s']:.2f} | **{r['ratio']:.2f}** ({each}) | {r['aim']} | {r['max_dp']:.1e} "
            f"({r['max_dp_unrounded']:.1e}) | "
            f"{r['flips']} of {r['verdicts'] - r['undecided']} | {r['rate'] / peak:.0%} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", required=True, help="file in the schema of Anthropic/hh-rlhf")
    parser.add_argument("--count", type=int, default=32, help="pairs to label")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--settings", nargs="*", default=[setting.name for setting in SETTINGS])
    parser.add_argument("--cache", default="outputs/cache", help="where the embedded model is or will be")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    dtype = resolve_dtype(args.dtype, "cpu")
    model = load_model(ModelSpec("embedded", "", None, "full", dtype, "cpu", False), Path(args.cache))
    ours = TransformersBackend({}, lambda: model, max_rows=args.batch_size)
    pairs = read_pairs(args.pairs, args.count, model)
    if args.memory_only:
        label_for_memory(pairs, ours, args.batch_size)
        return
    sizes = [len(model.tokenizer.encode(PREAMBLE))]
    shown = ("context", "response_a", "response_b", "rationale")
    sizes += [sum(len(model.tokenizer.encode(getattr(e, name))) for name in shown) for e in EXEMPLARS]
    print(f"preamble and exemplars: {sizes} tokens; torch {torch.__version__}, {dtype}, ", end="")
    print(f"{torch.get_num_threads()} threads, {args.count} pairs, both orders, {args.repeats} repetitions")
    with tempfile.TemporaryDirectory() as folder:
        export_policy(Path(folder), model, model.trunk.new_top())
        engines = (PlainBackend(Path(folder), dtype), ours)
        chosen = [setting for setting in SETTINGS if setting.name in args.settings]
        peak = peak_rate(getattr(torch, dtype))
        rows = [run_setting(setting, pairs, engines, model, args) for setting in chosen]
    print(table(rows, peak))
    print(f"machine: {peak / 1e9:.0f} GFLOP/s in {dtype}; peak memory {peak_memory(args):.2f} GiB")


if __name__ == "__main__":
    main()
