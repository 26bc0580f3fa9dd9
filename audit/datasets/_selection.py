"""Select the files of a folder or a prefix that are listed: those with certain suffixes, without files of other
software.

All other files are counted: hidden files and folders, images of formats that are not read, other files.
"""

from __future__ import annotations

import os
from collections import Counter

from audit.datasets._notes import Notes
from audit.decode import HEIC_READ

READ = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c"),
    *((".heic", ".heif", ".heics", ".hif") if HEIC_READ else ()),
)
_OTHER_IMAGES = """
    .heic .heif .heics .hif .jxl .tga .dcm .dicom .nii .npy .npz .svg .eps .ico .icns .psd .exr .hdr .raw .dng .cr2
    .cr3 .nef .arw .orf .rw2 .dds .pcx .xcf .mat .mp4 .avi .mov .bgr .sgi .pfm .fits
"""
_UNREAD_IMAGES = frozenset(_OTHER_IMAGES.split()) - frozenset(READ)
_LEFTOVERS = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found")
_LEFTOVER_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_OWN = frozenset(("metadata.csv", "metadata.jsonl", "metadata.tsv"))
_SUFFIXES_COUNTED = 100
_LONGEST_SUFFIX = 12
HEAD = 16  # bytes that tell an image


class Selection:
    """Selects the files of a folder. `endings`: suffixes in lower case. `notes`: counts the other files. Without
    `notes`, hidden files are listed too, and files without a suffix are not."""

    def __init__(self, endings: tuple[str, ...], notes: Notes | None = None, follow_links: bool = False) -> None:
        self.endings, self.notes, self.follow_links = endings, notes, follow_links
        self._suffixes: Counter[str] = Counter()

    def walks(self, path: str) -> bool:
        """Whether a folder is walked."""
        return self._is_wanted(path, f"{path}/")

    def may_be_folder(self, name: str) -> bool:
        """Whether a link of this name may be a link to a folder."""
        return self.notes is not None and not name.lower().endswith(self.endings) and not is_leftover(name)

    def wants(self, path: str) -> bool | None:
        """Whether a file is listed; None if its name has no suffix, so that its content decides."""
        if not self._is_wanted(path, path):
            return False
        name = os.path.basename(path)
        if name.lower().endswith(self.endings):
            return True
        if self.notes is not None and "." not in name:
            return None
        self.leave_out(name)
        return False

    def _is_wanted(self, path: str, shown: str) -> bool:
        if self.notes is None or not is_leftover(os.path.basename(path)):
            return True
        self.notes.count("hidden", shown)
        return False

    def leave_out(self, name: str) -> None:
        """Count a file that is not listed, by its suffix."""
        if self.notes is None or name.lower() in _OWN:
            return
        suffix = os.path.splitext(name)[1].lower()[:_LONGEST_SUFFIX] or "no suffix"
        if suffix not in self._suffixes and len(self._suffixes) >= _SUFFIXES_COUNTED:
            suffix = "other suffixes"
        self._suffixes[suffix] += 1

    def finish(self) -> None:
        """Add the counts of suffixes to the notes, at the end of a walk."""
        for suffix, items in self._suffixes.most_common():
            if self.notes is not None:
                code = "images_not_read" if suffix in _UNREAD_IMAGES else "files_not_listed"
                self.notes.count(code, f"{items:,} {suffix}{_works(suffix)}", items)
        self._suffixes.clear()


def _works(suffix: str) -> str:
    return ": pip install 'audit[heic]'" if suffix in (".heic", ".heif", ".heics", ".hif") else ""


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to other software."""
    return name.startswith(".") or name.lower() in (*_LEFTOVERS, *_LEFTOVER_FILES)


def is_image(head: bytes) -> bool:
    """Whether a file with these first bytes is an image of a format that is read."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51")):
        return True
    if head[:4] == b"RIFF" or head[4:8] == b"ftyp":
        return head[8:12] in (b"WEBP", b"avif", b"avis", *((b"heic", b"heix", b"mif1", b"hevc") if HEIC_READ else ()))
    if head[:2] == b"BM":
        return head[6:10] == b"\0\0\0\0"
    return head[4:8] == b"jP  " or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
