"""Files of rows in a test's working directory."""

from __future__ import annotations

import json


def write(rows, name="x.json", **options):
    """Write rows as JSON, or a text unchanged, to the working directory; returns the file's name."""
    with open(name, "w", encoding="utf-8") as file:
        file.write(rows if isinstance(rows, str) else json.dumps(rows, **options))
    return name
