"""Screening of a module or predictions, and images, that are in memory: `audit.screen`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from torch import Tensor

from audit.answers import Answers, Array, Transform
from audit.class_names import in_order
from audit.classifiers import Classifier, names_for, numbered
from audit.classifiers._one_output import two_names
from audit.classifiers._scores import BATCH, Scale, index_of, named, probabilities, refuse_all_unknown
from audit.config import Job, parse_job
from audit.errors import ConfigError, DataError, ModelError
from audit.images.encoding import as_bytes
from audit.labels.matching import match
from audit.methods import Context, module_of, stage_names, unit_of
from audit.models import digests
from audit.results.sql import Run
from audit.results.store import Store
from audit.results.warnings import RunWarning, warning_rows
from audit.review.warnings import warnings_of
from audit.stages.identity import decides, job_record, run_row
from audit.stages.plans import units_in, write_plan
from audit.worker import Worker

if TYPE_CHECKING:
    import pandas as pd

_IMAGES, _PREDICTIONS, _JOB = "images.parquet", "predictions.parquet", "job.yaml"
_SETTING = "scores='{}'"
_GROUP = 500  # images in a row group
_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string())])


@dataclass(frozen=True)
class SureError:
    """A wrong prediction. `index`: of the image in the data set, from 0. `confidence`: None if unknown."""

    index: int
    label: str
    predicted: str
    confidence: float | None


class Screening:
    """A finished run that was made in memory.

    `run`: its tables, as from `audit.open`. `location`: its folder, for `audit dashboard` and all other commands. If
    `screen` was called without `output`, the folder is deleted together with this object.
    """

    def __init__(self, location: Path, folder: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.location, self._folder = location, folder
        self.run = Run(location, comments=True)

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images with a right prediction; None if there are none. An image that occurs twice
        counts once; an image without a prediction does not count."""
        (row,) = self.run.rows("select avg(correct::int) as share from predictions")
        return None if row["share"] is None else float(row["share"])

    def confusion(self) -> pd.DataFrame:
        """Confusion matrix of image counts: one row per label, one column per predicted class."""
        counts = self.run.frame(
            "select label, predicted, count(*) as images from predictions where correct is not null group by all"
        )
        return counts.pivot(index="label", columns="predicted", values="images").fillna(0).astype(int)

    def errors(self, count: int = 24) -> list[SureError]:
        """The wrong predictions with the highest confidence, in descending order."""
        rows = self.run.rows(
            'select min(i.position) as "index", p.label, p.predicted, p.confidence from predictions p '
            "join items i using (item_id, role) where not p.correct group by all "
            'order by p.confidence desc nulls last, "index" limit ?',
            [count],
        )
        return [SureError(**row) for row in rows]

    @property
    def warnings(self) -> list[RunWarning]:
        """The warnings of the run, those that block a gate first."""
        return warnings_of(self.run)

    def to_parquet(self, path: str | Path) -> None:
        """Write one row per image: position, label, predicted, correct, confidence, status and reason."""
        if Path(path).suffix != ".parquet":
            raise ConfigError(f"{path}: the name must end in .parquet")
        self.run.write(
            "select i.position, p.label, p.predicted, p.correct, p.confidence, p.status, p.reason from items i "
            "join predictions p using (item_id, role) order by i.position",
            Path(path),
        )

    def __repr__(self) -> str:
        (row,) = self.run.rows("select count(*) as images, count(correct) as labelled from predictions")
        share = "none is labelled" if self.accuracy is None else f"accuracy {self.accuracy:.1%} of {row['labelled']}"
        return f"<Screening of {row['images']} images, {share}, {self.location}>"


def screen(
    model: Any,
    dataset: Iterable[Any],
    *,
    class_names: Sequence[str] | str | None = None,
    labels: Iterable[Any] | None = None,
    scores: Scale = "auto",
    transform: Transform | None = None,
    batch_size: int = 64,
    name: str = "model",
    output: str | Path | None = None,
) -> Screening:
    """Screen images in memory. The result is a run that every command of `audit` can open.

    model: a torch module, or any function, from RGB float32 (b, 3, h, w) in [0, 1] to logits or probabilities (b,
    classes), or to one output (b, 1) for two classes; or its predictions on the data set, in the same order: scores
    (n, classes) or (n, 1), or one class per image, by name or number (n,). A module is set to evaluation mode during
    the call. Consecutive images of one size share a batch. Up to eight images are also shown one by one; if the model
    returns something else then, the warning is `unstable_output`.

    dataset: images, or pairs (image, label), or mappings with `image` and `label`, such as torch's and Hugging Face's
    data sets. An image is a PIL image, a uint8 array (h, w), (h, w, 3) or (h, w, 4), a float array or tensor in [0, 1]
    (tensors are (c, h, w)), encoded bytes, or a path. All become 8-bit RGB first, as the files of a data set do.

    class_names: of the scores, in their order; 'data' for the names that the data set has, else its labels, sorted.
    Default: the model's own, else the names that the data set has (`classes`, or a ClassLabel), else numbers from 0.
    For a pandas DataFrame of scores, 'data' and the default are the names of its columns.
    labels: in the order of the data set, where it holds images alone. Whole numbers count the names that the data set
    has, else `class_names`, from 0; -1 is no label, unless it is a predicted class.
    scores: 'probabilities', 'logits', or 'auto': probabilities if every row sums to 1; else logits from a model, and an
    error for an array, or for a model all of whose outputs lie in [0, 1], since these may not be logits. One output is
    the probability or the log-odds of the second class.
    transform: maps a PIL image to the tensor (c, h, w) that the model takes, if that is not RGB in [0, 1].
    name: of the model, in the run. output: a new folder for images, predictions, a job file, and the run.

    Raises DataError for a data set, ModelError for a model, ConfigError for an option that cannot be used.

    >>> import audit, numpy as np, torch
    >>> dark, light = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    >>> brightness = lambda x: torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 1], 1)
    >>> screening = audit.screen(brightness, [(dark, "night"), (light, "night")], class_names=["night", "day"])
    >>> screening.accuracy
    0.5
    >>> [(error.index, error.label, error.predicted) for error in screening.errors()]
    [(1, 'night', 'day')]
    """
    folder, held = _new_folder(output)
    own = _names_of(dataset)
    answers = Answers(model, transform, batch_size)
    given = _given(class_names, model)
    texts: list[str | None] = []
    with pq.ParquetWriter(folder / _IMAGES, _SCHEMA) as writer:
        pairs = _pairs(dataset, labels, own or given, minus_one=answers.predict_minus_one())
        while group := list(islice(pairs, _GROUP)):
            writer.write_table(pa.Table.from_pylist([{"image": i, "label": label} for i, label in group], _SCHEMA))
            texts += [label for _, label in group]
            answers.look([image for image, _ in group])
    if not texts:
        raise DataError("the data set holds no images")
    said = answers.named(answers.of_all(len(texts)), given or own)
    names = _class_names(class_names, given, own, texts, said)
    match(in_order(text for text in texts if text is not None), names)
    said, scale = answers.scaled(said, scores)
    _check(said, names, scale)
    pq.write_table(_table(said), folder / _PREDICTIONS)
    raw = _raw_job(name, names, scale)
    (folder / _JOB).write_text(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), "utf-8")
    classes = in_order(text for text in texts if text is not None)
    return Screening(_run(parse_job(raw, folder), folder / str(raw["name"]), classes, answers.warnings), held)


def _new_folder(output: str | Path | None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    if output is None:
        held = tempfile.TemporaryDirectory(prefix="audit-")
        return Path(held.name).resolve(), held
    folder = Path(output).expanduser().resolve()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}; give output= a new one") from error
    return folder, None


def _names_of(dataset: Any) -> tuple[str, ...]:
    """The class names of a data set: its attribute `classes` (torchvision), or its ClassLabel (Hugging Face
    datasets)."""
    features = getattr(dataset, "features", None)
    names = getattr(features.get("label"), "names", None) if isinstance(features, dict) else None
    return tuple(map(str, names or getattr(dataset, "classes", None) or ()))


def _given(class_names: Sequence[str] | str | None, model: Any) -> tuple[str, ...]:
    """The class names of the caller or of the model; empty if the data set's names are to be used."""
    columns = () if callable(model) else tuple(getattr(model, "columns", ()))  # of a pandas DataFrame
    named = columns if columns and all(isinstance(name, str) for name in columns) else ()
    if class_names == "data":
        return named
    if isinstance(class_names, str):
        raise ConfigError(f"class_names is {class_names!r}; give a list of names, or 'data' for those of the data set")
    if class_names is None:
        return model.class_names if isinstance(model, Classifier) else named
    if named and sorted(named) == sorted(class_names) and named != tuple(class_names):
        raise ConfigError(f"class_names are {list(class_names)}, but the columns of the scores are {list(named)}")
    if len(set(class_names)) != len(class_names):
        raise ConfigError("class_names repeats a name; every output needs its own")
    return tuple(map(str, class_names))


def _pairs(
    dataset: Iterable[Any], labels: Iterable[Any] | None, names: Sequence[str], *, minus_one: bool
) -> Iterator[tuple[bytes, str | None]]:
    """Bytes and label of each image. minus_one: whether -1 is a class, and not the number of images without a label."""
    separate = None if labels is None else iter(labels)
    none_left = object()
    for i, item in enumerate(_items(dataset)):
        image, label = _split(item, i)
        if separate is not None:
            if label is not None:
                raise DataError("the data set has labels of its own; leave labels= out")
            label = next(separate, none_left)
            if label is none_left:
                raise DataError(f"labels= has {i} labels, but the data set has more images")
        text = _as_text(label, names, f"label {i}", minus_one=minus_one)
        yield as_bytes(image, f"image {i}"), text
    if separate is not None and next(separate, none_left) is not none_left:
        raise DataError("labels= has more labels than the data set has images")


def _items(dataset: Any) -> Iterator[Any]:
    """Items of a torch data set up to its length, since not every data set raises an IndexError there."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        return (dataset[i] for i in range(len(dataset)))
    return iter(dataset)


def _split(item: Any, index: int) -> tuple[Any, Any]:
    if isinstance(item, dict):
        if "image" not in item:
            raise DataError(f"item {index} of the data set has the keys {sorted(map(str, item))}, but no 'image'")
        return item["image"], item.get("label")
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise DataError(
                f"item {index} of the data set is a {type(item).__name__} of {len(item)}; expected (image, label)"
            )
        return item[0], item[1]
    return item, None


def _as_text(label: Any, names: Sequence[str], where: str, *, minus_one: bool) -> str | None:
    if isinstance(label, Tensor | np.generic | np.ndarray) and np.ndim(label) == 0:
        label = label.item()
    if label is None or isinstance(label, str):
        return label or None
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{where} is {label!r}; a label is a name, or the number of a class")
    if label == -1 and not minus_one:  # as Hugging Face data sets mark images without a label
        return None
    if not names:
        return str(label)
    if not 0 <= label < len(names):
        raise DataError(f"{where} is {label}, but there are {len(names)} class names")
    return names[label]


def _class_names(
    asked: Sequence[str] | str | None,
    given: tuple[str, ...],
    own: tuple[str, ...],
    labels: Sequence[str | None],
    said: Array,
) -> tuple[str, ...]:
    """One name per output, in their order. Raises ModelError if the numbers differ."""
    known = in_order(label for label in labels if label is not None)
    if said.ndim == 1:
        return given or own or match(known, in_order(said.tolist()), complete=False).own
    count = said.shape[1]
    if count == 1:
        return two_names(given or own or (numbered(known, 2) if known else None) or (known if asked == "data" else ()))
    if asked == "data" and not own and not given:
        return names_for("data", (), known, count)
    names = given or own or numbered(known, count)
    if names is None:
        raise ModelError(
            f"it is unknown which of the model's {count} outputs is which class: set class_names= to one name per "
            "output, in their order, or to 'data' if the outputs have the order of the sorted labels of the data set: "
            f"{', '.join(map(repr, known[:3]))}, ..."
        )
    if len(names) != count:
        raise ModelError(
            f"the model has {count} outputs, but there are {len(names)} class names: {', '.join(names[:8])}"
        )
    return names


def _check(said: Array, names: Sequence[str], scale: Scale) -> None:
    """Raise ModelError, in the terms of `screen`, for what cannot be used once it is a file of predictions."""
    if said.ndim == 1:
        order = {name: i for i, name in enumerate(names)}
        for i, text in enumerate(said.tolist()):
            index_of(named(text.strip() or None, order, False), order, f"prediction {i}")
        return
    lost = []
    for start in range(0, len(said), BATCH):

        def where(i: int, start: int = start) -> str:
            return f"row {start + i} of the scores"

        known = probabilities(said[start : start + BATCH], scale, where, setting=_SETTING)
        lost.append(np.isnan(known).any(1))
    refuse_all_unknown(np.concatenate(lost), "the scores", _SETTING)


def _table(said: Array) -> pa.Table:
    items = [f"{_IMAGES}#{i}" for i in range(len(said))]
    if said.ndim == 1:
        return pa.table({"item": items, "predicted": pa.array(said.tolist(), pa.string())})
    flat = pa.array(said.reshape(-1), pa.float64())
    return pa.table({"item": items, "scores": pa.FixedSizeListArray.from_arrays(flat, said.shape[1])})


def _raw_job(name: str, names: tuple[str, ...], scale: Scale) -> dict[str, Any]:
    """The job file. It can be run again, also with an embedder and more models added."""
    stored: dict[str, Any] = {"id": name, "loader": "predictions", "path": _PREDICTIONS, "match": "path"}
    return {
        "version": 1,
        "name": "screening",
        "data": {"source": "parquet", "path": _IMAGES},
        "models": [{**stored, "class_names": list(names), "scores": scale}],
        "stages": [{"kind": "screen"}],
    }


def _run(job: Job, location: Path, classes: tuple[str, ...], warnings: Sequence[RunWarning]) -> Path:
    """Compute all units of a job in this process. warnings: of the model. Raises ModelError or DataError if a unit
    fails."""
    store, found = Store(location), digests(job)
    decided = decides(job, found)
    record = job_record(job, decided)
    store.create("job.json", record)
    store.commit("run", "run", {"runs": [run_row(job, decided, record)], "warnings": warning_rows(warnings)})
    worker = Worker(job, location, classes, 1)
    for stage in stage_names(job):
        plugin, module = module_of(job, stage)
        payloads = module.plan(plugin.options, Context(job, stage, location, worker.models, 1))
        plan = write_plan(store, stage, (unit_of(stage, plugin, module.VERSION, one, job, found) for one in payloads))
        for unit in units_in(store, plan):
            summary = worker.run(unit)
            if summary.error is not None:
                raise (ModelError if summary.fatal == "config" else DataError)(summary.error)
    return location
