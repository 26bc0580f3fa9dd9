"""The tables of a run: their columns, types and meaning. Versioned; columns are added, never changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from audit.errors import RowError

SCHEMA_VERSION = 2

_S, _F, _I, _B = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")


def _table(comment: str, columns: Mapping[str, tuple[pa.DataType, str]]) -> pa.Schema:
    fields = [pa.field(name, kind, metadata={"comment": text}) for name, (kind, text) in columns.items()]
    return pa.schema(fields, metadata={"comment": comment, "version": str(SCHEMA_VERSION)})


TABLES: dict[str, pa.Schema] = {
    "runs": _table(
        "one row: the run",
        {
            "run_id": (_S, "fingerprint of everything that decides results"),
            "name": (_S, "name in the job file"),
            "config": (_S, "the checked job, as JSON"),
            "versions": (_S, "library versions, as JSON"),
            "hardware": (_S, "what the driver ran on, as JSON"),
            "created_at": (_TIME, "when the run was first started"),
        },
    ),
    "units": _table(
        "a unit of work that was committed",
        {
            "unit_id": (_S, "hash of everything that changes the unit's numbers"),
            "stage": (_S, "stage in the job file, as '<position>-<kind>'"),
            "attempt": (_I, "which attempt was committed"),
            "worker": (_S, "which worker committed it"),
            "status": (_S, "ok or quarantined"),
            "items": (_I, "items in the unit"),
            "seconds": (_F, "wall-clock seconds"),
            "peak_memory": (_I, "peak resident memory of the worker in bytes"),
            "error": (_S, "why it was quarantined"),
            "batch_size": (
                _I,
                "items that the stage draws or optimises in one batch; stages that only look at images take up to 64, "
                "or one if deterministic",
            ),
            "device": (
                _S,
                "device of the models: its kind, and in brackets the name of the GPU or the instruction set of the CPU",
            ),
            "threads": (_I, "threads of torch on the CPU"),
            "deterministic": (_B, "deterministic algorithms, one item at a time, one thread"),
        },
    ),
    "warnings": _table(
        "what the audit cannot determine, or doubts, about models and data",
        {
            "code": (_S, "short stable word for the kind of warning"),
            "message": (_S, "one line for people"),
            "model_id": (_S, "model that it concerns; NULL for all"),
            "role": (_S, "data or pool, if it concerns one of them"),
            "items": (_I, "number of images that it concerns"),
            "blocks_gate": (_B, "whether a gate does not pass because of it"),
        },
    ),
    "classes": _table(
        "a class that the data set declares, with or without images",
        {
            "class_name": (_S, "its name"),
            "position": (_I, "its place in the data set's own order, from 0"),
        },
    ),
    "items": _table(
        "an input image, at a place of a data set",
        {
            "item_id": (_S, "sha256 of the image's bytes"),
            "role": (_S, "data (labelled, under audit) or pool (unlabelled evidence)"),
            "position": (_I, "place in the listing"),
            "uri": (_S, "where the bytes are"),
            "display_name": (_S, "name for people, safe to print"),
            "label": (_S, "class of the data set"),
            "caption": (_S, "what it shows, in the data set's words"),
            "has_mask": (_B, "the data set names a mask of its object"),
            "width": (_I, "pixels"),
            "height": (_I, "pixels"),
            "status": (_S, "ok or quarantined"),
            "reason": (_S, "why it is quarantined, or a note on an accepted image"),
        },
    ),
    "predictions": _table(
        "what one model says of one image (a data-set item or a generated image)",
        {
            "item_id": (_S, "items.item_id or images.image_id"),
            "role": (_S, "data, pool or generated"),
            "model_id": (_S, "id in the job file"),
            "label": (_S, "class of the data set"),
            "predicted": (_S, "most probable class"),
            "correct": (_B, "predicted is the label, up to case, _ and -; NULL where either is missing"),
            "confidence": (_F, "its probability"),
            "top_classes": (pa.list_(_S), "up to five most probable classes"),
            "top_confidences": (pa.list_(_F), "their probabilities"),
            "status": (_S, "ok or failed"),
            "reason": (_S, "why it failed"),
        },
    ),
    "explanations": _table(
        "one generated explanation, with its own start as baseline",
        {
            "explanation_id": (_S, "unit-independent hash of method, options, class and seed"),
            "stage": (_S, "stage in the job file"),
            "unit_id": (_S, "unit of work that made it"),
            "method": (_S, "plugin that made it"),
            "item_id": (_S, "input image, where there is one"),
            "prompt": (_S, "prompt of the start"),
            "seed": (_I, "number of the start"),
            "source_class": (_S, "class that the start shows"),
            "target_class": (_S, "class whose probability the search changes"),
            "model_id": (_S, "model that is maximised or explained"),
            "other_model_id": (_S, "model that is minimised, where there is one"),
            "score_before": (_F, "p(target) of model_id at the start"),
            "score_after": (_F, "p(target) of model_id at the result"),
            "other_before": (_F, "p(target) of other_model_id at the start"),
            "other_after": (_F, "p(target) of other_model_id at the result"),
            "loss_before": (_F, "un-augmented loss at the start"),
            "loss_after": (_F, "un-augmented loss at the result"),
            "best_step": (_I, "iterate that was kept"),
            "flipped": (
                _B,
                "model_id predicts the target and other_model_id, where there is one, does not, at the result",
            ),
            "flipped_before": (_B, "the same at the start"),
            "status": (_S, "ok or failed"),
            "reason": (_S, "why it failed, or why it could not move"),
            "neuron": (_I, "unit of the layer that is optimised, where the search is of a neuron"),
            "layer": (_S, "where the neuron is, as in neurons.layer"),
            "arm": (_S, "maximise or minimise (from the class), or others (maximise from another class)"),
            "activation_before": (_F, "the neuron's activation at the start"),
            "activation_after": (_F, "its activation at the result"),
            "seen_before": (_B, "an independent check sees the target class at the start"),
            "seen_after": (_B, "it sees it at the result"),
            "source_before": (_F, "p(source_class) of model_id at the start, where an image is explained"),
            "source_after": (_F, "p(source_class) of model_id at the result"),
            "start_image_id": (_S, "images.image_id of the start; the original, where an image is explained"),
            "image_id": (_S, "images.image_id of the result"),
            "reconstruction_image_id": (_S, "images.image_id of what the inversion alone generates"),
            "edit_image_id": (_S, "images.image_id of the prompt edit before any optimisation"),
            "mask_image_id": (_S, "images.image_id of the mask, white where changes are free"),
            "attention_image_id": (
                _S,
                "images.image_id of the cross-attention to the prompt's name of the source, white at the strongest, "
                "where the mask is made of it",
            ),
            "difference_image_id": (_S, "images.image_id of result minus original around mid grey"),
            "seconds": (_F, "its share of the batch's seconds, of the search alone"),
        },
    ),
    "images": _table(
        "an encoded image, without loss, and a thumbnail",
        {
            "image_id": (_S, "sha256 of the PNG bytes; for an original, its item_id"),
            "kind": (
                _S,
                "original, start, generated, sample, reconstruction, edit, mask, attention, difference, frame",
            ),
            "width": (_I, "pixels"),
            "height": (_I, "pixels"),
            "png": (pa.binary(), "PNG bytes"),
            "thumbnail": (pa.binary(), "WebP bytes"),
        },
    ),
    "arrays": _table(
        "numbers of an image that are too many for measurements",
        {
            "subject_id": (_S, "item_id or image_id"),
            "role": (_S, "data, pool or generated"),
            "name": (
                _S,
                "embedding; activations: inputs of the model's last linear layer; activations of <module>: its outputs",
            ),
            "model_id": (_S, "model that made it"),
            "values": (pa.list_(pa.float32()), "flattened values"),
            "shape": (pa.list_(_I), "their shape"),
            "reason": (_S, "why there are none"),
        },
    ),
    "traces": _table(
        "a step of an optimisation",
        {
            "explanation_id": (_S, "explanations.explanation_id"),
            "step": (_I, "iterate, 0 is the start"),
            "loss": (_F, "un-augmented loss"),
            "augmented_loss": (_F, "loss that was differentiated"),
            "score": (_F, "p(target) of model_id"),
            "other_score": (_F, "p(target) of other_model_id"),
            "source_score": (_F, "p(source_class) of model_id"),
            "image_id": (_S, "images.image_id of this step, where frames are kept"),
        },
    ),
    "artefacts": _table(
        "a reusable intermediate beside the runs",
        {
            "artefact_id": (_S, "hash of everything that decides it"),
            "kind": (_S, "inversion"),
            "uri": (_S, "its file, relative to the folder of the runs"),
            "item_id": (_S, "image that it belongs to"),
            "prompt": (_S, "prompt that it belongs to"),
        },
    ),
    "measurements": _table(
        "one number about anything",
        {
            "subject_id": (_S, "what it is about"),
            "stage": (_S, "stage that measured it"),
            "name": (_S, "what was measured"),
            "key": (_S, "which one, where a subject has several: of a failure mode, the model it is held against"),
            "value": (_F, "the number"),
            "unit": (_S, "its unit"),
            "reason": (_S, "why value is NULL"),
        },
    ),
    "failure_modes": _table(
        "a discovered failure mode",
        {
            "failure_mode_id": (_S, "hash of source, models, class and name"),
            "kind": (_S, "disagreement, confusion (with labels), neuron or flip (of a decision)"),
            "source": (
                _S,
                "search (optimised images), labels (labelled images), or screen (the pool alone, without search)",
            ),
            "listed": (
                _B,
                "whether a report lists it: not what another listed one says too or has as a part, nor what screening "
                "alone proposes and does not confirm",
            ),
            "part_of": (
                _S,
                "failure_mode_id of the mode that it is a part of: beside that one it does not hold, or it is the "
                "other end of it, what a model misses where it says something else",
            ),
            "found_by": (pa.list_(_S), "stages whose searches or images show it"),
            "neurons": (pa.list_(_S), "neuron ids whose searches show it"),
            "model_id": (_S, "model that says the class"),
            "other_model_id": (_S, "what is held against it: a model, embedder, or NULL for the labels"),
            "at_fault": (
                _S,
                "which model is wrong: other_model_id if most of the evidence is of the class, as its label or the "
                "embedder has it, else model_id; NULL without figures of real images",
            ),
            "class_name": (_S, "class that model_id says"),
            "name": (_S, "what the images share, in words"),
            "concept": (_S, "vocabulary entry behind the name"),
            "verdict": (_S, "confirmed or hypothesis"),
            "reason": (_S, "why it is no more than a hypothesis"),
            "to_confirm": (_S, "what it would take to confirm it"),
            "support": (_I, "seeds (search) or images (screen) in the group"),
            "seeds": (_I, "searches for the class that ended, in disagreement or not"),
            "effect": (_F, "shift towards the concept against the controls, in standard deviations of the controls"),
            "effect_low": (_F, "lower end of its 95 % interval, as if the group had not been chosen for its shift"),
            "effect_high": (_F, "upper end of its 95 % interval"),
            "evidence_rate": (_F, "share of wrong ones of the real images that show the concept"),
            "control_rate": (_F, "the same share of other real images of the classes that it befalls"),
            "excess_low": (_F, "lower end of the 95 % interval of their difference"),
            "excess_high": (_F, "upper end of it"),
            "evidence_images": (_I, "real images in the evidence arm"),
            "control_images": (_I, "real images in the control arm"),
            "p_value": (_F, "one-sided, before correction"),
            "p_corrected": (_F, "after Holm's correction over all modes of the stage"),
            "prevalence": (_F, "share of the real images that is of the classes it befalls and shows the concept"),
            "impact": (_F, "prevalence times excess rate: share of the real images that is wrong because of it"),
            "impact_low": (_F, "lower end of its 95 % interval"),
            "impact_high": (_F, "upper end of its 95 % interval"),
            "exemplars": (
                pa.list_(_S),
                "explanation ids; first those that look most like its evidence or, without any, moved furthest along "
                "its name",
            ),
            "evidence": (
                pa.list_(_S),
                "item ids of real images that confirm it, nearest first; pictures of the first are kept",
            ),
            "showing": (
                pa.list_(_S),
                "item ids of real images of the classes that it befalls which show the concept, whether a model is "
                "wrong or right: of those asked the first 1000 by id",
            ),
        },
    ),
    "compared_images": _table(
        "for a confirmed failure mode, the images with its feature and the control images on which it is compared "
        "with another run",
        {
            "failure_mode_id": (_S, "failure_modes.failure_mode_id"),
            "item_ids": (
                pa.list_(_S),
                "real images of the affected classes that were tested, right or wrong: with the feature and without "
                "it, the first 1000 of each by id",
            ),
            "shows": (pa.list_(_B), "whether each has the feature"),
            "strata": (
                pa.list_(_S),
                "class of each, by its label or the embedder, within which error rates are compared; empty "
                "if the classes themselves are the feature",
            ),
        },
    ),
    "neurons": _table(
        "a unit of a model beside a class: what it does for the class, and what it shows",
        {
            "neuron_id": (_S, "hash of stage, model, layer, class and neuron"),
            "stage": (_S, "stage in the job file"),
            "model_id": (_S, "model that is explained"),
            "layer": (_S, "a module's name, whose output is read, or 'input of <name>'"),
            "class_name": (_S, "class"),
            "neuron": (_I, "unit of the layer, from 0"),
            "weight": (_F, "from the neuron to the class; NULL unless the layer is the input of the last linear one"),
            "mean_activation": (_F, "over the class's labelled images"),
            "importance": (_F, "weight times mean activation: what it adds to the class's logit there"),
            "trigger_auc": (
                _F,
                "over real images on which the check does not see the class: AUC of telling those that the model "
                "calls the class from the others by the activation",
            ),
            "rank": (_I, "place among the class's suspects, from 1; NULL without stored activations"),
            "suspicion": (
                _F,
                "share of the real images with the highest activations on which the check does not see the class",
            ),
            "top_items": (pa.list_(_S), "item ids of those images, highest activation first"),
            "top_activations": (pa.list_(_F), "their activations"),
            "top_seen": (pa.list_(_B), "whether the check sees the class on them"),
            "check_id": (_S, "what checks whether the object is there: a model id, or embedder"),
            "check_hits": (_F, "share of the starts drawn for the class on which the check sees it"),
            "searches": (_I, "searches from other classes that ended"),
            "trigger_before": (_F, "share of their starts that the model calls the class and the check does not"),
            "trigger_after": (_F, "the same share of their results"),
            "p_value": (
                _F,
                "one-sided, that the latter is not above the former; not corrected for the number of neurons",
            ),
            "seen_after": (_F, "share of their results on which the check sees the class"),
            "verdict": (_S, "core, spurious or harmful; NULL where neither a search ended nor a real image is ranked"),
            "reason": (_S, "what the verdict rests on, and what speaks against it"),
        },
    ),
    "reviews": _table(
        "a person's verdict",
        {
            "subject_id": (_S, "failure mode, explanation or neuron"),
            "verdict": (_S, "bug, expected, needs review, not a failure"),
            "note": (_S, "free text"),
            "reviewer": (_S, "who"),
            "reviewed_at": (_TIME, "when"),
        },
    ),
    "answers": _table(
        "a person's answer in a blinded comparison of two counterfactuals of one image",
        {
            "pair_id": (_S, "hash of the two explanations"),
            "question": (_S, "realistic, features, object (is it so of A, of B?), or better (which one?)"),
            "a_id": (_S, "explanations.explanation_id of what was shown as A"),
            "b_id": (_S, "explanations.explanation_id of what was shown as B"),
            "answer": (_S, "A, B, both, neither; of better: A, B, equal"),
            "rater": (_S, "who"),
            "answered_at": (_TIME, "when"),
        },
    ),
}

Rows = dict[str, list[dict[str, Any]]]


def to_table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows to Arrow under the table's schema. Missing columns become NULL; unknown ones and NaN are refused."""
    schema = TABLES[name]
    listed = list(rows)
    for row in listed:
        extra = row.keys() - set(schema.names)
        if extra:
            raise RowError(f"table {name!r} has no column {sorted(extra)[0]!r}")
        for column, value in row.items():
            if isinstance(value, float) and value != value:
                raise RowError(f"table {name!r}, column {column!r}: NaN is stored as NULL with a reason")
        for column in ("values", "top_confidences", "top_activations"):
            if not all(math.isfinite(number) for number in row.get(column) or ()):
                raise RowError(f"table {name!r}, column {column!r}: NaN or infinity among the numbers")
    try:
        return pa.Table.from_pylist(listed, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError) as error:
        raise RowError(f"table {name!r} cannot hold a row: {error}") from error
