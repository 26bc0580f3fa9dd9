"""Small pictures of images that a run was made on, for the report, which reads no files that a run's folder names.

    python -m pipelines.thumbnails RUN < rows

rows: JSON on standard input, a list of {item_id, role, uri}. Prints a list of base64 of WebP, null where an image
cannot be read any more.
"""

from __future__ import annotations

import base64
import json
import sys

from audit.locations import located
from audit.originals import thumbnails
from audit.results.store import Store
from pipelines.terminal import exit_codes, for_json


def main(run: str) -> None:
    """Answer one list of rows. Ends as commands do where the run's own record cannot be used."""
    with exit_codes():
        rows = json.load(sys.stdin)
        with for_json(True):
            pictures = thumbnails(Store(located(run)), rows)
        json.dump([None if data is None else base64.b64encode(data).decode() for data in pictures], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
