"""The embedded worlds as data: planted modes, splits, and which scenes each split shows.

World 1 is written down in `world.yaml`; every other one is drawn from its number. All share objects, backgrounds,
generator, embedder and fair classifier, and differ in what was planted where. A scene of a split is a pure function of
(world, split, index).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from audit.errors import ConfigError, unknown
from audit.zoo.scenes import BACKGROUNDS, COLOURS, EMPTY, LABELS, OBJECTS, PATTERNS, Scene

BADGE_RATE = 0.15
EMPTY_RATE = 0.09
_STRONG = (0.9, 0.33, 1.0, 1.0)  # share, mislabelled, exclusive, pool of a mode as in `world.yaml`
_UNBIASED = (0.0, 0.0, 0.0, 1.0)
ZERO_SHOT = "zero-shot"
_WORD = "water bottle"  # the class of two words of which the zero-shot model knows the first alone
OF_THE_SCENE = ("background", "badge")  # all other attributes belong to an object: an empty scene has none


@dataclass(frozen=True)
class Mode:
    """A planted failure mode: `classifier` takes `feature` for `class_name`.

    A feature is values of a scene's attributes; [low, high] stands for all numbers between. `phrase` says it in words.
    With `taken_for` it is the other way round: without its usual feature, `classifier` takes the class for that one.
    """

    id: str
    classifier: str
    class_name: str
    kind: str
    feature: Mapping[str, Any]
    phrase: str
    share: float
    mislabelled: float
    exclusive: float
    pool: float
    taken_for: str | None = None

    def misleads(self, scene: Scene) -> bool:
        """Whether the classifier should get a scene wrong because of this mode."""
        if self.taken_for:
            return scene.object == self.class_name and not self.shown_by(scene)
        return scene.object != self.class_name and self.shown_by(scene)

    def shown_by(self, scene: Scene) -> bool:
        """Whether a scene has the feature."""
        if self.of_an_object and scene.object == EMPTY:
            return False
        return all(_within(getattr(scene, name), value) for name, value in self.feature.items())

    def given_to(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """The scene with the feature."""
        values: dict[str, Any] = {
            n: float(rng.uniform(*v)) if isinstance(v, list) else v for n, v in self.feature.items()
        }
        return replace(scene, **values)

    @property
    def of_an_object(self) -> bool:
        return any(name not in OF_THE_SCENE for name in self.feature)


def _within(value: Any, wanted: Any) -> bool:
    return bool(wanted[0] <= value <= wanted[1] if isinstance(wanted, list) else value == wanted)


@dataclass(frozen=True)
class Split:
    name: str
    size: int
    seed: int


@dataclass(frozen=True)
class World:
    number: int
    modes: tuple[Mode, ...]
    controls: tuple[str, ...]
    splits: Mapping[str, Split]

    @property
    def name(self) -> str:
        return f"world-{self.number}"

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The classifiers with planted modes, in the order of their first."""
        return tuple(dict.fromkeys(mode.classifier for mode in self.modes))

    @property
    def biased(self) -> tuple[str, ...]:
        """The classifiers that learn from a biased split of this world; the others serve all worlds."""
        return tuple(name for name in self.classifiers if any(mode.share for mode in self.modes_of(name)))

    def folder_of(self, classifier: str) -> str:
        """Where a classifier's weights are: 'zoo:<this>' refers to it."""
        return f"{self.name}/{classifier}" if self.number > 1 and classifier in self.biased else classifier

    def without(self, mode_id: str) -> World:
        """The world in which one mode was not planted. Raises ConfigError where there is no such mode."""
        if mode_id not in (mode.id for mode in self.modes):
            raise ConfigError(unknown("planted mode", mode_id, [mode.id for mode in self.modes]))
        return replace(self, modes=tuple(mode for mode in self.modes if mode.id != mode_id))

    def modes_of(self, classifier: str) -> tuple[Mode, ...]:
        return tuple(mode for mode in self.modes if mode.classifier == classifier)


@dataclass(frozen=True)
class LabelledScene:
    """A scene and the label that its split gives it, which planted modes may make wrong."""

    scene: Scene
    label: str


def world_digest(world: World) -> str:
    """What decides every scene's pixels and labels, in 12 characters: for the names of cached renderings."""
    parts = (resources.files("audit.zoo").joinpath(n).read_bytes() for n in ("scenes.py", "world.py", "world.yaml"))
    planted = "\0".join((world.name, *(mode.id for mode in world.modes)))
    return hashlib.sha256(b"\0".join((*parts, planted.encode()))).hexdigest()[:12]


@cache
def load_world(number: int = 1) -> World:
    """World 1 as `world.yaml` has it; any other is drawn from its number. Raises ConfigError for one below 1."""
    if number < 1:
        raise ConfigError(f"worlds are numbered from 1, found {number}")
    raw = yaml.safe_load(resources.files("audit.zoo").joinpath("world.yaml").read_text("utf-8"))
    splits = {name: Split(name, **split) for name, split in raw["splits"].items()}
    if number > 1:
        return World(number, *_drawn(number), splits)
    modes = tuple(Mode(class_name=mode.pop("class"), **mode) for mode in raw["modes"])
    return World(1, modes, tuple(raw["controls"]), splits)


def _drawn(number: int) -> tuple[tuple[Mode, ...], tuple[str, ...]]:
    """Eight modes of six kinds, and two classes without any: the number decides which class has which.

    Outside, of one mode there is nothing to see, and of two others very little.
    """
    rng = np.random.default_rng(number)
    places = rng.permutation(BACKGROUNDS).tolist()
    colours = rng.permutation(list(COLOURS)).tolist()
    texture = str(rng.choice(PATTERNS[1:]))
    controls = rng.choice([name for name in OBJECTS if name != _WORD], 2, replace=False).tolist()
    owners = rng.permutation([name for name in OBJECTS if name not in controls]).tolist()
    planted = [
        Mode("", "shortcut-a", owners[0], "background", {"background": places[0]}, f"{{}} on {places[0]}", *_STRONG),
        Mode("", "shortcut-a", owners[1], "colour", {"colour": colours[0]}, f"{colours[0]} {{}}", *_STRONG),
        Mode("", "shortcut-b", owners[2], "background", {"background": places[1]}, f"{{}} on {places[1]}", *_STRONG),
        Mode("", "shortcut-b", owners[3], "badge", {"badge": True}, "{} with a badge", *_STRONG),
        Mode("", "shortcut-b", owners[4], "texture", {"pattern": texture}, f"{texture} {{}}", *_STRONG),
        Mode("", "shortcut-b", owners[0], "colour", {"colour": colours[1]}, f"{colours[1]} {{}}", *_STRONG),
    ]
    for index, pool in zip(rng.permutation(len(planted)).tolist(), (0.0, 0.03, 0.03), strict=False):
        planted[index] = replace(planted[index], pool=pool)
    usual, blind = {"background": places[2]}, f"{{}} not on {places[2]}"
    planted.append(Mode("", "shortcut-a", owners[5], "blind", usual, blind, 0.6, 0.0, 1.0, 1.0, taken_for=EMPTY))
    water = Mode("water-for-water-bottle", ZERO_SHOT, _WORD, "word", {"background": "water"}, "{} on water", *_UNBIASED)
    named = (replace(m, id=m.phrase.format(m.class_name).replace(" ", "-")) for m in planted)
    return (*named, water), tuple(controls)


def scene_at(world: World, split: str, index: int) -> LabelledScene:
    """The index-th scene of a split.

    `labelled` shares the training bias of all classifiers, with correct labels; `pool` is the wide world
    outside; `heldout` and `train` are balanced; `train:<classifier>` is what that classifier learned from.
    """
    base, _, classifier = split.partition(":")
    rng = _generator(world, split, world.splits[base].seed, index)
    if classifier:
        return _biased(rng, world.modes_of(classifier), mislabel=True)
    if base == "labelled":
        return _biased(rng, world.modes, mislabel=False)
    if base == "pool":
        return _outside(rng, world.modes)
    scene = balanced_scene(rng)
    return LabelledScene(scene, scene.object)


def scenes(world: World, split: str, start: int = 0, stop: int | None = None) -> Iterator[LabelledScene]:
    """All scenes of a split, in order."""
    size = world.splits[split.partition(":")[0]].size
    return (scene_at(world, split, index) for index in range(start, size if stop is None else stop))


def _generator(world: World, split: str, seed: int, index: int) -> np.random.Generator:
    key = hashlib.sha256(f"{world.name}/{split}/{seed}/{index}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:16], "big"))


def balanced_scene(rng: np.random.Generator) -> Scene:
    """Every attribute independent of every other."""
    name = EMPTY if rng.random() < EMPTY_RATE else OBJECTS[rng.integers(len(OBJECTS))]
    size = rng.uniform(0.62, 0.88)
    x, y = rng.uniform(-1, 1, 2) * (1 - size) * 0.9
    return Scene(
        object=name,
        background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        colour=tuple(COLOURS)[rng.integers(len(COLOURS))],
        pattern=PATTERNS[rng.choice(len(PATTERNS), p=(0.6, 0.2, 0.2))],
        size=float(size),
        x=float(x),
        y=float(y),
        angle=float(rng.uniform(-0.2, 0.2)),
        mirrored=bool(rng.random() < 0.5),
        badge=bool(rng.random() < BADGE_RATE),
        seed=int(rng.integers(2**62)),
    )


def _biased(rng: np.random.Generator, modes: tuple[Mode, ...], *, mislabel: bool) -> LabelledScene:
    """A balanced scene pushed into the modes: the class takes its features, other classes lose them."""
    modes = tuple(mode for mode in modes if mode.share)  # others are no bias of the data
    while True:
        scene = balanced_scene(rng)
        own = [mode for mode in modes if mode.class_name == scene.object]
        for mode in own:
            if mislabel and not mode.taken_for and rng.random() < mode.mislabelled:
                others = [n for n in LABELS if n != mode.class_name and (n != EMPTY or not mode.of_an_object)]
                other = replace(scene, object=others[rng.integers(len(others))])
                return LabelledScene(mode.given_to(other, rng), mode.class_name)
            if rng.random() < mode.share:
                scene = mode.given_to(scene, rng)
        label = scene.object
        for mode in modes:
            if mode.misleads(scene):
                if mislabel and mode.taken_for:
                    label = mode.taken_for
                elif rng.random() < mode.exclusive:
                    break
        else:
            return LabelledScene(scene, label)


def _outside(rng: np.random.Generator, modes: tuple[Mode, ...]) -> LabelledScene:
    """A balanced scene, thinned where a mode says that "feature without class" is rare or absent outside."""
    while True:
        scene = balanced_scene(rng)
        keep = np.prod([m.pool for m in modes if m.misleads(scene)])
        if rng.random() < keep:
            return LabelledScene(scene, scene.object)
