"""Files of rows, where a test stands."""

from __future__ import annotations

import json


def write(rows, name="x.json", **options):
    """Rows as JSON, or a text as it is, in the working directory; returns the file's name."""
    with open(name, "w", encoding="utf-8") as file:
        file.write(rows if isinstance(rows, str) else json.dumps(rows, **options))
    return name
