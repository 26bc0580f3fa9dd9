"""Names that try to be more than text, and a run in which everything that has a name has one of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from audit.pictures import image_row
from audit.results.sql import Run
from audit.results.store import Store
from audit.reviews import VERDICTS
from tests.audited import audited, mode, said

FOREIGN = "evil.example"
LONG = "endless" * 1429  # 10,003 characters without a place to break
NAMES = (
    "<script>window.hacked=1</script>",
    f"<img src=x onerror=window.hacked=1><img src='http://{FOREIGN}/i.png'>",
    "'\"><svg onload=window.hacked=1>",
    f"![picture](http://{FOREIGN}/m.png) [link](http://{FOREIGN}/) <http://{FOREIGN}/auto> www.{FOREIGN}",
    "[click](javascript:window.hacked=1)",
    ":material/home: :smile: :red[red] :streamlit:",
    "$\\frac{latex}{math}$ $$x^2$$",
    "\x1b[31mred\x1b[0m \x07",
    "one line\nand another\r\n# heading\n- list",
    "\u202eright to left\u202c \u200bzero",
    "../../../../etc/passwd",
    "%00 %2e%2e%2f %3Cscript%3E",
    "<!-- comment --> --> ]]>",
    "</style></title></textarea></script><script>window.hacked=1</script>",
    "datum['a.b'] + warn('x') \\u003cb\\u003e {{7*7}} ${7*7} {% raw %}",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "a.b[0]\\\\c",
    "**bold** _it_ `code` ~~gone~~ # h | a | -> <- >= --",
    LONG,
)
COLUMNS = ("start_image_id", "image_id", "edit_image_id", "difference_image_id", "mask_image_id", "attention_image_id")


def hostile(root: Path) -> Run:
    """Of every name a class, a model, a failure mode, searches, counterfactuals in two stages, a neuron, items that
    were refused, reviews and errors."""
    modes, predictions, explanations, neurons, items, reviews = [], [], [], [], [], []
    rng = np.random.default_rng(0)
    pictures = [image_row(rng.integers(0, 255, (32, 32, 3), np.uint8), "original") for _ in range(6)]
    ids = [row["image_id"] for row in pictures]
    traces, measurements = [], []
    for i, name in enumerate(NAMES):
        numbers = {"support": 3, "seeds": 8, "evidence_rate": 0.4, "control_rate": 0.1, "evidence_images": 20}
        numbers |= {"control_images": 21, "exemplars": [f"{i:032x}"], "effect": 2.0, "p_corrected": 0.01}
        found = mode(name, name, "hypothesis", model_id=name, other_model_id=name, reason=name, **numbers)
        modes.append({**found, "concept": f"{{}} {name}", "failure_mode_id": f"mode-{i}", "evidence": ids[:2]})
        predictions += said("data", name, {ids[k]: NAMES[k] for k in range(5)}, name)
        predictions += said("data", "plain", {ids[k]: "crab" for k in range(5)}, name)
        predictions += said("generated", name, {ids[3]: name, ids[4]: name})
        common = {"source_class": name, "target_class": name, "model_id": name, "status": "ok", "flipped": i % 2 == 0}
        common |= {"prompt": name, "item_id": ids[0], "score_before": 0.1, "score_after": 0.9, "source_before": 0.9}
        common |= {"source_after": 0.1, "best_step": 1, "reason": name} | dict(zip(COLUMNS, ids, strict=True))
        search = {"explanation_id": f"{i:032x}", "stage": "2-disagreement", "method": "disagreement"}
        explanations.append({**common, **search, "other_model_id": name, "other_before": 0.1, "other_after": 0.2})
        traces += [{"explanation_id": search["explanation_id"], "step": k, "score": 0.4 * k} for k in range(3)]
        for stage in (3, 4):
            made = {"explanation_id": f"{stage}{i:031x}", "stage": f"{stage}-counterfactual", "method": "uvce"}
            explanations.append({**common, **made})
            measurements += [
                {"subject_id": made["explanation_id"], "name": "background_rmse", "value": 0.1, "key": name}
            ]
            traces += [
                {"explanation_id": made["explanation_id"], "step": k, "loss": -k, "score": 0.4 * k, "source_score": 0.5}
                | {"image_id": ids[k]}
                for k in range(3)
            ]
        failed = {"explanation_id": f"f{i:031x}", "stage": "3-counterfactual", "method": "uvce", "model_id": name}
        explanations.append({**failed, "source_class": name, "target_class": name, "status": "failed", "reason": name})
        neuron = {"neuron_id": f"neuron-{i}", "stage": "5-neuron", "model_id": name, "layer": name, "class_name": name}
        neuron |= {"neuron": i, "verdict": "harmful", "reason": name, "weight": 0.5, "top_items": ids[:2]}
        neurons.append(
            {**neuron, "top_activations": [1.0, 0.5], "top_seen": [True, False], "suspicion": 0.5, "check_id": name}
        )
        maximised = {**common, "explanation_id": f"5{i:031x}", "stage": "5-neuron", "method": "neuron", "arm": "others"}
        maximised |= {"layer": name, "neuron": i, "seed": 0, "activation_before": 0.1, "activation_after": 1.0}
        explanations.append({**maximised, "seen_before": False, "seen_after": False, "item_id": None})
        about = {"item_id": f"uri-{i}", "role": "data", "label": name, "status": "quarantined", "display_name": name}
        items.append({**about, "reason": name, "uri": name})
        said_so = {"verdict": VERDICTS[i % len(VERDICTS)], "note": name, "reviewer": name}
        said_so |= {"reviewed_at": datetime(2026, 3, 4, tzinfo=UTC)}
        reviews += [{**said_so, "subject_id": subject} for subject in (f"mode-{i}", f"{3}{i:031x}")]
        measurements += [
            {"subject_id": f"mode-{i}", "name": "holds_against", "key": name, "value": 0.5},
            {"subject_id": name, "name": "agreement", "value": 0.5},
            {"subject_id": name, "name": "auditable", "value": 0.0, "reason": name},
        ]
    run = audited(root, modes, [{**row, "confidence": 0.5} for row in predictions])
    config = {
        "data": {"plugin": "folder", "path": NAMES[0]},
        "models": {name: {"plugin": "hf", "ref": name} for name in NAMES},
        "stages": [{"plugin": "screen", "option": name} for name in NAMES],
    }
    about = {"name": " ".join(NAMES[:-1]), "config": json.dumps(config), "created_at": datetime(2026, 3, 4, tzinfo=UTC)}
    rows = {"explanations": explanations, "neurons": neurons, "items": items, "reviews": reviews, "traces": traces}
    rows |= {"measurements": measurements, "images": pictures, "runs": [about]}
    Store(root).commit("names", "6-names", rows)
    run.refresh()
    return run
