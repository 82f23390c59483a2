"""The whole path on a device that is not the processor, whose tensors do not mix with the processor's."""

import apple
import pretend
import processes
import pytest
from transformers import LlamaForSequenceClassification

from rlaif.models.tiny import tiny_config, tiny_tokenizer

SMOKE = (
    "profile=smoke",
    "tracking=none",
    "model.dtype=float32",
    "sample.num_prompts=10",
    "rm.test_fraction=0.3",
    "rl.num_prompts=8",
    "eval.num_prompts=4",
)
JOBS = {
    "top": ("stage=pipeline",),
    "full": (
        "stage=pipeline",
        "model.trainable=full",
        "rl.value=separate",
        "labeler=cot",
        "rm.ensemble=2",
        "reward=ensemble",
    ),
    "foreign": (
        "stage=rl",
        "reward=hub",
        "reward.format=pair",
        "reward.name={classifier}",
        "reward.dtype=float32",
    ),
    "apple": ("stage=pipeline", "labeler=likelihood"),
    "lora": ("stage=pipeline", "model.trainable=lora:2", "rl=grpo", "labeler=score", "reward=direct"),
}
APPLE = ("apple",)  # take the paths of an Apple GPU
# Clocks, and counts that the last bit of a tie decides.
LOOSE = ("seconds", "_per_s", "usd", "gib", "win_rate", "p_value")


def save_classifier(folder):
    """A random reward model as transformers saves it."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer))
    config.update({"num_labels": 1, "initializer_range": 0.3, "pad_token_id": tokenizer.pad_token_id})
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answers(function, *arguments, count=1):
    queue = processes.CONTEXT.Queue()
    process = processes.start(function, *arguments, queue)
    found = [queue.get(timeout=300) for _ in range(count)]
    process.join()
    return found


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """`words(name)`: a job's overrides, with a root of its own."""
    classifier = tmp_path_factory.mktemp("classifier")
    save_classifier(classifier)

    def make(name):
        job = [word.format(classifier=classifier) for word in JOBS[name]]
        return [*SMOKE, f"paths.root={tmp_path_factory.mktemp(name)}", *job]

    return make


@pytest.fixture(scope="module")
def elsewhere(words):
    """By job: its summary on the device, its matrix products there, those of the processor, and operations there."""
    found = {}
    for names in ([name for name in JOBS if name not in APPLE], APPLE):
        jobs = [words(name) for name in names]
        found |= zip(names, answers(pretend.run_jobs, jobs, names == APPLE, count=len(names)), strict=True)
    for row in found.values():
        assert not isinstance(row, str), row
    return found


def test_the_device_refuses_what_an_accelerator_refuses():
    (found,) = answers(pretend.mixtures)
    for name in ("sum", "product", "mask", "lookup here"):
        assert "same device" in found.pop(name)
    for name in ("float64 there", "float64 sent", "float64 made"):
        assert "Cannot convert" in found.pop(name)
    assert found == {
        "float64 back": "cpu",
        "lookup there": "pretend:0",
        "number": "pretend:0",
        "back": "cpu",
        "forth": "pretend:0",
        "written into a view": "30.0",
    }


@pytest.mark.parametrize("name", JOBS)
def test_every_product_is_made_on_the_device(elsewhere, name):
    _, away, left, _ = elsewhere[name]
    assert away > 1000 and left == 0


@pytest.mark.parametrize("name", JOBS)
def test_the_results_are_those_of_the_processor(elsewhere, name, words):
    summary, *_ = elsewhere[name]
    here = pretend.summary_of(words(name))
    numbers = {
        key
        for key, value in here.items()
        if isinstance(value, float) and not any(word in key for word in LOOSE)
    }
    assert len(numbers) > 20
    for key in numbers:
        assert summary[key] == pytest.approx(here[key], rel=2e-3, abs=2e-4, nan_ok=True), key


def test_an_apple_gpu_has_a_kernel_for_every_operation(elsewhere):
    """By torch's own table; that none of them makes a float64 tensor, the device itself has seen."""
    *_, operations = elsewhere["apple"]
    assert len(operations) > 100 and "aten.baddbmm.default" in operations
    assert apple.without_kernel(operations) == []
    lacking = ["aten._fused_rms_norm_backward.default", "aten.linalg_eig.default"]
    assert apple.without_kernel([*operations, *lacking]) == lacking
