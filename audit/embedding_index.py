"""An approximate index of a run's embeddings, for retrieval among more images than are compared one by one.

A copy of the embeddings with a byte a number (faiss' 8-bit scalar quantizer), which a search scans whole: less than a
quarter of what a scan of the tables reads, and unlike cells or graphs no worse for texts, whose embeddings lie apart
from those of all images. It proposes; the stored embeddings of what it proposes decide. It is made when it is first
needed and kept in the user's cache, since whoever reads a run may not be allowed to write there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from audit.config import digest
from audit.locations import absolute
from audit.results.sql import Run

TRAINED_ON = 50_000  # embeddings from which the range of each number is learned
PROPOSED = 4  # for each image that is asked for
_MAKING = "making-"
_EMBEDDINGS = "from arrays where name = 'embedding' and values is not null and role in ('data', 'pool')"


@dataclass(frozen=True)
class Index:
    """An index that is there: a folder with the quantized rows, and `ids`, Parquet of their item_id and role."""

    folder: Path

    @property
    def ids(self) -> Path:
        return self.folder / "ids.parquet"

    def nearest(self, vector: Sequence[float], roles: Sequence[str], count: int) -> list[str]:
        """Ids of the images of some roles that are about the nearest to a vector (d,) by cosine, `PROPOSED` times
        `count` of them or all; in no order."""
        import faiss

        index = faiss.read_index(str(self.folder / "rows.faiss"), faiss.IO_FLAG_MMAP_IFC)  # read as it is scanned
        told = pq.read_table(self.ids)
        among = pc.is_in(told["role"], pa.array(roles)).to_numpy()
        selector = faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))  # type: ignore[call-arg, arg-type]
        chosen = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        most = min(PROPOSED * count * len(roles), int(among.sum()))
        if not most:
            return []
        _, (found,) = index.search(np.asarray([vector], np.float32), most, params=chosen)
        return sorted(set(told["item_id"].take(pa.array(found)).to_pylist()))


def available() -> bool:
    """Whether an index can be made and read here: with the package faiss."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def index_of(run: Run) -> Index:
    """The index of a run's embeddings as committed by now; made if there is none, which reads all of them once."""
    files = run.store.files("arrays", (run.commits or {}).values())
    kept = _cache() / digest(absolute(run.location))[:32]
    folder = kept / digest(sorted(file.path for file in files))[:32]
    if not folder.is_dir():
        _make(run, folder)
        for older in kept.iterdir():
            if older != folder and not older.name.startswith(_MAKING):  # another process may be at work on that
                rmtree(older, ignore_errors=True)
    return Index(folder)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audit" / "embeddings"


def _make(run: Run, folder: Path) -> None:
    """Write it beside its place, and move it there whole: who makes the same at once may come first."""
    import faiss

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_MAKING, ignore_cleanup_errors=True) as place:
        made = Path(place) / "index"
        made.mkdir()
        index: Any = None
        with pq.ParquetWriter(made / "ids.parquet", pa.schema({"item_id": pa.string(), "role": pa.string()})) as ids:
            for item_ids, roles, rows in _rows(run):
                if index is None:
                    index = faiss.IndexScalarQuantizer(
                        rows.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
                    )
                    index.train(_sample(run))
                index.add(rows)
                ids.write_table(pa.table({"item_id": item_ids, "role": roles}))
        if index is None:
            index = faiss.IndexScalarQuantizer(1, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        faiss.write_index(index, str(made / "rows.faiss"))
        with contextlib.suppress(OSError):  # there is one by now
            made.rename(folder)


def _rows(run: Run) -> Iterator[tuple[pa.Array, pa.Array, NDArray[np.float32]]]:
    """item_id, role and unit embedding (n, d) of all images that have one, part by part."""
    for batch in run.batches(f"select subject_id, role, values {_EMBEDDINGS}"):
        yield batch.column(0), batch.column(1), _unit(batch.column(2))


def _sample(run: Run) -> NDArray[np.float32]:
    """Some TRAINED_ON of the embeddings, whatever unit they are of."""
    count = run.rows(f"select count(*) as found {_EMBEDDINGS}")[0]["found"]
    table = run.sql(f"select values {_EMBEDDINGS} and hash(subject_id) % ? = 0", [max(1, count // TRAINED_ON)])
    return _unit(table["values"].combine_chunks())


def _unit(values: Any) -> NDArray[np.float32]:
    rows = np.ascontiguousarray(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(values), -1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float32)  # one without a direction stays as it is
