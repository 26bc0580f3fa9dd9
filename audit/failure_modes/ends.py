"""One failure has two ends: what a model says where it should not, and what it misses there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit import discovery as d
from audit import sentences
from audit.failure_modes.claims import Mode, place_of

OTHER_END = 0.8  # share of the images on which one mode happens that makes it the other end of others


def join_ends(modes: list[Mode]) -> None:
    """Find listed modes that are the other end of others, and list them no more.

    Who says crab for all that is on sand misses the cars on sand, and the boats, and that is no second failure. What a
    model misses is the other end of what it says instead where most images on which it misses the class are those
    on which it says others, and `part_of` the mode that has most of them. But where most of that one's images are
    of the class, "misses crab" says more than what it says instead, which is then the part.
    """
    pairs: dict[tuple[Any, ...], tuple[list[Mode], list[Mode]]] = {}
    for mode in modes:
        if mode["verdict"] == "confirmed" and mode["kind"] == "disagreement" and "asked" in mode:
            missed = sentences.misses(mode)
            models = ("other_model_id", "model_id") if missed else ("model_id", "other_model_id")
            pair = id(mode["asked"].real), *(mode[name] for name in models)
            if mode["listed"] or not missed:
                pairs.setdefault(pair, ([], []))[missed].append(mode)
    for says, misses in pairs.values():
        if not says or not misses:
            continue
        said, missing = ([np.packbits(mode["asked"].happens) for mode in each] for each in (says, misses))
        shared = _shared(said, missing, range(len(says)))
        sizes = np.array([np.bitwise_count(each).sum() for each in said])
        for i in sorted(shared, key=lambda i: -int(shared[i].max())):
            listed = np.array([mode["listed"] for mode in says])
            same = listed & (shared[i] >= OTHER_END * sizes)
            if same[np.where(listed, shared[i], -1).argmax()]:
                for j in np.flatnonzero(same):
                    says[j] |= {"listed": False, "part_of": misses[i]["failure_mode_id"]}
                missing[i] = np.zeros_like(missing[i])  # it is no part itself
        wholes = _wholes(says, modes)
        among = list(wholes)
        for i, counts in _shared(said, missing, among).items():
            whole = wholes[among[int(counts.argmax())]]
            misses[i] |= {"listed": False, "part_of": whole["failure_mode_id"]}


def _shared(said: list[NDArray[np.uint8]], missing: list[NDArray[np.uint8]], among: Sequence[int]) -> dict[int, d.Ints]:
    """Of those whose images are most of what is `said` `among`: how many they share with each of these."""
    if not among:
        return {}
    found, every = {}, np.stack([said[j] for j in among])
    for i, own in enumerate(missing):
        here = np.flatnonzero(own)
        common = every[:, here] & own[here]
        covered = np.bitwise_count(np.bitwise_or.reduce(common)).sum()
        if len(here) and covered >= OTHER_END * np.bitwise_count(own).sum():
            found[i] = np.bitwise_count(common).sum(1, dtype=np.int64)
    return found


def _wholes(says: list[Mode], modes: list[Mode]) -> dict[int, Mode]:
    """Of those modes, by their numbers, that are listed or for which another one speaks: the one that is listed."""
    speaks: dict[Any, Mode] = {}
    for mode in modes:
        if mode["listed"] and mode["verdict"] == "confirmed" and not sentences.misses(mode):
            speaks[mode["failure_mode_id"]] = mode
            of_pair = mode["other_model_id"] if mode["kind"] == "disagreement" else None
            speaks.setdefault((*place_of(mode), of_pair), mode)
    found = {}
    for j, mode in enumerate(says):
        place = place_of(mode)
        keys = mode["failure_mode_id"], mode.get("part_of"), (*place, mode["other_model_id"]), (*place, None)
        if whole := next((speaks[key] for key in keys if key in speaks), None):
            found[j] = whole
    return found
