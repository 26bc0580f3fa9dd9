"""Encoded images in columns of Arrow tables: bytes in several layouts, Base64, or the path of a file."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from audit.datasets._selection import is_image as begins_as_image

_LONGEST_PATH = 4096
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
_HEAD = 32  # characters of Base64, which are 24 bytes


@dataclass(frozen=True, slots=True)
class Cell:
    """The content of a cell: `data`, the bytes of a file, or the `path` of a file; both None for an empty or unusable
    cell."""

    data: bytes | None = None
    path: str | None = None


def is_image(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images, or paths of them."""
    if pt.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    if pt.is_dictionary(kind):
        return is_image(kind.value_type)
    return _is_bytes(kind) or _is_list_of_bytes(kind) or is_text(kind)


def is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(test(kind) for test in (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_null))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary, pt.is_null)
    return any(test(kind) for test in tests)


def _is_list_of_bytes(kind: pa.DataType) -> bool:
    lists = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    return any(test(kind) for test in lists) and (pt.is_uint8(kind.value_type) or pt.is_int8(kind.value_type))


def cell_of(scalar: pa.Scalar) -> Cell:
    """The content of one value of such a column."""
    if not scalar.is_valid:
        return Cell()
    if isinstance(scalar, pa.StructScalar):
        return _of_struct(scalar)
    if isinstance(scalar, pa.DictionaryScalar):
        return cell_of(scalar.value)
    if isinstance(scalar, pa.ListScalar):  # of which the other kinds of lists are
        values = scalar.values
        if not _is_list_of_bytes(scalar.type) or values is None or values.null_count:
            return Cell()
        return Cell(values.to_numpy(zero_copy_only=False).tobytes())
    return _of_value(scalar.as_py())


def _of_struct(scalar: pa.StructScalar) -> Cell:
    """Hugging Face's {bytes, path}: the path is used if there are no bytes."""
    names = [field.name for field in scalar.type]
    inner = cell_of(scalar["bytes"]) if "bytes" in names else Cell()
    path = scalar["path"].as_py() if inner.data is None and "path" in names else None
    return Cell(path=path) if isinstance(path, str) and path else Cell(inner.data)


def _of_value(value: Any) -> Cell:
    if isinstance(value, bytes):
        return Cell(value)
    if isinstance(value, str) and value:
        data = decoded(value)
        return Cell(data) if data is not None else Cell(path=value) if len(value) <= _LONGEST_PATH else Cell()
    return Cell()


def decoded(text: str) -> bytes | None:
    """Decode an image from Base64, with or without the prefix 'data:image/...;base64,'; None if the text is not an
    image in Base64."""
    prefix = _DATA_URI.match(text)
    body = text[prefix.end() :] if prefix else text
    try:
        head = base64.b64decode(re.sub(r"\s", "", body[:_HEAD])[: _HEAD // 4 * 4 - 4], altchars=None)
        if prefix is None and not begins_as_image(head):
            return None
        return base64.b64decode(body)
    except (binascii.Error, ValueError):
        return None
