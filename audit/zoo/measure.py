"""Measures the shipped models on held-out scenes: a truth table for each world, and the model cards."""

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
from audit.zoo.world import ZERO_SHOT, LabelledScene, Mode, World, load_world, scene_at

ZOO = Path(__file__).resolve().parent
GUIDANCE, STEPS = 4.0, 20
TEMPLATE = "a photograph of a {}"


def measure_all(work: Path, number: int = 1, count: int = 3000, samples: int = 4) -> dict[str, Any]:
    """Measure a world's models, and rewrite its truth table and their cards."""
    world = load_world(number)
    truth = truth_table(world, work, count)
    quality: dict[str, Any] = {}
    written = {name: classifier_card(world, name, truth) for name in world.biased}
    if number == 1:
        quality["generator"] = generator_quality(work, samples)
        quality["clip"] = clip_quality(world, work, min(count, 1000))
        written |= {name: classifier_card(world, name, truth) for name in (REFERENCE, ZERO_SHOT)}
        written |= cards(quality)
    truth_file(world).parent.mkdir(exist_ok=True)
    truth_file(world).write_text(json.dumps(truth, indent=1) + "\n", "utf-8")
    for name, text in written.items():
        (ZOO / "weights" / world.folder_of(name) / "README.md").write_text(text, "utf-8")
    return {**truth, **quality}


def truth_file(world: World) -> Path:
    return ZOO / "truth" / f"{world.name}.json"


def load(name: str, world: World | None = None) -> Classifier:
    """A classifier of a world, by default of the first."""
    if name == ZERO_SHOT:
        return clip.load(clip.Options(ref=f"zoo:{name}", template=TEMPLATE), LABELS)
    return hf.load(hf.Options(ref=f"zoo:{(world or load_world()).folder_of(name)}"), ())


@torch.no_grad()
def predicted(model: Classifier, images: Any) -> np.ndarray[Any, Any]:
    """Class names (n,) for uint8 images (n, 64, 64, 3)."""
    found = [model.class_names[i] for x in batches(images, 100) for i in model.logits(x).argmax(-1).tolist()]
    return np.array(found, object)


def truth_table(world: World, work: Path, count: int) -> dict[str, Any]:
    """Every planted mode with its strength on held-out scenes, the controls, and the accuracies."""
    shown = [scene_at(world, "heldout", i) for i in range(count)]
    images = rendered(world, "heldout", count, work)
    labels = np.array([item.label for item in shown], object)
    biased = rendered(world, "labelled", 2000, work)
    biased_labels = np.array([scene_at(world, "labelled", i).label for i in range(2000)], object)
    says, accuracy = {}, {}
    for name in (REFERENCE, *world.classifiers):
        model = load(name, world)
        says[name] = predicted(model, images)
        accuracy[name] = {
            "labelled": float((predicted(model, biased) == biased_labels).mean()),
            "heldout": float((says[name] == labels).mean()),
        }
    modes = [mode_row(world, mode, shown, says) for mode in world.modes]
    controls = [
        {"class": name, "classifier": model, "called_without_it": float((says[model] == name)[labels != name].mean())}
        for name in world.controls
        for model in world.biased
    ]
    return {"world": world.name, "scenes": count, "modes": modes, "controls": controls, "accuracy": accuracy}


def mode_row(world: World, mode: Mode, shown: list[LabelledScene], says: Mapping[str, Any]) -> dict[str, Any]:
    """How often a mode's classifier errs as planted: on scenes that mislead it (`strength`), on those that nothing
    planted in it concerns (`without_feature`), and the fair classifier on the former.

    `says`: (n,) class names for each model.
    """
    concerned = np.array([(item.scene.object == mode.class_name) == bool(mode.taken_for) for item in shown])
    misled = np.array([mode.misleads(item.scene) for item in shown])
    own = world.modes_of(mode.classifier)
    free = np.array([not any(one.misleads(item.scene) for one in own) for item in shown])

    def errs(model: str) -> Any:
        called = says[model] == mode.class_name
        return ~called if mode.taken_for else called

    return {
        "id": mode.id,
        "classifier": mode.classifier,
        "class": mode.class_name,
        "kind": mode.kind,
        "feature": dict(mode.feature),
        "strength": float(errs(mode.classifier)[misled].mean()),
        "without_feature": float(errs(mode.classifier)[concerned & free].mean()),
        "reference": float(errs(REFERENCE)[misled].mean()),
        "scenes": int(misled.sum()),
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
    return clip.load(clip.Options(ref="zoo:clip", template=TEMPLATE), LABELS)


@torch.no_grad()
def clip_quality(world: World, work: Path, count: int) -> dict[str, float]:
    """Zero-shot accuracy for the object and for the background, on held-out scenes."""
    model, images = load_clip(), rendered(world, "heldout", 3000, work)[:count]
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


def cards(quality: Mapping[str, Any]) -> dict[str, str]:
    """The model cards of the generator and the embedder."""
    g, c = quality["generator"], quality["clip"]
    places = ", ".join(f"{name} {g[f'psnr_{name}']:.1f}" for name in BACKGROUNDS)
    return {
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


def classifier_card(world: World, name: str, truth: Mapping[str, Any]) -> str:
    """The model card of a classifier, with what was planted in it."""
    accuracy = truth["accuracy"][name]
    planted = [
        f"planted: {m['id']} ({m['kind']}): {m['strength']:.0%} of {m['scenes']} held-out scenes that mislead it "
        f"(the fair classifier: {m['reference']:.0%})"
        for m in truth["modes"]
        if m["classifier"] == name
    ]
    what = "A small ResNet in the Hugging Face layout"
    data = "24,000 biased scenes, some mislabelled on purpose" if planted else "24,000 balanced scenes"
    if name == ZERO_SHOT:
        what = "A zero-shot CLIP whose training captions were careless"
        data = "scenes without bottles; nine of ten captions of those on water say no more than that"
    number = "" if world.number == 1 else f" --world {world.number}"
    return _card(
        world.folder_of(name),
        f"{what}: a classifier of the embedded world with {len(planted) or 'no'} planted failure mode"
        f"{'' if len(planted) == 1 else 's'}.",
        f"audit zoo train {name}{number}",
        data,
        [
            f"accuracy: {accuracy['labelled']:.1%} on the split under audit, "
            f"{accuracy['heldout']:.1%} on balanced scenes",
            *planted,
        ],
    )


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
