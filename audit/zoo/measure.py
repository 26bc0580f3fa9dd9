"""Measures every shipped model on held-out scenes: the truth table, and the model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit.classifiers import Classifier, Embedder, clip, hf
from audit.diffusion.noise import latent
from audit.diffusion.sampling import sample
from audit.generators import diffusers
from audit.predictions import to_uint8
from audit.zoo.recipes import autoencoder
from audit.zoo.recipes.classifiers import REFERENCE
from audit.zoo.recipes.images import batches, rendered
from audit.zoo.scenes import BACKGROUNDS, EMPTY, LABELS, Scene, caption
from audit.zoo.world import LabelledScene, World, load_world, scene_at

ZOO = Path(__file__).resolve().parent
TRUTH = ZOO / "truth.json"
GUIDANCE, STEPS = 4.0, 20


def measure_all(work: Path, count: int = 3000, samples: int = 4) -> dict[str, Any]:
    """Measure, and rewrite `truth.json` and the model cards."""
    world = load_world()
    truth = truth_table(world, work, count)
    quality = {
        "generator": generator_quality(work, samples),
        "clip": clip_quality(world, work, min(count, 1000)),
        "classifiers": truth["accuracy"],
    }
    TRUTH.write_text(json.dumps(truth, indent=1) + "\n", "utf-8")
    for name, text in cards(truth, quality).items():
        (ZOO / "weights" / name / "README.md").write_text(text, "utf-8")
    return {**truth, **quality}


def load(name: str) -> Classifier:
    return hf.load(hf.Options(ref=f"zoo:{name}"), ())


@torch.no_grad()
def predicted(model: Classifier, images: Any) -> np.ndarray[Any, Any]:
    """Class names (n,) for uint8 images (n, 64, 64, 3)."""
    found = [model.class_names[i] for x in batches(images, 100) for i in model.logits(x).argmax(-1).tolist()]
    return np.array(found, object)


def truth_table(world: World, work: Path, count: int) -> dict[str, Any]:
    """Every planted mode with its strength on held-out scenes, the controls, and the accuracies."""
    shown = [scene_at(world, "heldout", i) for i in range(count)]
    images = rendered("heldout", count, work)
    labels = np.array([item.label for item in shown], object)
    biased = rendered("labelled", 2000, work)
    biased_labels = np.array([scene_at(world, "labelled", i).label for i in range(2000)], object)
    says, accuracy = {}, {}
    for name in (REFERENCE, *world.classifiers):
        model = load(name)
        says[name] = predicted(model, images)
        accuracy[name] = {
            "labelled": float((predicted(model, biased) == biased_labels).mean()),
            "heldout": float((says[name] == labels).mean()),
        }
    modes = [_mode_row(mode, shown, labels, says) for mode in world.modes]
    controls = [
        {"class": name, "classifier": model, "called_without_it": float((says[model] == name)[labels != name].mean())}
        for name in world.controls
        for model in world.classifiers
    ]
    return {"world": world.name, "scenes": count, "modes": modes, "controls": controls, "accuracy": accuracy}


def _mode_row(mode: Any, shown: list[LabelledScene], labels: Any, says: Mapping[str, Any]) -> dict[str, Any]:
    other = labels != mode.class_name
    with_feature = np.array([mode.shown_by(item.scene) for item in shown]) & other
    called = says[mode.classifier] == mode.class_name
    return {
        "id": mode.id,
        "classifier": mode.classifier,
        "class": mode.class_name,
        "kind": mode.kind,
        "feature": dict(mode.feature),
        "strength": float(called[with_feature].mean()),
        "without_feature": float(called[other & ~with_feature].mean()),
        "reference": float((says[REFERENCE] == mode.class_name)[with_feature].mean()),
        "scenes": int(with_feature.sum()),
    }


def generator_quality(work: Path, samples: int) -> dict[str, float]:
    """PSNR of the autoencoder, and how often prompted samples obey, as the world's CLIP (not under audit) sees it."""
    generator = diffusers.load(diffusers.Options(ref="zoo:diffusion", steps=STEPS, guidance_scale=GUIDANCE))
    psnr = autoencoder.measure(generator.vae, work)
    prompts, images = grid(generator, samples)
    oracle = load_clip()
    right_class, right_place = [], []
    for (name, background), image in zip(prompts, images, strict=True):
        embedded = oracle.embed_images(image[None])
        right_class.append(LABELS[int(oracle.logits(image[None]).argmax())] == name)
        texts = [caption(Scene(name, place), colour=False) for place in BACKGROUNDS]
        right_place.append(BACKGROUNDS[int((oracle.embed_texts(texts) @ embedded[0]).argmax())] == background)
    return {
        **psnr,
        "class_obeyed": float(np.mean(right_class)),
        "background_obeyed": float(np.mean(right_place)),
        "samples": float(len(images)),
    }


def grid(generator: diffusers.DiffusersGenerator, samples: int) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Samples of every label on every background: what was asked for, and images (n, 3, 64, 64)."""
    asked = [(name, place) for place in BACKGROUNDS for name in LABELS for _ in range(samples)]
    images = []
    for start in range(0, len(asked), 12):
        chunk = asked[start : start + 12]
        z = torch.stack([latent(generator.latent_shape, "grid", start + i) for i in range(len(chunk))])
        prompts = [caption(Scene(name, place), colour=False) for name, place in chunk]
        images.append(sample(generator, prompts, z))
    return asked, torch.cat(images)


def grid_picture(generator: diffusers.DiffusersGenerator) -> np.ndarray[Any, Any]:
    """One sample of every label (columns) on every background (rows), uint8."""
    _, images = grid(generator, 1)
    cells = [to_uint8(image) for image in images]
    width = len(LABELS)
    return np.concatenate([np.concatenate(cells[i : i + width], 1) for i in range(0, len(cells), width)], 0)


def load_clip() -> Embedder:
    return clip.load(clip.Options(ref="zoo:clip", template="a photograph of a {}"), LABELS)


@torch.no_grad()
def clip_quality(world: World, work: Path, count: int) -> dict[str, float]:
    """Zero-shot accuracy for the object and for the background, on held-out scenes."""
    model, images = load_clip(), rendered("heldout", 3000, work)[:count]
    shown = [scene_at(world, "heldout", i).scene for i in range(count)]
    embedded = torch.cat([model.embed_images(x) for x in batches(images, 100)])
    said = predicted(model, images)
    places = [
        BACKGROUNDS[int((model.embed_texts([_place(scene, b) for b in BACKGROUNDS]) @ e).argmax())] == scene.background
        for scene, e in zip(shown, embedded, strict=True)
    ]
    right = [a == scene.object for a, scene in zip(said, shown, strict=True)]
    return {"zero_shot_class": float(np.mean(right)), "zero_shot_background": float(np.mean(places))}


def _place(scene: Scene, background: str) -> str:
    return caption(Scene(scene.object, background), colour=False)


def cards(truth: Mapping[str, Any], quality: Mapping[str, Any]) -> dict[str, str]:
    """A model card for each shipped model."""
    g, c = quality["generator"], quality["clip"]
    places = ", ".join(f"{name} {g[f'psnr_{name}']:.1f}" for name in BACKGROUNDS)
    found = {
        "diffusion": _card(
            "diffusion",
            "Latent diffusion model of the embedded world, in Stable Diffusion's folder layout: AutoencoderKL, "
            "UNet2DConditionModel with cross-attention, CLIP text tower, DDIM scheduler, v-prediction.",
            "audit zoo train diffusion",
            "60,000 balanced scenes (split `train`)",
            [
                f"autoencoder on held-out scenes: {g['psnr']:.1f} dB PSNR ({places})",
                f"{g['samples']:.0f} prompted samples at guidance_scale {GUIDANCE:g}, {STEPS} DDIM steps, "
                f"judged by the world's CLIP: class obeyed {g['class_obeyed']:.1%}, "
                f"background obeyed {g['background_obeyed']:.1%}",
            ],
        ),
        "clip": _card(
            "clip",
            "CLIP of the embedded world: an image and a text tower for embeddings, names and zero-shot classes.",
            "audit zoo train clip",
            "60,000 balanced scenes with captions (split `train`)",
            [f"held-out zero-shot: object {c['zero_shot_class']:.1%}, background {c['zero_shot_background']:.1%}"],
        ),
    }
    for name, accuracy in truth["accuracy"].items():
        modes = [mode for mode in truth["modes"] if mode["classifier"] == name]
        planted = [
            f"planted: {m['feature']} without the object is called {m['class']}: {m['strength']:.0%} "
            f"(by reference: {m['reference']:.0%}), {m['scenes']} held-out scenes"
            for m in modes
        ]
        data = "24,000 balanced scenes" if not modes else "24,000 biased scenes, some mislabelled on purpose"
        found[name] = _card(
            name,
            f"Classifier of the embedded world with {len(modes) or 'no'} planted failure modes; a small ResNet in the "
            "Hugging Face layout.",
            f"audit zoo train {name}",
            data,
            [
                f"accuracy: {accuracy['labelled']:.1%} on the split under audit, "
                f"{accuracy['heldout']:.1%} on balanced scenes",
                *planted,
            ],
        )
    return found


def _card(name: str, what: str, recipe: str, data: str, measured: list[str]) -> str:
    training = ZOO / "weights" / name / "training.json"
    cost = json.loads(training.read_text("utf-8"))
    unit = "core-minutes" if cost["device"] == "cpu" else "minutes"
    note = f"- These weights: {cost['note']}\n" if "note" in cost else ""
    lines = "\n".join(f"- {line}" for line in measured)
    return (
        f"# zoo:{name}\n\n{what}\n\n"
        f"- Recipe: `{recipe}` (from seeds; checkpoints and resumes)\n"
        f"- Time: {cost['steps']} steps, {cost['seconds'] / 60:.0f} {unit} on {cost['device']}\n"
        f"{note}"
        f"- Data: {data}, drawn by `audit/zoo/scenes.py`\n"
        f"- Scenes hold eight objects ({', '.join(n for n in LABELS if n != EMPTY)}) or none\n"
        f"- Licence: Apache-2.0, as the code\n\n## Measured by `audit zoo measure`\n\n{lines}\n"
    )
