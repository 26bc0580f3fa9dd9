"""Warnings about the models of a job: those of their loaders, and those that follow from matching the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch

from audit.class_names import beginning, folded
from audit.classifiers import Classifier
from audit.generators import warnings_of
from audit.models import Models
from audit.models.small_images import small_images
from audit.results.warnings import RunWarning


def warnings_of_models(models: Models, sides: Sequence[int]) -> list[RunWarning]:
    """Warnings of every model of a job, and of its generator before it is loaded. Loads the models.

    sides: the shorter sides of images of the data set, in pixels.
    """
    found: list[RunWarning] = []
    for model_id, plugin in models.job.models.items():
        model = models.model(model_id)
        found += [replace(warning, model_id=model_id) for warning in model.warnings]
        if isinstance(model, Classifier):
            small = small_images(model_id, model.preprocess.size, sides, python=plugin.name == "python")
            found += [small] if small else []
        found += _of_labels(models, model_id)
    return [*found, *_of_names(models), *warnings_of(models.job, torch.cuda.device_count())]


def _of_labels(models: Models, model_id: str) -> list[RunWarning]:
    matching = models.matching(model_id)
    found = []
    if matching.excused:
        words = f"the model has no class for {beginning(matching.excused)}: images with that label count as unlabelled"
        found.append(RunWarning("labels_without_output", words, model_id=model_id, blocks_gate=False))
    if matching.unpredicted:
        words = f"no row of the file predicts {beginning(matching.unpredicted)}; they count as classes of the model"
        found.append(RunWarning("classes_never_predicted", words, model_id=model_id, blocks_gate=False))
    by_number = [label for label, rule in matching.rules.items() if rule == "WordNet id" and matching.own[:1] == ("0",)]
    if by_number:
        words = "the model names no classes; its outputs are assumed to be ImageNet's 1,000 classes in WordNet id order"
        found.append(RunWarning("imagenet_order_assumed", words, model_id=model_id, blocks_gate=False))
    return found


def _of_names(models: Models) -> list[RunWarning]:
    """Classes that two models spell differently: the models count as disagreeing on them even if both are right."""
    found = []
    loaded = [(model_id, models.model(model_id)) for model_id in models.job.models]
    for (first, a), (second, b) in combinations(loaded, 2):
        own, theirs = set(a.class_names), set(b.class_names)
        by_fold = {folded(name): name for name in a.class_names if name not in theirs}
        apart = {by_fold[folded(name)]: name for name in b.class_names if name not in own and folded(name) in by_fold}
        if apart:
            one, other = next(iter(apart.items()))
            words = (
                f"{first} and {second} spell classes differently ({len(apart)}, such as {one!r} and {other!r}), so "
                "they count as disagreeing on these classes; give both models the same class_names"
            )
            found.append(RunWarning("names_differ", words))
    return found
