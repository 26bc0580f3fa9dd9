"""The separator of a text table: a comma, a semicolon, a tab or '|'."""

from __future__ import annotations

import re

_SEPARATORS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*("|$)')


def separator_of(header: str, kind: str) -> str:
    """The most frequent separator outside quotes in the first line of a table; a comma if it has none.

    kind: the suffix of the file's name; '.tsv' is always separated by tabs.
    """
    return "\t" if kind == ".tsv" else max(_SEPARATORS, key=_QUOTED.sub("", header).count)
