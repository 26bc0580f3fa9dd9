"""Links to folders in a walk: which are followed, and which are only listed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from audit.datasets._patience import may_pass, patiently, status_of
from audit.datasets._selection import Selection


class FolderLinks:
    """The links of one walk. At most one link to each folder is followed, so that every walk ends."""

    def __init__(self, root: Path, follow: bool) -> None:
        self.root, self.follow = root, follow
        self._followed: set[tuple[int, int]] = set()

    def is_linked_folder(self, path: str) -> bool:
        whole = self.root / path
        return bool(patiently(whole, lambda: _is_linked_folder(whole)))

    def listed(self, path: str, wanted: Selection) -> Iterator[tuple[str, str | None, bool]]:
        """The entry of a link to a folder: its path, the reason if it is not walked, and whether it is walked."""
        target = _identity(self.root / path)
        if target in self._above(path):
            if wanted.notes is not None:
                wanted.notes.count("link_loop", path)
            return
        reason = None if self.follow else "linked_folder"
        if self.follow and target in self._followed:
            reason = "linked_again"
        if target is not None:
            self._followed.add(target)
        if reason is not None and wanted.notes is not None:
            wanted.notes.count(reason, path)
        yield path, reason, reason is None

    def _above(self, path: str) -> set[tuple[int, int] | None]:
        """The folders that contain a path, including the root."""
        return {_identity(self.root / folder) for folder in PurePosixPath(path).parents} - {None}


def _is_linked_folder(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode) and stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    found = status_of(os.fspath(path))
    return None if found is None else (found.st_dev, found.st_ino)
