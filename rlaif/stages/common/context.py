"""What the stages of one job share: configuration, task, models and stores, each created on first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlaif.backends.base import Backend, Comparing, Remarking
from rlaif.backends.openai.backend import OpenAIBackend
from rlaif.data.encode import Encoder
from rlaif.data.report import report_lines
from rlaif.data.tasks import load_task
from rlaif.errors import UserError
from rlaif.inference.features import FeatureCache
from rlaif.io import digest
from rlaif.io.progress import Progress
from rlaif.labelers import (
    Labeler,
    LabelerOptions,
    LabelStore,
    Price,
    Reviser,
    ReviserOptions,
    TemplateSet,
)
from rlaif.labelers.revision.principles import PRINCIPLES_FILE, read_principles
from rlaif.models.files.source import expanded
from rlaif.models.kernels.devices import resolve_device, resolve_dtype
from rlaif.models.load import (
    LanguageModel,
    ModelSpec,
    check_model,
    default_trainable,
    describe_model,
    load_model,
)
from rlaif.models.lora import parse_lora
from rlaif.models.split import check_trainable, parse_trainable
from rlaif.options.job import ModelOptions, Options
from rlaif.options.labeling import BackendOptions
from rlaif.options.read import need, plain
from rlaif.options.training import Revising
from rlaif.records import TaskData
from rlaif.stages.common.engines import engine_of, free_meter, meter_of, price_of, priced_as
from rlaif.store import ArtifactStore
from rlaif.tracking import Run

logger = logging.getLogger(__name__)

ENCODING_KEYS = ("chat", "prefix", "suffix", "separator", "max_prompt_tokens", "max_response_tokens")


class Context:
    """One job. `run` is None if nothing is to be recorded (planning, doctor).

    `compose` gives this job's options with more words on its command line, for the arms of an experiment. `renewed`
    holds the names of the artifacts that `labeler.retry` has rebuilt in this job.
    """

    def __init__(self, options: Options, run: Run | None, compose: Compose | None = None) -> None:
        self.options, self.run, self.compose = options, run, compose
        self.root = Path(options.paths.root).expanduser().absolute()
        self.cache_dir = self.root / "cache"
        self.store = ArtifactStore(self.root / "artifacts")
        self.progress = Progress(options.trainer.progress)
        self._models: dict[ModelSpec, LanguageModel] = {}
        self.servers: dict[BackendOptions, OpenAIBackend] = {}
        self._tasks: dict[str, TaskData] = {}
        self._checked: set[ModelSpec] = set()
        self._renewed_answers: set[str] = set()
        self._seen: dict[BackendOptions, Context] = {}
        self.renewed: set[str] = set()

    def with_options(self, options: Options) -> Context:
        """The same job with other options (an arm of a comparison); what was read or loaded is shared."""
        other = Context(options, self.run, self.compose)
        other._models, other.servers, other._tasks = self._models, self.servers, self._tasks
        other._renewed_answers, other.renewed = self._renewed_answers, self.renewed
        return other

    def of(self, key: str) -> Context:
        """The job as the labeler at `key` sees it: with its own backend, where it is one of several judges."""
        own = self.options.engine_at(key)
        if own == self.options.backend:
            return self
        if own not in self._seen:
            self._seen[own] = self.with_options(replace(self.options, backend=own))
        return self._seen[own]

    # Data.

    @cached_property
    def task(self) -> TaskData:
        own, seed = plain(self.options.task), self.options.seeds.data
        settings = digest([own, seed])
        if settings not in self._tasks:
            task = load_task(own, seed=seed, cache_dir=self.cache_dir, progress=self.progress)
            self._tasks[settings] = task
            told, warned = report_lines(task)
            for line in told:
                logger.info("data: %s", line)
            for line in warned:
                self.warn("data", line)
        return self._tasks[settings]

    def warn(self, title: str, text: str) -> None:
        """An alert of the run, or a line in the log if nothing is recorded."""
        if self.run is not None:
            self.run.alert(title, text)
        else:
            logger.warning("%s: %s", title, text)

    @property
    def encoding(self) -> dict[str, Any]:
        """How text becomes tokens, as a slice for digests."""
        own = self.options.task
        return {
            **{key: getattr(own, key) for key in ENCODING_KEYS},
            "too_long": own.too_long or own.too_long_prompts,
            "too_long_responses": own.too_long or own.too_long_responses,
        }

    @cached_property
    def encoder(self) -> Encoder:
        model = self.model()
        ends: dict[str, Any] = {"eos_id": model.eos_id, "eos_ids": model.eos_ids}
        return Encoder(model.tokenizer, places=self.task.places, **ends, **self.encoding)

    # Models.

    def _spec(self, group: str, trainable: str) -> ModelSpec:
        """The model of `group` (`model` or `backend`) with `trainable` as its split."""
        own: ModelOptions | BackendOptions = self.options.model if group == "model" else self.options.backend
        tiny = self.options.models.tiny
        device = resolve_device(self.options.trainer.accelerator)
        return ModelSpec(
            source="tiny" if tiny else own.source,
            name="tiny" if tiny else expanded(own.name),
            revision=None if tiny else own.revision,
            trainable=trainable,
            dtype="float32" if tiny else resolve_dtype(own.dtype, device, f"{group}.dtype"),
            device=device,
            trust_remote_code=own.trust_remote_code,
            lora_alpha=self.options.model.lora_alpha if trainable.startswith("lora:") else None,
            key=f"{group}.name",
            chat_template=None if tiny else own.chat_template,
        )

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The base model of the policy and the reward model. `model.trainable=auto` is resolved here."""
        wanted = self.options.model.trainable
        if self.options.models.tiny:
            return self._spec("model", "top:1" if wanted == "auto" or wanted.startswith("top:") else wanted)
        spec = self._spec("model", wanted)
        if wanted != "auto":
            return spec
        found = default_trainable(spec)
        if found != "top:4":
            logger.info("model.name=%s is small: model.trainable=auto is %s", spec.name, found)
        return replace(spec, trainable=found)

    @cached_property
    def labeler_spec(self) -> ModelSpec:
        """The model of a labeler in this process: split like the policy's base if it is the same, so loaded once.

        Any other model has no trainable part, so its split means nothing.
        """
        policy, own = self.model_spec, self._spec("backend", "auto")
        twin = replace(own, trainable=policy.trainable, lora_alpha=policy.lora_alpha)
        return twin if twin == policy else replace(own, trainable=default_trainable(own))

    def check_model(self) -> None:
        """Raises UserError for a base model that cannot be loaded, split, or given texts as long as the task's."""
        spec = self.model_spec
        if spec in self._checked:
            return
        check_trainable(spec.trainable)
        sizes = check_model(spec, chat=self.options.task.chat)
        if sizes is not None:
            parse_trainable(spec.trainable, sizes.num_layers)
            self._check_context(sizes.max_positions)
        self._checked.add(spec)

    def _check_context(self, positions: int) -> None:
        prompt, response = self.options.task.max_prompt_tokens, self.options.task.max_response_tokens
        if prompt + response > positions:
            raise UserError(
                f"task.max_prompt_tokens={prompt} and task.max_response_tokens={response} make texts of "
                f"{prompt + response} tokens, but model.name={self.model_spec.name} has a context of {positions}: "
                "write lower limits"
            )

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """The policy's base model, its split and its dtype, as a slice for digests."""
        spec = self.model_spec
        split: dict[str, Any] = {"trainable": spec.trainable, "dtype": spec.dtype}
        check_trainable(spec.trainable)
        lora = parse_lora(spec.trainable, spec.lora_alpha)
        if lora is not None:
            split["lora_alpha"] = lora.alpha
        return {**describe_model(spec, self.cache_dir), **split}

    def check_once(self, spec: ModelSpec, *, chat: bool) -> None:
        """Raises UserError for a labeler's model that cannot be loaded."""
        if spec not in self._checked:
            check_model(spec, chat=chat)
            self._checked.add(spec)

    def load(self, spec: ModelSpec) -> LanguageModel:
        """Load a base model once in this process."""
        if spec not in self._models:
            with self.progress.note(f"loading {spec.name}"):
                self._models[spec] = load_model(spec, self.cache_dir)
        return self._models[spec]

    def loaded(self, spec: ModelSpec) -> LanguageModel | None:
        """A base model that this process has loaded already."""
        return self._models.get(spec)

    def model(self) -> LanguageModel:
        """The base model of the policy and the reward model."""
        model = self.load(self.model_spec)
        self._check_context(model.trunk.config.max_positions)  # its sizes may not have been known before
        return model

    @cached_property
    def features(self) -> FeatureCache:
        return FeatureCache(self.cache_dir / "trunk", int(self.options.model.trunk_cache_gb * 2**30))

    # Labelers and judges.

    def labeler(self, key: str, seed: int, *, stored: bool) -> Labeler:
        """The labeler at `key` (as in `Options.asked`); without `stored`, only good for its identity."""
        own, templates = self.options.asked(key), self.templates
        options = LabelerOptions.of(own, seed=seed)
        return Labeler(
            self._backend(key, templates),
            templates,
            options,
            store=self.label_store if stored else None,
            progress=self.progress.phases(key),
            meter=meter_of(key, own, self.price(key), self.priced_as(key)),
            retry=own.retry,
            renewed=self._renewed_answers,
        )

    def reviser(self, own: Revising, *, stored: bool, writer: Backend | None = None) -> Reviser:
        """Who criticises and rewrites: `writer`, or the labeler's engine.

        Without `stored`, only good for identity and estimate.
        """
        labeler, templates = self.options.labeler, self.templates
        path = Path(own.principles).expanduser() if own.principles else templates.place(PRINCIPLES_FILE)
        options = ReviserOptions(
            rounds=own.rounds,
            temperature=own.temperature,
            max_critique_tokens=own.max_critique_tokens,
            max_revision_tokens=self.options.task.max_response_tokens,
            batch_size=labeler.batch_size,
            seed=self.options.seeds.revise,
        )
        return Reviser(
            writer or self._backend("labeler", templates),
            templates,
            read_principles(path, own.place),
            options,
            store=self.label_store if stored else None,
            progress=self.progress.phases("revise"),
            meter=free_meter(own.place)
            if writer
            else meter_of("labeler", labeler, self.price("labeler"), self.priced_as("labeler")),
            place=own.place,
        )

    @property
    def templates(self) -> TemplateSet:
        """The prompt texts of the task."""
        folder = Path(self.options.paths.code) / "conf" / "templates"
        return TemplateSet.load(folder / self.options.task.templates)

    def priced_as(self, key: str) -> str:
        """The name of the labeler at `key` in the price list."""
        return priced_as(self.options.asked(key).engine, self.options.engine_at(key))

    def price(self, key: str) -> Price | None:
        """What the tokens of the labeler at `key` cost; None if unknown."""
        return price_of(self.options.prices, self.options.asked(key).engine, self.options.engine_at(key))

    @cached_property
    def label_store(self) -> LabelStore:
        return LabelStore(self.root / "labels.sqlite", claim_seconds=60.0)

    def _backend(self, key: str, templates: TemplateSet) -> Backend | Comparing:
        own, have = self.options.asked(key), self.options.engine_at(key)
        engine = engine_of(own.engine, have.engine)
        need(have, "backend", engine.needs, f"backend={have.engine}")
        return engine.make(self.of(key), own, templates.chat)

    def remarks(self, key: str) -> tuple[str, ...]:
        """What the engine of the labeler at `key` turned out to reject or leave out."""
        backend = self._backend(key, self.templates)
        return backend.remarks if isinstance(backend, Remarking) else ()


Compose = Callable[[Sequence[str]], Options]
"""The options that result from the job's command line with these words after it."""
