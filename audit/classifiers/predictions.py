"""Stored predictions, `path: predictions.csv` or `.parquet`: a model of which only the predictions are known.

A row names its image and holds one number a class (a column each, or one column of lists), or the predicted class and
its confidence. Stages that need a forward pass refuse such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from audit.class_names import resolve
from audit.classifiers import names_for
from audit.classifiers._scores import (
    KINDS,
    Floats,
    Scale,
    ScoreTable,
    index_of,
    listed,
    matrix,
    named,
    open_table,
    probabilities,
    refuse_all_unknown,
    text_cells,
    top_classes,
    width_of,
)
from audit.config import ClassNames, Frozen, LocalPath
from audit.errors import ModelError, unknown
from audit.models.prediction_rows import Rule, normal
from audit.models.stored import StoredPredictions
from audit.reference import digest_of_file
from audit.results.warnings import RunWarning

FORWARD = False
TIES = 0.001  # share of rows with several highest scores above which a gate does not pass
_Where = Callable[[int], str]  # a row of a batch, for messages

_ITEM = (
    *("item", "item_id", "image", "image_id", "image_path", "path", "file", "file_name", "filename", "file_path"),
    *("filepath", "name", "id", "uri"),
)
_LABEL = ("label", "true_label", "y_true", "ground_truth")
_PREDICTED = ("predicted", "prediction", "predicted_class", "predicted_label", "y_pred", "pred")
_CONFIDENCE = ("confidence", "probability", "score", "prob")
_SCORES = ("scores", "logits", "probabilities", "probs")
_EMBEDDING = ("embedding", "embeddings")
_PREFIXES = ("score_", "scores_", "prob_", "probability_", "p_", "logit_", "logits_")


class Options(Frozen):
    path: LocalPath = Field(description="the predictions: *.csv, *.tsv or *.parquet")
    item_column: str | None = Field(
        None, description="of paths, file names or sha256 of the images; default: the one named item, image, path, ..."
    )
    match: Rule = Field(
        "auto",
        description="how rows and images are matched: 'path' (by the end of the path), 'stem' (the same without "
        "suffix), 'name' (by the file name alone), 'sha256'; 'auto': the one of path, stem, sha256 that matches most "
        "images",
    )
    label_column: str | None = Field(None, description="default: the one named label, if there is one")
    scores_column: str | None = Field(
        None, description="of lists, one number per class name; default: scores, if present"
    )
    score_prefix: str | None = Field(
        None, description="of the columns of the classes, such as 'p_' for p_cat and p_dog; default: found"
    )
    predicted_column: str | None = Field(None, description="of predicted classes; default: the one named predicted")
    confidence_column: str | None = Field(
        None, description="of the probability of the predicted class, if the file has no scores"
    )
    embedding_column: str | None = Field(
        None,
        description="of lists, the images' embeddings, which are used if the job has no embedder; discovery still "
        "needs an embedder, for texts; default: the column named embedding, if there is one",
    )
    scores: Scale = Field("auto", description="probabilities or logits; 'auto': probabilities, if every row sums to 1")
    class_names: ClassNames | None = Field(
        None, description="names of the scores in their order, or 'data'; default: the names of the columns"
    )

    @field_validator("path")
    @classmethod
    def _known_kind(cls, value: LocalPath) -> LocalPath:
        if value.suffix not in KINDS:
            raise ValueError(f"{value} is no table of predictions: its name must end in {', '.join(KINDS)}")
        return value


@dataclass(frozen=True)
class _Layout:
    """The columns of a file. `columns`: one per class, in the order of `names`; or `scores`: a column of lists.

    `doubt`: why some of the columns may be no classes, to be said where their rows are no probabilities.
    """

    item: str
    label: str | None
    predicted: str | None
    names: tuple[str, ...]
    columns: tuple[str, ...] = ()
    scores: str | None = None
    confidence: str | None = None
    embedding: str | None = None
    doubt: str = ""

    @property
    def has_scores(self) -> bool:
        return bool(self.columns) or self.scores is not None

    def texts(self) -> list[str]:
        return [
            name for name in (self.item, self.label, self.predicted, self.scores, self.embedding) if name is not None
        ]

    def numbers(self) -> list[str]:
        return [*self.columns, *([self.confidence] if self.confidence else [])]


@dataclass(frozen=True)
class _Part:
    """Some rows: keys, labels, indices of the most probable classes (n, k), their probabilities, and whether several
    classes share the highest score (n,)."""

    keys: list[str]
    labels: list[str | None]
    classes: NDArray[np.int32]
    confidences: Floats
    tied: NDArray[np.bool_]
    embeddings: NDArray[np.float32] | None


def load(options: Options, data_classes: tuple[str, ...]) -> StoredPredictions:
    """Read and check the whole file. Raises ModelError naming the row or the column that cannot be used."""
    if not options.path.is_file():
        raise ModelError(f"no file of predictions at {options.path}")
    table = open_table(options.path)
    embedding = _column(table, options.embedding_column, _EMBEDDING, "embedding_column")
    layout = replace(_layout(table, options, data_classes), embedding=embedding)
    names = {name: i for i, name in enumerate(layout.names)}
    parts = list(_parts(table, layout, names, options))
    keys = tuple(key for part in parts for key in part.keys)
    if not keys:
        raise ModelError(f"{options.path} has a header and no rows")
    _refuse_duplicates(keys, options)
    classes = np.concatenate([part.classes for part in parts])
    refuse_all_unknown(classes[:, 0] < 0, str(options.path))
    return StoredPredictions(
        tuple(names),
        str(options.path),
        keys,
        classes,
        np.concatenate([part.confidences for part in parts]),
        tuple(label for part in parts for label in part.labels),
        options.match,
        embeddings=_joined([part.embeddings for part in parts], options),
        complete=bool(layout.names),
        warnings=_ties(np.concatenate([part.tied for part in parts]), keys, options),
    )


def _ties(tied: NDArray[np.bool_], keys: Sequence[str], options: Options) -> tuple[RunWarning, ...]:
    """A warning of rows with several highest scores. It blocks a gate if they could change the accuracy by more than
    `TIES`."""
    rows = np.flatnonzero(tied)
    if not len(rows):
        return ()
    message = f"{options.path}: rows in which several classes share the highest score: {len(rows):,}, the first is row "
    message += f"{rows[0] + 1} ({keys[rows[0]]!r}). The first of these classes counts as predicted. Write the scores "
    message += "with more digits, or add a column 'predicted'"
    return (RunWarning("tied_scores", message, items=len(rows), blocks_gate=len(rows) > TIES * len(tied)),)


def digest(options: Options) -> str:
    """sha256 of the file."""
    if not options.path.is_file():
        raise ModelError(f"no file of predictions at {options.path}")
    return digest_of_file(options.path)


def _layout(table: ScoreTable, options: Options, data_classes: tuple[str, ...]) -> _Layout:
    item = _column(table, options.item_column, _ITEM, "item_column")
    if item is None:
        raise ModelError(
            f"{table.path} has no column that names images; it has {', '.join(table.columns)}. Name the column of "
            "paths, file names or sha256 with 'item_column'"
        )
    label = _column(table, options.label_column, _LABEL, "label_column")
    predicted = _column(table, options.predicted_column, _PREDICTED, "predicted_column")
    scores = _column(table, options.scores_column, _SCORES, "scores_column")
    base = _Layout(item, label, predicted, ())
    if scores is not None and (scores == options.scores_column or scores not in table.numeric):
        names = _given(options, data_classes)
        if not names:
            raise ModelError(
                f"{table.path}: {scores!r} holds a list for each image, but it is unknown which number is which class. "
                "Set class_names to the names in this order, or to 'data' for the data set's labels"
            )
        return _Layout(item, label, predicted, names, scores=scores)
    return _by_columns(table, options, data_classes, base) or _by_answer(table, options, data_classes, base)


def _given(options: Options, data_classes: tuple[str, ...]) -> tuple[str, ...]:
    names = data_classes if options.class_names == "data" else options.class_names or ()
    return names_for(options.class_names, (), data_classes, len(names)) if names else ()


def _column(table: ScoreTable, asked: str | None, obvious: Sequence[str], option: str) -> str | None:
    """The column that an option names, else the only one with an obvious name. Raises ModelError."""
    if asked is not None:
        if asked not in table.columns:
            raise ModelError(f"{table.path}: {option}: {unknown('column', asked, table.columns)}")
        return asked
    there = [name for name in table.columns if name.lower() in obvious]
    if len(there) > 1:
        raise ModelError(f"{table.path} has the columns {' and '.join(map(repr, there))}; choose one with {option!r}")
    return there[0] if there else None


def _by_columns(table: ScoreTable, options: Options, data_classes: tuple[str, ...], base: _Layout) -> _Layout | None:
    """Scores in one column a class; None where the file has no such columns."""
    taken = {base.item, base.label, base.predicted, options.confidence_column}
    if base.predicted is not None:
        taken |= {name for name in table.columns if name.lower() in _CONFIDENCE}
    left = [name for name in table.columns if name not in taken]
    given = _given(options, data_classes)
    prefix = options.score_prefix if options.score_prefix is not None else _prefix_of(left, given)
    by_class = {name.removeprefix(prefix): name for name in left if name.startswith(prefix)}
    doubt = ""
    if options.class_names == "data":
        doubt = _doubt([name for name, column in by_class.items() if name not in given and column in table.numeric])
    if given:
        found = _named_columns(table, base, given, by_class, doubt)
    else:
        if not prefix:
            by_class, doubt = _unprefixed(table, data_classes, base, by_class)
        names, columns = tuple(by_class), tuple(by_class.values())
        found = _Layout(base.item, base.label, base.predicted, names, columns, doubt=doubt) if len(names) > 1 else None
    if found is not None and doubt and options.scores == "logits":
        raise ModelError(f"{table.path}: {doubt}")
    return found


def _prefix_of(columns: Sequence[str], given: Sequence[str]) -> str:
    """The prefix that at least two columns share, '' where there is none or the given names are columns as they are."""
    if set(given) & set(columns):
        return ""
    return next((p for p in _PREFIXES if sum(name.startswith(p) for name in columns) > 1), "")


def _named_columns(
    table: ScoreTable, base: _Layout, given: tuple[str, ...], by_class: dict[str, str], doubt: str
) -> _Layout | None:
    missing = [name for name in given if name not in by_class]
    if len(missing) == len(given):
        return None
    if missing:
        raise ModelError(f"{table.path} lacks the score of a class: {unknown('class', missing[0], by_class)}")
    return _Layout(base.item, base.label, base.predicted, given, tuple(by_class[name] for name in given), doubt=doubt)


def _unprefixed(
    table: ScoreTable, data_classes: tuple[str, ...], base: _Layout, left: dict[str, str]
) -> tuple[dict[str, str], str]:
    """Columns without a prefix count as classes if they are named like classes, or if they can be nothing else; and
    what to say of the latter, '' if there are none."""
    known = {name for name in left if resolve(name, data_classes) is not None}
    numeric = {name: column for name, column in left.items() if column in table.numeric or name in known}
    others = [name for name in numeric if name not in known]
    if not known and base.predicted is not None:
        return {}, ""
    return numeric, _doubt(others)


def _doubt(others: Sequence[str]) -> str:
    """What to say of columns of numbers that may be classes; '' if there are none."""
    if not others:
        return ""
    return (
        f"These columns are not classes of the data set: {', '.join(map(_described, others[:5]))}. If they are classes "
        "of the model, list all of its classes with class_names, or give their columns a prefix such as 'score_'; if "
        "not, leave them out of the file"
    )


def _described(column: str) -> str:
    """A column for messages. pandas writes its index as a column that it names so."""
    if not column:
        return "a column without a name (pandas' index: write with index=False)"
    index = column.startswith("Unnamed: ") or column == "__index_level_0__"
    return repr(column) + (" (pandas' index: write with index=False)" if index else "")


def _by_answer(table: ScoreTable, options: Options, data_classes: tuple[str, ...], base: _Layout) -> _Layout:
    """Predicted classes, with confidences if the file has them."""
    if base.predicted is None:
        raise ModelError(
            f"{table.path} has no predictions that can be read: its columns are {', '.join(table.columns)}. What "
            "works: for each class a column of numbers with the name of the class; a column 'scores' of lists, with "
            "class_names; or 'predicted', with 'confidence' if it is known"
        )
    confidence = _column(table, options.confidence_column, _CONFIDENCE, "confidence_column")
    return _Layout(base.item, base.label, base.predicted, _given(options, data_classes), confidence=confidence)


def _parts(table: ScoreTable, layout: _Layout, names: dict[str, int], options: Options) -> Iterator[_Part]:
    """Read the file in batches. If the class names are not known before, predicted classes are added to `names`."""
    grows, start = not layout.names, 0
    for batch in table.batches(layout.texts(), layout.numbers()):
        first = start
        start += batch.num_rows

        def where(i: int, first: int = first) -> str:
            return f"{options.path}, row {first + i + 1}"

        predicted = [named(text, names, grows) for text in text_cells(batch, layout.predicted)]
        indices = np.array([index_of(name, names, where(i)) for i, name in enumerate(predicted)], np.int32)
        if layout.has_scores:
            classes, confidences, tied = _scored(batch, indices, layout, options, where)
            _refuse_other_answers(indices, classes, layout, where)
        else:
            classes, confidences = _answered(batch, indices, layout, where)
            tied = np.zeros(len(classes), np.bool_)
        keys = [_key(text, where(i), layout.item) for i, text in enumerate(text_cells(batch, layout.item))]
        labels = [named(text, names, False) for text in text_cells(batch, layout.label)]
        yield _Part(keys, labels, classes, confidences, tied, _embedded(batch, layout.embedding, where))


def _embedded(batch: pa.RecordBatch, column: str | None, where: _Where) -> NDArray[np.float32] | None:
    if column is None:
        return None
    return listed(batch, column, width_of(batch, column), where, "as in its first row").astype(np.float32)


def _joined(parts: list[NDArray[np.float32] | None], options: Options) -> NDArray[np.float32] | None:
    held = [part for part in parts if part is not None]
    widths = {part.shape[1] for part in held} - {0}  # 0: of rows that all have none
    if len(widths) > 1:
        raise ModelError(f"{options.path}: the embeddings of its rows have different lengths")
    (width,) = widths or (0,)
    whole = [part if part.shape[1] else np.full((len(part), width), np.nan, np.float32) for part in held]
    return np.concatenate(whole) if width else None


def _key(text: str | None, where: str, column: str) -> str:
    if text is None:
        raise ModelError(f"{where}: {column!r} is empty, so it belongs to no image")
    return text


def _scored(
    batch: pa.RecordBatch, predicted: NDArray[np.int32], layout: _Layout, options: Options, where: _Where
) -> tuple[NDArray[np.int32], Floats, NDArray[np.bool_]]:
    if layout.scores is not None:
        values = listed(batch, layout.scores, len(layout.names), where)
    else:
        values = matrix(batch, layout.columns)
    return top_classes(probabilities(values, options.scores, where, layout.doubt), predicted)


def _answered(
    batch: pa.RecordBatch, predicted: NDArray[np.int32], layout: _Layout, where: _Where
) -> tuple[NDArray[np.int32], Floats]:
    confidences = np.full(len(predicted), np.nan)
    if layout.confidence is not None:
        confidences = matrix(batch, [layout.confidence])[:, 0]
        wrong = np.flatnonzero((confidences < 0) | (confidences > 1))
        if len(wrong):
            raise ModelError(
                f"{where(int(wrong[0]))}: {layout.confidence!r} is {confidences[wrong[0]]:g}, expected a probability "
                "in [0, 1]; divide percentages by 100"
            )
    return predicted[:, None], confidences[:, None]


def _refuse_other_answers(
    predicted: NDArray[np.int32], classes: NDArray[np.int32], layout: _Layout, where: _Where
) -> None:
    """The predicted class must be the one of the highest score, else the scores are in another order than the names."""
    wrong = np.flatnonzero((predicted >= 0) & (classes[:, 0] >= 0) & (predicted != classes[:, 0]))
    if len(wrong):
        i = int(wrong[0])
        raise ModelError(
            f"{where(i)}: {layout.predicted!r} says {layout.names[predicted[i]]!r}, but the highest score is that of "
            f"{layout.names[classes[i, 0]]!r}. Check that the classes are in the order of the scores, or "
            f"leave {layout.predicted!r} out of the file"
        )


def _refuse_duplicates(keys: Sequence[str], options: Options) -> None:
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        before = seen.setdefault(normal(key), row)
        if before != row:
            raise ModelError(f"{options.path}: the rows {before + 1} and {row + 1} both name {key!r}; one is needed")
