"""The models and data sources of a job, loaded once each, when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from audit import registry
from audit.captioners import Captioner
from audit.class_names import in_order
from audit.classifiers import Classifier, Embedder
from audit.config import Job, Plugin, digest
from audit.datasets import DataSource
from audit.errors import ConfigError, ModelError, unknown
from audit.generators import Generator
from audit.labels.matching import Classes, Matching, as_classes, match
from audit.models.prediction_rows import Place
from audit.models.stored import Matched, StoredPredictions, matched

ONLY_STORED = (
    "has stored predictions only (loader predictions), but this needs a model that predicts new images; name one with "
    "another loader, such as hf, timm or python"
)


class Models:
    """`data_classes`: the labels of the data set, in the order of its classes. A model with `class_names: data` uses
    all classes that the data set declares. Labels and outputs are matched when a model is loaded; a matched output then
    has the name of its label in `class_names`.

    Models live on `device`: by default on the GPU that the process was given, where the job asks for GPUs, else on the
    CPU.
    """

    def __init__(self, job: Job, classes: Classes, device: str | None = None) -> None:
        self.job, self.classes = job, as_classes(classes)
        self.device = device or ("cuda" if job.compute.gpus else "cpu")
        self._classifiers: dict[str, Classifier | StoredPredictions] = {}
        self._matchings: dict[str, Matching] = {}
        self._sources: dict[str, DataSource] = {}
        self._matched: dict[str, Matched] = {}

    @property
    def data_classes(self) -> tuple[str, ...]:
        """The labels of the data set's images, in the order of its classes."""
        return self.classes.labels

    def classifier(self, model_id: str) -> Classifier:
        """A model of the job that predicts images. Raises ModelError for a model with stored predictions only."""
        loaded = self.model(model_id)
        if isinstance(loaded, StoredPredictions):
            raise ModelError(f"the model {model_id!r} {ONLY_STORED}")
        return loaded

    def classifiers(self) -> Iterator[tuple[str, Classifier]]:
        """The models that predict images. No other model is loaded."""
        for model_id, plugin in self.job.models.items():
            if can_predict(plugin):
                yield model_id, self.classifier(model_id)

    def stored(self) -> Iterator[tuple[str, StoredPredictions]]:
        """The models with stored predictions only. No other model is loaded."""
        for model_id in (model_id for model_id, plugin in self.job.models.items() if not can_predict(plugin)):
            loaded = self.model(model_id)
            if isinstance(loaded, StoredPredictions):
                yield model_id, loaded

    def matched(self, model_id: str, stored: StoredPredictions, places: Callable[[], Iterable[Place]]) -> Matched:
        """Which row of a file of predictions belongs to which image of the job. The result is cached."""
        if model_id not in self._matched:
            labels = self.matching(model_id)

            def known(label: str) -> bool:
                return label in labels.excused or labels.class_of(label) is not None

            self._matched[model_id] = matched(stored, model_id, list(places()), known)
        return self._matched[model_id]

    def matching(self, model_id: str) -> Matching:
        """Which outputs of a model of the job stand for which labels."""
        self.model(model_id)
        return self._matchings[model_id]

    def model(self, model_id: str) -> Classifier | StoredPredictions:
        """A model of the job. Raises ModelError where a label of the data set matches none of its outputs."""
        if model_id not in self.job.models:
            raise ConfigError(unknown("model", model_id, self.job.models))
        if model_id not in self._classifiers:
            model = self.job.models[model_id]
            loaded = self._load_classifier(model)
            try:
                matching = match(
                    self.classes.labels or _own_labels(loaded),
                    loaded.class_names,
                    model.labels,
                    declared=self.classes.declared,
                    complete=_knows_all(loaded),
                )
            except ModelError as error:
                raise ModelError(f"the model {model_id!r}: {error}") from error
            self._matchings[model_id] = matching
            self._classifiers[model_id] = replace(loaded, class_names=matching.names)
        return self._classifiers[model_id]

    @cached_property
    def embedder(self) -> Embedder | None:
        """The model whose embeddings stand for images; never one of the models under audit."""
        if self.job.embedder is None:
            return None
        loaded = self._load_classifier(self.job.embedder)
        if not isinstance(loaded, Embedder):
            raise ConfigError(f"embedder: loader {self.job.embedder.name!r} gives no embeddings of texts; use clip")
        return loaded

    @cached_property
    def generator(self) -> Generator:
        if self.job.generator is None:
            raise ConfigError(
                "this stage needs a generator; add to the job file: generator: {loader: diffusers, ref: ...}"
            )
        module = registry.plugin("generators", self.job.generator.name)
        loaded: Generator = module.load(self.job.generator.options, self.device)
        return loaded

    @cached_property
    def captioner(self) -> Captioner:
        """What writes captions for images that have none."""
        if self.job.captioner is None:
            raise ConfigError("this stage needs a captioner; add to the job file: captioner: {loader: blip, ref: ...}")
        loaded: Captioner = registry.plugin("captioners", self.job.captioner.name).load(
            self.job.captioner.options, self.device
        )
        return loaded

    @cached_property
    def generator_digest(self) -> str:
        """What identifies the generator's numbers: its weights, and how it is used."""
        plugin = self.job.generator
        assert plugin is not None
        weights = registry.plugin("generators", plugin.name).digest(plugin.options)
        used = {key: value for key, value in plugin.dump().items() if key not in ("ref", "revision", "lora")}
        return digest({"weights": weights, "used": used})

    def _load_classifier(self, plugin: Plugin) -> Classifier | StoredPredictions:
        loaded: Classifier | StoredPredictions
        loaded = registry.plugin("classifiers", plugin.name).load(plugin.options, self.classes.outputs)
        if not isinstance(loaded, StoredPredictions):
            loaded.network.to(self.device)
        return loaded

    def source(self, role: str) -> DataSource:
        """The data source of a role, 'data' or 'pool'."""
        if role not in self._sources:
            self._sources[role] = open_source(self.job, role)
        return self._sources[role]


def can_predict(plugin: Plugin) -> bool:
    """Whether a model predicts images; False if it has stored predictions only."""
    return bool(getattr(registry.plugin("classifiers", plugin.name), "FORWARD", True))


def _own_labels(loaded: Classifier | StoredPredictions) -> tuple[str, ...]:
    """The labels of a file of predictions, which count where the data set has none."""
    return in_order(filter(None, loaded.labels)) if isinstance(loaded, StoredPredictions) else ()


def _knows_all(loaded: Classifier | StoredPredictions) -> bool:
    """Whether all classes of a model are known, including classes that it never predicts."""
    return not isinstance(loaded, StoredPredictions) or loaded.complete


def open_source(job: Job, role: str) -> DataSource:
    plugin = job.data if role == "data" else job.pool
    if plugin is None:
        raise ConfigError("this job has no pool; add to the job file: pool: {source: parquet, path: ...}")
    opened: DataSource = registry.plugin("datasets", plugin.name).open_source(plugin.options)
    return opened


def folder_of(job: Job, role: str) -> str:
    """The local folder to which the names of a data set are relative; '' if there is none."""
    plugin = job.data if role == "data" else job.pool
    options = plugin.options if plugin is not None else None
    root = getattr(options, "root", None) or getattr(options, "path", None)
    return str(root) if isinstance(root, Path) and root.is_dir() else ""


def digests(job: Job) -> dict[str, str]:
    """What identifies the weights of every model of a job. Loads none of them."""
    found = {
        f"model {model_id}": registry.plugin("classifiers", plugin.name).digest(plugin.options)
        for model_id, plugin in job.models.items()
    }
    if job.embedder:
        found["embedder"] = registry.plugin("classifiers", job.embedder.name).digest(job.embedder.options)
    if job.captioner:
        found["captioner"] = registry.plugin("captioners", job.captioner.name).digest(job.captioner.options)
    if job.generator:
        found["generator"] = registry.plugin("generators", job.generator.name).digest(job.generator.options)
    return found
