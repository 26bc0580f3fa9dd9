"""Looking after a run from the command line: plan, status, verify, repair, collect; and a run kept in an S3 server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from audit.artefacts import FOLDER
from audit.config import load_job
from audit.methods import Unit
from audit.results.integrity import verify
from audit.results.progress import LIVE
from audit.results.schema import Rows
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Summary, Worker
from benchmarks.faults.protocol import clean
from benchmarks.faults.workload import Found, Workload, compare
from pipelines.forecast import forecast
from pipelines.serial import run_serially
from pipelines.units import plan_of
from tests.s3_server import s3_endpoint as s3_endpoint


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return Workload(tmp_path_factory.mktemp("upkeep"))


def test_verify_says_nothing_of_a_whole_run_and_repair_mends_a_damaged_one(work: Workload) -> None:
    root, rows = clean(work)
    assert work.audit("verify", str(root)).returncode == 0
    copy = root.with_name("damaged")
    shutil.copytree(root, copy)
    file = sorted((copy / "data" / "predictions").iterdir())[0]
    unit = file.name.partition("-")[0]
    file.write_bytes(file.read_bytes()[:-1])
    done = work.audit("verify", str(copy), "--json")
    assert done.returncode == 4
    (damage,) = json.loads(done.stdout)
    assert damage["units"] == [unit]
    assert damage["where"] == str(file)
    assert "instead of" in damage["what"]
    done = work.audit("repair", str(copy), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["withdrawn"] == [unit]
    assert work.audit("verify", str(copy)).returncode == 0
    found = Found("", "", "")
    assert compare(found, Run(copy), rows), found


def test_a_repair_exits_as_a_run_does(work: Workload) -> None:
    """3 where items have failed, whether anything had to be mended or not; 0 where none has: the test above."""
    work.misbehave(items={"7": "raises"})
    try:
        ran = work.audit("run", str(work.job("failing")))
        repaired = work.audit("repair", str(work.place("failing")), "--json")
    finally:
        work.misbehave()
    assert ran.returncode == 3, ran.stderr
    assert repaired.returncode == 3, repaired.stderr
    told = json.loads(repaired.stdout)
    assert (told["restored"], told["withdrawn"]) == ([], [])
    failed = Run(work.place("failing")).rows("select count(*) as n from predictions where status <> 'ok'")[0]["n"]
    assert failed >= 1
    assert told["failed"] >= failed
    assert f"{told['failed']} rows" in repaired.stderr


def test_status_takes_a_run_and_says_what_tells_of_a_submission(work: Workload) -> None:
    root, _ = clean(work)
    for typed in (str(root), f"{root}/"):
        assert work.audit("status", typed).returncode == 0
    asked = work.audit("status", "clean-1")
    assert asked.returncode == 2
    assert "audit logs clean-1" in " ".join(asked.stderr.split())
    assert "audit list" in asked.stderr
    assert "audit logs" not in work.audit("status", str(root.with_name("nothing"))).stderr


def test_the_help_of_plan_says_that_it_runs_units_here(work: Workload) -> None:
    said = " ".join(work.audit("plan", "--help").stdout.split())
    assert "Runs a few units of each stage on this machine" in said


def test_collect_lists_and_deletes_only_on_request(work: Workload) -> None:
    root, _ = clean(work, "orphans")
    stray = root / "data" / "items" / "stray-1.parquet"
    stray.write_bytes(b"x")
    listed = work.audit("collect", str(root), "--older-than", "-1", "--json")
    assert [one["key"] for one in json.loads(listed.stdout)] == ["data/items/stray-1.parquet"]
    assert stray.exists()
    assert "0 files" in work.audit("collect", str(root), "--delete").stdout  # a day old they are not
    assert stray.exists()
    assert work.audit("collect", str(root), "--older-than", "-1", "--delete").returncode == 0
    assert not stray.exists()


def test_collect_waits_for_a_driver_that_is_at_work(work: Workload) -> None:
    """What its workers have written a moment ago may be about to be committed."""
    root, _ = clean(work, "at-work")
    stray = root / "data" / "items" / "stray-1.parquet"
    stray.write_bytes(b"x")
    store = Store(root)
    store.objects.replace(LIVE, json.dumps({"ended": None}).encode())
    done = work.audit("collect", str(root), "--older-than", "-1", "--delete")
    assert (done.returncode, stray.exists()) == (2, True)
    assert "a driver is at work" in " ".join(done.stderr.split())
    assert work.audit("collect", str(root), "--older-than", "-1").returncode == 0  # a look harms nobody
    store.objects.replace(LIVE, json.dumps({"ended": "finished"}).encode())
    assert work.audit("collect", str(root), "--older-than", "-1", "--delete").returncode == 0
    assert not stray.exists()


@pytest.mark.parametrize("half", [b'{"units": 1', b'{"units": 1}', b'{"units": 1, "parts": [1]}', b""])
def test_collect_names_a_plan_that_is_not_whole(work: Workload, half: bytes) -> None:
    root, _ = clean(work, "half")
    plan = root / "plan" / "1-screen.json"
    whole = plan.read_bytes()
    plan.write_bytes(half)
    try:
        done = work.audit("collect", str(root))
    finally:
        plan.write_bytes(whole)
    assert (done.returncode, "Traceback" in done.stderr) == (4, False)
    assert "1-screen.json is not whole" in "".join(done.stderr.split("\n"))


@pytest.mark.parametrize("half", [b'{"job": {', b"3", b'["x"]', b""])
def test_verify_names_a_job_record_that_is_not_whole(work: Workload, half: bytes) -> None:
    root, _ = clean(work, "record")
    record = root / "job.json"
    whole = record.read_bytes()
    record.write_bytes(half)
    try:
        (damage,) = verify(Store(root))
    finally:
        record.write_bytes(whole)
    assert damage.where == str(record)
    assert "not whole" in damage.what
    assert verify(Store(root)) == []


def test_a_log_that_is_full_ends_no_run_and_changes_no_exit_code(work: Workload) -> None:
    def audit(*arguments: str) -> int:
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "pipelines.cli", *arguments]
            return subprocess.run(
                command, stderr=full, stdout=subprocess.DEVNULL, cwd=work.folder, check=False
            ).returncode

    assert audit("run", str(work.job("unheard"))) == 0
    assert Run(work.place("unheard")).rows("select count(*) as n from predictions") == [{"n": work.images}]
    assert audit("run", "nothing.yaml") == 2


@pytest.mark.parametrize("command", ["verify", "repair", "collect", "status"])
def test_what_is_no_run_is_refused(work: Workload, command: str) -> None:
    done = work.audit(command, str(work.folder / "data"))
    assert done.returncode == 2
    assert "is not a run" in done.stderr


def test_a_plan_counts_what_the_run_then_has(work: Workload) -> None:
    root, _ = clean(work)
    heard: list[str] = []
    told = forecast(load_job(work.folder / "clean.yaml"), calibrate=False, tell=heard.append)
    assert heard == ["listing the data"]
    assert [(one.stage, one.items) for one in told] == [("0-inventory", 40), ("1-screen", 40)]
    for one in told:
        plan = plan_of(Store(root), one.stage)
        assert plan is not None
        assert plan.items == one.items


def test_a_plan_is_calibrated_by_real_units_in_a_folder_that_goes(work: Workload) -> None:
    before = {path for path in work.folder.rglob("*") if path.name != "executions.log"}
    work.misbehave(pause=0.2)
    try:
        done = work.audit("plan", str(work.job("clean")), "--json")
    finally:
        work.misbehave()
    assert done.returncode == 0, done.stderr
    screen = json.loads(done.stdout)[1]
    told = work.audit("plan", str(work.job("clean")))
    assert re.search(r"1-screen\W+40\W+[0-9.e-]+\W+[0-9.e-]+\W+[0-9.e-]+\W+$", told.stdout, re.MULTILINE), told.stdout
    assert re.search(r"^[0-9.e-]+ core hours of work, \d+ MiB of results$", told.stdout, re.MULTILINE)
    assert "why not tried" not in told.stdout
    assert screen["seconds_per_item"] >= 0.2 / 4  # four images a unit, of .2 s at least
    assert screen["hours"] == pytest.approx(40 * screen["seconds_per_item"] / 3600)
    assert screen["mib"] > 0
    assert {path for path in work.folder.rglob("*") if path.name != "executions.log"} == before


class Timed(Worker):
    """What loads the models takes 100 s, all else a second an item; each unit leaves 1 MiB beside the run, and is not
    done as long as it is there."""

    seen: ClassVar[dict[str, list[int]]] = {}

    def run(self, unit: Unit, attempt: int = 1) -> Summary:
        before = clock.now
        return replace(super().run(unit, attempt), seconds=clock.now - before)

    def rows(self, unit: Unit) -> Rows:
        made = self.store.root.parent / FOLDER / "kind" / unit.unit_id
        first = unit.stage not in self.seen
        clock.now += 100.0 if first else 0.0 if made.exists() else float(unit.items)
        self.seen.setdefault(unit.stage, []).append(torch.get_num_threads())
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(bytes(2**20))
        return super().rows(unit)


clock = SimpleNamespace(now=0.0)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, 4), (8, "auto", 1)])
def test_a_plan_counts_no_loading_and_the_cores_of_a_worker(
    work: Workload, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int | str, threads: int
) -> None:
    """Of a stage with a single unit too; with the artefacts that it leaves."""
    monkeypatch.setattr("pipelines.forecast.Worker", Timed)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("pipelines.forecast.time", SimpleNamespace(monotonic=lambda: clock.now))
    Timed.seen.clear()
    before = torch.get_num_threads()
    big = replace(work, unit_items=64)
    heard: list[str] = []
    told = forecast(load_job(big.job("single", workers=workers)), tell=heard.append)
    assert [(word.split()[0], *re.findall(r"\d-\w+", word)) for word in heard] == [
        ("listing",),
        ("trying", "0-inventory"),
        ("trying", "1-screen"),
    ]
    assert [one.seconds_per_item for one in told] == [1.0, 1.0]
    assert [one.hours for one in told] == [pytest.approx(40 * threads / 3600)] * 2
    assert {stage: set(seen) for stage, seen in Timed.seen.items()} == {"0-inventory": {threads}, "1-screen": {threads}}
    assert [len(seen) for seen in Timed.seen.values()] == [2, 2]
    assert torch.get_num_threads() == before
    for one, artefacts in zip(told, (2, 1), strict=True):  # a MiB a unit; the tables are small
        assert one.mib is not None
        assert artefacts < one.mib < artefacts + 0.5


def test_a_plan_that_tried_nothing_claims_no_hours(work: Workload) -> None:
    done = work.audit("plan", str(work.job("clean")), "--no-calibrate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "no stage was tried, so hours and disk are not known"
    assert "hours of work" not in done.stdout
    assert re.search(r"1-screen\W+40\b", done.stdout)


def test_a_run_in_an_object_store_has_the_rows_of_one_on_disk(work: Workload, s3_endpoint: str) -> None:
    """By the command line, on Ray; and read by every command that reads runs."""
    root, rows = clean(work)
    there = Workload(work.folder, output=f"s3://bucket/{uuid.uuid4().hex}")
    place = str(there.place("clean"))
    done = there.audit("run", str(there.job("clean")))
    assert done.returncode == 0, done.stderr
    assert place in done.stdout
    found = Found("", "", "")
    assert compare(found, Run(place), rows), found
    again = there.audit("run", str(there.job("clean")))
    assert (again.returncode, '"event": "unit"' in again.stderr) == (0, False)
    assert there.audit("verify", place).returncode == 0
    told = json.loads(there.audit("status", place, "--json").stdout)
    assert [stage["done"] for stage in told["stages"]] == [1, 13]
    assert told["driver"]["ended"] == "finished"
    query = "select count(*) as n from predictions"
    assert json.loads(there.audit("sql", place, query, "--format", "json").stdout) == [{"n": 40}]
    there.job("clean", workers=2)
    assert there.audit("run", str(there.job("clean")), "--new-run").returncode == 0
    assert Run(f"{place}-2").rows(query) == [{"n": 40}]
    assert root.exists()


def test_a_run_can_be_read_while_it_grows(work: Workload, tmp_path: Path) -> None:
    job = load_job(work.job("growing"))
    run_serially(job, tmp_path / "run", 8)
    opened = Run(tmp_path / "run")
    before = opened.rows("select count(*) as n from predictions")
    Store(tmp_path / "run").commit("later", "1-screen", {"predictions": [{"item_id": "x", "status": "ok"}]})
    assert opened.rows("select count(*) as n from predictions") == before
    opened.refresh()
    assert opened.rows("select count(*) as n from predictions") == [{"n": before[0]["n"] + 1}]
