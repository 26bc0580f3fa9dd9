"""All warnings of a run: those that its stages wrote, and those that follow from its tables."""

from __future__ import annotations

from audit.results.sql import Run
from audit.results.warnings import RunWarning
from audit.review.label_order import warnings_of_order


def warnings_of(run: Run) -> list[RunWarning]:
    """Every warning once, those that block a gate first."""
    rows = run.rows("select distinct code, message, model_id, role, items, blocks_gate from warnings")
    found = [RunWarning(**row) for row in rows] + warnings_of_order(run) + _of_pool(run)
    return sorted(found, key=lambda w: (not w.blocks_gate, w.code, w.model_id or "", w.role or "", w.message))


def _of_pool(run: Run) -> list[RunWarning]:
    """Warn of images of the pool with a label that is no class of a model."""
    found = []
    unknown = run.rows(
        "select model_id, count(*) as images, count(distinct label) as labels, min(label) as label from predictions "
        "where role = 'pool' and status = 'ok' and label is not null and correct is null group by model_id"
    )
    for row in unknown:
        words = (
            f"{row['images']} images of the pool have one of {row['labels']} labels, such as {row['label']!r}, for "
            "which the model has no class; they count as unlabelled"
        )
        found.append(
            RunWarning("pool_labels_unknown", words, row["model_id"], "pool", row["images"], blocks_gate=False)
        )
    return found
