"""Failure modes and explanations by the page: chosen, sorted and counted in SQL, against what Python makes of rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from audit import sentences
from audit.results import gallery
from audit.results.gallery import Explanations, Modes
from audit.results.sql import Run
from tests.audited import audited, mode
from tests.report_server import CHROMIUM, served

HOSTILE = "**<script>document.title='hacked'</script>**"
Row = dict[str, Any]


def planted() -> list[Row]:
    """Forty modes of four kinds, with ties in every number and NULL wherever one may be; one class name is hostile."""
    draw = random.Random(0)
    rows = []
    for number in range(40):
        kind = ("disagreement", "confusion", "neuron", "flip")[number % 4]
        row = mode(draw.choice(("crab", "boat", HOSTILE)), f"thing {number}", draw.choice(("confirmed", "hypothesis")))
        row |= {"failure_mode_id": f"{draw.randrange(10**9):09}", "kind": kind, "model_id": draw.choice(("v", "w"))}
        row |= {"impact": draw.choice((None, 0.0, 0.1, 0.1, 0.2)), "effect": draw.choice((None, 1.0, 2.0, 2.0))}
        row |= {"support": draw.choice((2, 3, None)), "other_model_id": "reference" if number % 4 == 0 else None}
        row |= {"at_fault": (None, row["model_id"], row["other_model_id"])[number // 4 % 3]}
        row |= {"evidence": draw.choice((None, [], [f"i{number}", f"i{number + 1}"])), "exemplars": None}
        rows.append(row)
    rows[8] |= {"evidence": ["i8", "i9"]}  # of one that the other model is at fault for
    rows.append({**rows[0], "failure_mode_id": "not listed", "listed": False})
    part = {"failure_mode_id": "part", "name": HOSTILE, "listed": False, "part_of": rows[0]["failure_mode_id"]}
    rows += [{**rows[0], **part}, {**rows[0], **part, "failure_mode_id": "end", "class_name": "other"}]
    return rows


@pytest.fixture(scope="module")
def modes() -> list[Row]:
    return planted()


@pytest.fixture(scope="module")
def run(modes: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = audited(tmp_path_factory.mktemp("gallery") / "run", modes, [])
    reviews = [
        {"subject_id": modes[place]["failure_mode_id"], "verdict": verdict, "reviewer": "Ada"}
        | {"reviewed_at": datetime(2026, 1, day, tzinfo=UTC)}
        for place, verdict, day in ((0, "bug", 3), (0, "expected", 4), (1, "bug", 4), (2, "bug", 2))
    ]
    neurons = [
        {"neuron_id": f"n{place}", "model_id": model, "class_name": name, "neuron": place, "verdict": verdict}
        for place, (model, name, verdict) in enumerate(
            (("v", "crab", "core"), ("v", "crab", "harmful"), ("w", "crab", None))
        )
    ]
    made.store.commit("said", "reviews", {"reviews": reviews})
    made.store.commit("more", "2-discover", {"neurons": neurons})
    made.refresh()
    yield made
    st.cache_resource.clear()
    st.cache_data.clear()


def last(value: Any) -> tuple[bool, Any]:
    """A key by which the largest comes first and NULL last."""
    return value is None, -(value or 0)


REVIEWED = {0: ("expected", 4), 1: ("bug", 4), 2: ("bug", 2)}


def expected(modes: list[Row], sort: str) -> list[str]:
    """The order, by Python's stable sort."""
    reviewed = {modes[place]["failure_mode_id"]: day for place, (_, day) in REVIEWED.items()}
    keys = {
        "confirmed first": lambda m: (m["verdict"], last(m["impact"]), last(m["effect"])),
        "impact": lambda m: (last(m["impact"]), last(m["effect"])),
        "effect": lambda m: (last(m["effect"]), last(m["impact"])),
        "support": lambda m: (last(m["support"]), last(m["impact"])),
        "newest review": lambda m: (last(reviewed.get(m["failure_mode_id"])), last(m["impact"])),
        "class": lambda m: (m["class_name"], m["model_id"], last(m["impact"])),
    }
    rows = sorted((m for m in modes if m["listed"]), key=lambda m: m["failure_mode_id"])
    return [m["failure_mode_id"] for m in sorted(rows, key=keys[sort])]


@pytest.mark.parametrize("sort", gallery.MODE_SORTS)
def test_pages_follow_one_another_whatever_ties(run: Run, modes: list[Row], sort: str) -> None:
    pages = [[row["failure_mode_id"] for row in gallery.modes(run, Modes(), sort, number, 7)] for number in range(1, 8)]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 5, 0]
    assert [one for page in pages for one in page] == expected(modes, sort)


def test_modes_are_chosen(run: Run, modes: list[Row]) -> None:
    verdict = {modes[place]["failure_mode_id"]: said for place, (said, _) in REVIEWED.items()}
    cases: list[tuple[Modes, Any]] = [
        (Modes(), lambda m: True),
        (Modes(class_name=HOSTILE), lambda m: m["class_name"] == HOSTILE),
        (Modes(model_id="w", kind="flip"), lambda m: (m["at_fault"] or m["model_id"], m["kind"]) == ("w", "flip")),
        (Modes(evidence=True), lambda m: bool(m["evidence"])),
        (Modes(evidence=False), lambda m: not m["evidence"]),
        (Modes(least_effect=2.0), lambda m: m["effect"] is not None and m["effect"] >= 2.0),
        (Modes(least_impact=0.0), lambda m: m["impact"] is not None),
        (Modes(verdicts=("hypothesis",)), lambda m: m["verdict"] == "hypothesis"),
        (Modes(verdicts=("hypothesis", "confirmed")), lambda m: True),
        (Modes(reviewed=("bug",)), lambda m: verdict.get(m["failure_mode_id"]) == "bug"),
        (Modes(reviewed=("not reviewed", "expected")), lambda m: verdict.get(m["failure_mode_id"]) != "bug"),
    ]
    for chosen, holds in cases:
        wanted = {m["failure_mode_id"] for m in modes if m["listed"] and holds(m)}
        assert {row["failure_mode_id"] for row in gallery.modes(run, chosen, "impact", 1, 100)} == wanted, chosen
        assert gallery.count_modes(run, chosen) == len(wanted), chosen
    assert len(cases[9][0].reviewed) == 1
    first = gallery.modes(run, Modes(), "newest review", 1, 1)[0]
    assert first["reviewed"] in ("bug", "expected")


def test_modes_are_chosen_by_the_model_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by one that says no class of any, but misses one."""
    blind = mode("fish", "not on water", model_id="reference", other_model_id="v", at_fault="v")
    made = audited(tmp_path / "run", [blind], [])
    assert [row["failure_mode_id"] for row in gallery.modes(made, Modes(model_id="v"), "impact", 1, 9)] == [
        "fish not on water"
    ]
    assert gallery.count_modes(made, Modes(model_id="reference")) == 0
    app = opened(made, monkeypatch, "gallery")
    assert next(box for box in app.selectbox if box.label == "model").options == ["v"]


def test_a_mode_has_one_before_and_one_after(run: Run, modes: list[Row]) -> None:
    order = expected(modes, "impact")
    assert gallery.beside(run, order[0]) == (None, order[1])
    assert gallery.beside(run, order[7]) == (order[6], order[8])
    assert gallery.beside(run, order[-1]) == (order[-2], None)
    assert gallery.beside(run, "not listed") == (None, None)


def test_related_modes_share_images_class_or_model(run: Run, modes: list[Row]) -> None:
    me = next(m for m in modes if m["evidence"] and m["at_fault"] not in (None, m["model_id"]))
    found = gallery.related(run, me, 100)
    others = [m for m in modes if m["listed"] and m is not me]
    shares = {
        m["failure_mode_id"]: (
            len({*(m["evidence"] or [])} & {*me["evidence"]}),
            m["class_name"] == me["class_name"],
            (m["at_fault"] or m["model_id"]) == me["at_fault"],
        )
        for m in others
    }
    assert {row["failure_mode_id"]: (row["shared"], row["same_class"], row["same_model"]) for row in found} == {
        name: shared for name, shared in shares.items() if any(shared)
    }
    order = [shares[row["failure_mode_id"]] for row in found]
    assert order == sorted(order, reverse=True)
    assert gallery.related(run, me, 3) == found[:3]


def test_a_part_and_its_whole_lead_to_each_other(run: Run, modes: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def links(app: AppTest) -> list[str]:
        return [f"{link.proto.label} {link.proto.query_string}" for link in app.get("page_link")]

    whole = opened(run, monkeypatch, "one", id=modes[0]["failure_mode_id"])
    named = {f"A part of it: {sentences.claim(mode)}." for mode in modes if "part_of" in mode}
    assert len(named) == 2
    assert named <= {text.value for text in whole.text}
    assert {"Evidence id=part", "Evidence id=end"} <= set(links(whole))
    for name, why in (("part", "beside that one it does not hold"), ("end", "most images on which it happens")):
        part = opened(run, monkeypatch, "one", id=name)
        assert f"This is a part of another failure mode: {why}" in " ".join(text.value for text in part.text)
        assert f"The whole id={modes[0]['failure_mode_id']}" in links(part)
    alone = opened(run, monkeypatch, "one", id=modes[1]["failure_mode_id"])
    assert "part of" not in " ".join(text.value for text in alone.text)


def test_neurons_of_a_mode_are_of_its_model_and_class(run: Run) -> None:
    found = gallery.neurons_of(run, {"model_id": "v", "class_name": "crab"}, 9)
    assert [row["neuron_id"] for row in found] == ["n1", "n0"]  # the harmful one first; class names up to case
    missed = gallery.neurons_of(run, {"model_id": "v", "at_fault": "w", "class_name": "crab"}, 9)
    assert [row["neuron_id"] for row in missed] == ["n2"]  # of the model at fault


def test_explanations_are_chosen_and_paged(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [
        {"explanation_id": f"{draw.randrange(10**9):09}", "stage": draw.choice(("2-a", "3-b")), "status": "ok"}
        | {"method": draw.choice(("uvce", "disagreement")), "target_class": draw.choice(("crab", "boat"))}
        | {"flipped": draw.choice((True, False, None)), "score_after": draw.choice((None, 0.5, 0.9))}
        for _ in range(50)
    ]
    made = audited(tmp_path / "run", [], [])
    made.store.commit("x", "2-a", {"explanations": rows})
    made.refresh()
    chosen = Explanations(method="uvce", flipped=None)
    by_id = sorted((row for row in rows if row["method"] == "uvce"), key=lambda row: row["explanation_id"])
    ordered = sorted(by_id, key=lambda row: (last(row["flipped"]), last(row["score_after"])))
    size = 4
    pages = -(-len(ordered) // size)
    found = [
        row for number in range(pages) for row in gallery.explanations(made, chosen, "surest first", number + 1, size)
    ]
    assert [row["explanation_id"] for row in found] == [row["explanation_id"] for row in ordered]
    held = Explanations(stage="2-a", target_class="boat", flipped=False)
    wanted = [row for row in rows if (row["stage"], row["target_class"], row["flipped"]) == ("2-a", "boat", False)]
    assert gallery.count_explanations(made, held) == len(wanted) > 0
    assert gallery.values_of(made, "explanations", "stage") == ["2-a", "3-b"]


def opened(run: Run, monkeypatch: pytest.MonkeyPatch, page: str, **query: str) -> AppTest:
    """A page as a session sees it that comes by a link."""

    monkeypatch.setenv("AUDIT_RUN", str(run.root))
    app = AppTest.from_string(f"from dashboard import pages\npages.{page}()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def headlines(app: AppTest) -> str:
    return "".join(element.proto.body for element in app.get("html"))


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: set CHROMIUM to its path")
def test_a_person_filters_turns_pages_and_opens_one_by_keys(run: Run, modes: list[Row]) -> None:
    from playwright.sync_api import expect, sync_playwright

    order = expected(modes, "support")
    names = {m["failure_mode_id"]: m["name"] for m in modes}
    with served(run.root) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        cards = page.locator("main h3")
        page.goto(f"{address}/modes?sort=support")
        expect(page.get_by_text("40 failure modes.")).to_be_visible(timeout=60_000)
        expect(cards).to_have_count(9)
        for place in range(9):
            expect(cards.nth(place)).to_contain_text(f"what is {names[order[place]]}")
        page.keyboard.press("n")
        expect(cards.first).to_contain_text(f"what is {names[order[9]]}")
        assert "page=2" in page.url
        page.keyboard.press("p")
        expect(cards.first).to_contain_text(f"what is {names[order[0]]}")
        page.keyboard.press("n")
        expect(cards.first).to_contain_text(f"what is {names[order[9]]}")
        page.keyboard.press("2")
        expect(page.locator("main h1")).to_contain_text(f"what is {names[order[10]]}")
        assert f"id={order[10]}" in page.url
        by_impact = expected(modes, "impact")
        there = by_impact.index(order[10])
        page.keyboard.press("p" if there else "n")
        beside = by_impact[there - 1 if there else 1]
        expect(page.locator("main h1")).to_contain_text(f"what is {names[beside]}")
        assert f"id={beside}" in page.url
        page.goto(f"{address}/modes?kind=flip&model=w&page=2")  # a page that the chosen ones do not fill
        wanted = [m for m in modes if (m["kind"], m["model_id"]) == ("flip", "w")]
        expect(page.get_by_text(f"{len(wanted)} failure modes.")).to_be_visible(timeout=60_000)
        page.goto(f"{address}/modes?page=3")
        expect(page.get_by_text("40 failure modes.")).to_be_visible(timeout=60_000)
        page.get_by_label("class").click()
        page.get_by_role("option", name=HOSTILE).click()
        hostile = [m for m in modes if m["class_name"] == HOSTILE and m["source"] == "search"]
        expect(page.get_by_text(f"{len(hostile)} failure modes.")).to_be_visible()
        assert "page=" not in page.url  # a filter begins at the first page
        assert "class=" in page.url
        page.reload()
        expect(page.get_by_text(f"{len(hostile)} failure modes.")).to_be_visible(timeout=60_000)
        assert page.title() == "audit"
        browser.close()


def test_a_link_says_what_is_chosen(run: Run, modes: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(run, monkeypatch, "gallery", kind="neuron", impact="0.1")
    wanted = [m for m in modes if m["kind"] == "neuron" and m["impact"] is not None and m["impact"] >= 0.1]
    assert app.caption[0].value.startswith(f"{len(wanted)} failure modes.")
    assert all(f"for what is {m['name']}" in headlines(app) for m in wanted)
    assert "None" not in "".join(text.value for text in app.text)
    assert "Take a filter away" in opened(run, monkeypatch, "gallery", effect="99").info[0].value


def test_runs_without_findings_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = audited(tmp_path / "run", [], [])
    assert "No failure modes" in opened(empty, monkeypatch, "gallery").info[0].value
    assert "No explanations" in opened(empty, monkeypatch, "explanation_pages").info[0].value


def test_values_of_the_address_that_are_none_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is not held to them, and does not pass for one that is."""
    app = opened(run, monkeypatch, "gallery", **{"class": "<b>nope", "sort": "size", "verdict": "confirmd"})
    told = "".join(element.proto.body for element in app.get("html"))
    for words in ("class “&lt;b&gt;nope”", "sort “size”", "verdict “confirmd”"):
        assert f"There is no {words} here: it is left out." in told
    known = opened(run, monkeypatch, "gallery", sort="effect", verdict="confirmed")
    assert "left out" not in "".join(element.proto.body for element in known.get("html"))
