"""What a job cannot know of its models: what their loaders say, and what is open after labels are matched."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations

from audit.class_names import beginning, folded
from audit.models import Models
from audit.results.warnings import RunWarning


def warnings_of_models(models: Models) -> list[RunWarning]:
    """Warnings of every model of a job. Loads them all."""
    found: list[RunWarning] = []
    for model_id, classifier in models.classifiers():
        found += [replace(warning, model_id=model_id) for warning in classifier.warnings]
        found += _of_labels(models, model_id)
    return found + _of_names(models)


def _of_labels(models: Models, model_id: str) -> list[RunWarning]:
    matching = models.matching(model_id)
    found = []
    if not models.classes.labels:
        words = "no image has a label, so accuracy is not known, and no failure can be confirmed against labels"
        found.append(RunWarning("no_labels", words, model_id=model_id))
    if matching.excused:
        words = f"the model has no class for {beginning(matching.excused)}: images with that label count as unlabelled"
        found.append(RunWarning("labels_without_output", words, model_id=model_id, blocks_gate=False))
    by_number = [label for label, rule in matching.rules.items() if rule == "WordNet id" and matching.own[0] == "0"]
    if by_number:
        words = "the model names no class; its outputs are taken for ImageNet's 1,000 classes in the order of their ids"
        found.append(RunWarning("imagenet_order_assumed", words, model_id=model_id, blocks_gate=False))
    return found


def _of_names(models: Models) -> list[RunWarning]:
    """Two models that write one class in two ways would disagree wherever both are of one mind."""
    found = []
    for (first, a), (second, b) in combinations(list(models.classifiers()), 2):
        by_fold: dict[str, str] = {folded(name): name for name in a.class_names}
        apart: dict[str, str] = defaultdict(str)
        for name in b.class_names:
            other = by_fold.get(folded(name))
            if other not in (None, name):
                apart[str(other)] = name
        if apart:
            one, other = next(iter(apart.items()))
            words = (
                f"{first} and {second} write {len(apart)} classes in two ways, such as {one!r} and {other!r}, and "
                "count as disagreeing on them; give both models the same class_names"
            )
            found.append(RunWarning("names_differ", words))
    return found
