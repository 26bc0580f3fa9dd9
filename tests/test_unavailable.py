"""A data set that cannot be read for a while: no item of it is judged by that, and it can be read afterwards."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from audit import locations
from audit.config import load_job
from audit.datasets import DataSource, _patience
from audit.datasets._files import Folder
from audit.datasets._places import matching
from audit.datasets._selection import Selection
from audit.decode import decode
from audit.errors import BadItem, DataError, DataUnavailable
from audit.results.sql import Run
from audit.results.store import Store
from audit.worker import Worker
from benchmarks.faults.stores import Proxy
from benchmarks.s3_server import client
from pipelines.cli import app
from pipelines.plan import open_or_create
from tests.in_process import units_of
from tests.s3_server import s3_endpoint as s3_endpoint
from tests.sources import LOCAL, REMOTE, examples, on_s3, opened, picture, put, tarred

SHOWN = examples()
PASSING = (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.EHOSTDOWN)
OF_THE_FILE = (errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)
MAPPED = "hf"  # its files are mapped into memory: a fault is no error there


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "PAUSES", (0.0,) * 3)


class Faults:
    """The system's calls on the files of a test, which fail so many times with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self.error, self.left, self.calls = str(root), 0, 0, ("",)
        for name in ("open", "stat", "lstat", "scandir", "pread"):
            monkeypatch.setattr(os, name, self.failing(name, getattr(os, name)))

    def failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            ours = isinstance(arguments[0], int) or os.fspath(arguments[0]).startswith(self.root)
            if ours and self.left and name in self.calls:
                self.left -= 1
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **options)

        return call

    @contextlib.contextmanager
    def of(self, error: int, times: int, *calls: str) -> Iterator[None]:
        self.error, self.left, self.calls = error, times, calls
        yield
        self.left = 0


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faults:
    return Faults(monkeypatch, tmp_path)


def listed_and_read(source: DataSource) -> tuple[list[Any], list[bytes | None], list[bytes | None]]:
    entries = list(source.entries())
    uris = [entry.uri for entry in entries]
    return entries, list(source.read(uris)), list(source.read_masks(uris))


@pytest.mark.parametrize("call", ["open", "stat", "lstat", "scandir", "pread"])
@pytest.mark.parametrize("name", LOCAL)
def test_a_fault_that_passes_changes_nothing(name: str, call: str, tmp_path: Path, faults: Faults) -> None:
    options = LOCAL[name](tmp_path, SHOWN)
    expected = listed_and_read(opened(options))
    for error in PASSING:
        with faults.of(error, 3, call):
            assert listed_and_read(opened(options)) == expected


@pytest.mark.parametrize("name", [name for name in LOCAL if name != MAPPED])
def test_a_fault_that_stays_is_raised_and_no_item_is_judged_by_it(name: str, tmp_path: Path, faults: Faults) -> None:
    """Of listing, of a read by a source that has read before, and of one that is new; afterwards all is as it was."""
    options = LOCAL[name](tmp_path, SHOWN)
    source = opened(options)
    entries, images, masks = listed_and_read(source)
    uris = [entry.uri for entry in entries]
    for error in PASSING:
        for calls in (("open", "pread"), ("pread",), ("open",)):
            new = opened(options)
            acts: list[Callable[[], Any]] = [lambda new=new: list(new.read(uris))]
            acts += [lambda new=new: list(new.read_masks(uris))]
            if name != "folder":  # which lists what is in a folder and opens nothing but its metadata
                acts.append(lambda: list(opened(options).entries()))
            for act in acts:
                with faults.of(error, 10**6, *calls), pytest.raises(DataUnavailable) as raised:
                    act()
                assert str(tmp_path) in str(raised.value)
                assert os.strerror(error) in str(raised.value)
            assert list(new.read(uris)) == images
            assert list(source.read(uris)) == images
            assert list(source.read_masks(uris)) == masks


def test_a_folder_that_cannot_be_listed_now_stands_for_nothing(tmp_path: Path, faults: Faults) -> None:
    options = LOCAL["folder"](tmp_path, SHOWN)
    for error in PASSING:
        with faults.of(error, 10**6, "scandir"), pytest.raises(DataUnavailable):
            list(opened(options).entries())
    with faults.of(errno.EACCES, 10**6, "scandir"):
        (only,) = Folder(tmp_path).walk(Selection((".png",)), set())
    assert only == ("", "unreadable_folder")


@pytest.mark.parametrize("error", OF_THE_FILE)
def test_what_the_system_says_of_one_file_is_a_verdict_on_it(error: int, tmp_path: Path, faults: Faults) -> None:
    put(tmp_path / "a.png", b"a")
    put(tmp_path / "b.png", b"b")
    with faults.of(error, 1, "open"):
        assert list(map(Folder(tmp_path).read, ("a.png", "b.png"))) == [None, b"b"]
    put(tmp_path / "x.tar", tarred([("1.jpg", b"one"), ("2.jpg", b"two")]))
    source = opened({"source": "webdataset", "path": str(tmp_path)})
    uris = [entry.uri for entry in source.entries()]
    with faults.of(error, 1, "open"):
        assert list(source.read(uris)) == [None, b"two"]


def test_a_link_out_of_the_root_is_not_followed_in_the_midst_of_a_fault(tmp_path: Path, faults: Faults) -> None:
    put(tmp_path / "secret" / "a.png", b"secret")
    (tmp_path / "root").mkdir()
    put(tmp_path / "root" / "b.png", b"b")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "secret")
    for times in range(1, 12):
        files = Folder(tmp_path / "root")
        with faults.of(errno.ESTALE, times, "lstat"), contextlib.suppress(DataUnavailable):
            assert files.read("out/a.png") is None
        assert files.reason("out/a.png") == "link_out_of_root"


def test_every_file_of_a_pattern_is_found_or_none(tmp_path: Path, faults: Faults) -> None:
    """A name that a worker does not find would be an image that is gone."""
    names = [f"{folder}/{i}.tar" for folder in ("a", "b") for i in range(3)]
    for name in names:
        put(tmp_path / name, b"")
    put(tmp_path / "a" / "deep" / "0.tar", b"")
    assert matching(tmp_path / "*" / "*.tar", ".tar")[1] == names
    assert matching(tmp_path / "**" / "0.tar", ".tar")[1] == ["a/0.tar", "a/deep/0.tar", "b/0.tar"]
    for times in (1, 3, 10**6):
        with faults.of(errno.EMFILE, times, "scandir"):
            if times < 10:
                assert matching(tmp_path / "*" / "*.tar", ".tar")[1] == names
            else:
                with pytest.raises(DataUnavailable, match=r"Too many open files.*ulimit -n"):
                    matching(tmp_path / "*" / "*.tar", ".tar")


@pytest.mark.parametrize("name", ["folder", "csv", "webdataset"])
def test_a_file_system_that_is_not_mounted_is_no_data_set_of_missing_images(name: str, tmp_path: Path) -> None:
    """Neither an empty folder nor none; but one file that is gone, is gone."""
    options = LOCAL[name](tmp_path / "root", SHOWN)
    uris = [entry.uri for entry in opened(options).entries()]
    worker = opened(options)
    assert list(worker.read(uris[:1])) == [SHOWN[0].data]
    if name != "webdataset":
        (tmp_path / "root" / "ice cream" / "0010.png").unlink()
        assert list(worker.read(uris[-2:])) == [SHOWN[-2].data, None]
    shutil.rmtree(tmp_path / "root")
    for state in ("is not there", "is empty"):
        with pytest.raises(DataUnavailable, match=f"{state}.*[Mm]ount"):
            list(worker.read(uris[-2:]))
        (tmp_path / "root").mkdir(exist_ok=True)


@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_a_file_whose_handle_is_stale_is_opened_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a network file system was away: what was opened before fails for ever, what is opened now does not."""
    shown = [one._replace(data=os.urandom(300_000)) for one in SHOWN]
    source = opened(LOCAL[name](tmp_path, shown))
    uris = [entry.uri for entry in source.entries()]
    stale: set[int] = set()
    used: set[int] = set()
    pread, system_open = os.pread, os.open

    def read(file: int, size: int, start: int) -> bytes:
        used.add(file)
        if file in stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(file, size, start)

    def open_(*arguments: Any, **options: Any) -> int:
        stale.discard(file := system_open(*arguments, **options))
        return file

    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(os, "open", open_)
    assert list(source.read(uris[:1])) == [shown[0].data]
    stale |= used
    next_one = 3 if name == "parquet" else 1  # in the same file; of Parquet, in another row group
    if name == "parquet":  # it cannot go on in the midst of a file that may be another now
        with pytest.raises(DataUnavailable, match=os.strerror(errno.ESTALE)):
            list(source.read([uris[next_one]]))
    assert list(source.read([uris[next_one]])) == [shown[next_one].data]


_CHILD = """
import hashlib, json, os, resource, sys
from audit.errors import DataUnavailable
from audit.datasets import _patience
from tests.sources import opened
_patience.PAUSES = (0.0,)
options, uris = map(json.loads, sys.argv[1:])
new, used = opened(options), opened(options)
list(used.read(uris[:1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for source, asked in ((new, uris), (used, uris[::-1])):
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        seen = "verdicts" if None in list(source.read(asked)) else "read"
    except DataUnavailable as error:
        seen = "unavailable" if "ulimit -n" in str(error) else str(error)
    for one in held:
        os.close(one)
    print(seen, hashlib.sha256(b"".join(source.read(uris))).hexdigest())
"""


def child(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LOCAL)
def test_a_process_without_descriptors_judges_no_item(name: str, tmp_path: Path) -> None:
    """By a real limit, in a source that is new and in one that has read: the last file is open then. Afterwards both
    read everything."""
    options = LOCAL[name](tmp_path, SHOWN)
    uris = [entry.uri for entry in opened(options).entries()]
    digest = hashlib.sha256(b"".join(one.data for one in SHOWN)).hexdigest()
    needs_none = name in ("webdataset", MAPPED)  # a shard is closed before another is opened
    seen = child(_CHILD, json.dumps(options), json.dumps(uris)).splitlines()
    assert seen == [f"unavailable {digest}", f"{'read' if needs_none else 'unavailable'} {digest}"]


@pytest.mark.parametrize("name", REMOTE)
def test_a_store_that_answers_503_judges_no_item(
    name: str, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one whose key has the number in it by which a store says that an object is shorter now."""
    shown = [one._replace(name=f"{416_000 + i}") for i, one in enumerate(SHOWN)]
    there = on_s3(s3_endpoint, LOCAL[name](tmp_path, shown), tmp_path, f"busy-416/{name}")
    monkeypatch.setitem(locations.RETRIES, "max_retries", 1)
    proxy = Proxy(s3_endpoint)
    with proxy.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        source = opened(there)
        entries, images, masks = listed_and_read(source)
        uris = [entry.uri for entry in entries]
        new = opened(there)
        proxy.failing = 1.0
        acts: list[Callable[[], Any]] = [lambda: list(opened(there).entries()), lambda: list(new.read(uris))]
        acts += [lambda: list(new.read_masks(uris))] if name != "folder" else []
        for act in acts:
            with pytest.raises(DataUnavailable, match=r"s3://bucket/busy-416.*503"):
                act()
        assert proxy.failed >= 2 * len(acts)  # the store's client tries each again
        proxy.failing = 0.0
        assert (list(new.read(uris)), list(new.read_masks(uris))) == (images, masks)


def test_a_bucket_that_is_gone_is_no_data_set_of_missing_images(s3_endpoint: str) -> None:
    store = client(s3_endpoint)
    store.create_bucket(Bucket="passing")
    store.put_object(Bucket="passing", Key="d/a.png", Body=b"a")
    source = opened({"source": "folder", "path": "s3://passing/d"})
    assert list(source.read(["a.png", "gone.png"])) == [b"a", None]
    store.delete_object(Bucket="passing", Key="d/a.png")
    store.delete_bucket(Bucket="passing")
    with pytest.raises(DataUnavailable, match=r"s3://passing/d.*bucket"):
        list(source.read(["a.png"]))
    with pytest.raises(DataError, match="s3://passing/d") as raised:
        list(source.entries())
    assert not isinstance(raised.value, DataUnavailable)  # a listing that is refused will be refused again


def refusing(request: Any) -> None:
    Proxy.answer(request, 403, [], b"<Error><Code>AccessDenied</Code></Error>")


def test_an_object_that_is_refused_is_named_and_judges_nothing(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(s3_endpoint).put_object(Bucket="bucket", Key="refused/a.png", Body=b"a")
    proxy = Proxy(s3_endpoint)
    with proxy.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        source = opened({"source": "folder", "path": "s3://bucket/refused"})
        monkeypatch.setattr(proxy, "pass_on", refusing)
        with pytest.raises(DataUnavailable, match=r"refused/a\.png.*403.*credentials"):
            list(source.read(["a.png"]))


_SHORT = """
import resource, sys
from audit.decode import decode
from audit.errors import BadItem, DataUnavailable
data = open(sys.argv[1], "rb").read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
for data in (data, data[: len(data) // 2], b"no image"):
    try:
        print("decoded", decode(data).image.shape)
    except (BadItem, DataUnavailable) as error:
        print(type(error).__name__, getattr(error, "reason", ""))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("decoded", decode(open(sys.argv[1], "rb").read()).image.shape)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP"])
def test_an_image_is_not_judged_by_the_memory_of_the_machine(form: str, tmp_path: Path) -> None:
    """5000 x 5000 pixels under a limit of 64 MiB more than the process has; then without."""
    Image.new("RGB", (5000, 5000), "red").save(tmp_path / "x", form)
    seen = child(_SHORT, str(tmp_path / "x")).splitlines()
    assert seen == ["DataUnavailable ", "DataUnavailable ", "BadItem unidentified", "decoded (5000, 5000, 3)"]


def test_an_image_that_asks_for_more_than_its_size_warrants_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any, **__: Any) -> Any:
        raise MemoryError

    data = picture(0, mode="P")  # decoding converts it
    monkeypatch.setattr(Image.Image, "convert", greedy)
    with pytest.raises(BadItem, match="truncated"):
        decode(data)


_FIRST = """
import os, resource, sys
from audit.decode import decode
from audit.errors import BadItem, DataUnavailable
data = [open(path, "rb").read() for path in sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for one in data:
    print(decode(one).image.shape)
"""


def test_the_first_image_of_a_process_without_descriptors_is_decoded(tmp_path: Path) -> None:
    """Pillow would import its decoders then, fail, and go on without them."""
    forms = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
    for form in forms:
        (tmp_path / form).write_bytes(picture(0, form))
    assert child(_FIRST, *(str(tmp_path / form) for form in forms)) == "(8, 8, 3)\n" * len(forms)


def test_a_unit_whose_data_are_away_is_excused_and_nothing_is_said_of_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker says that it is the data; a run that is begun meanwhile does not begin; afterwards all is done."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / "data" / "crab").mkdir(parents=True)
    shutil.move(tmp_path / "image.png", tmp_path / "data" / "crab")
    raw = {"version": 1, "name": "away", "data": {"source": "folder", "path": "data"}, "compute": {"workers": 1}}
    models = [{"id": "m", "loader": "hf", "ref": "zoo:reference"}]
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({**raw, "models": models, "stages": [{"kind": "screen"}]}))
    job, root = load_job(file), tmp_path / "runs" / "away"
    open_or_create(job, root)
    (unit,) = units_of(job, "0-inventory", root, {}, ())
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    summary = Worker(job, root, (), 1).run(unit)
    assert (summary.excuse, summary.fatal, summary.items) == ("data", None, 0)
    assert str(tmp_path / "data") in str(summary.error)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", str(file)])
    assert done.exit_code == 2
    assert str(tmp_path / "data") in done.stderr
    assert set(Store(root).commits()) == {"run"}
    shutil.move(tmp_path / "elsewhere", tmp_path / "data")
    assert CliRunner().invoke(app, ["run", str(file)]).exit_code == 0
    assert Run(root).rows("select status, count(*) as n from items group by status") == [{"status": "ok", "n": 1}]
