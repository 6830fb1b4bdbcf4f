"""The key of a dataset's examples: made of all that decides them, and of nothing else.

Not in it: where files lie and what they are called, how many processes work, and everything about the training.
"""

from __future__ import annotations

import logging
from typing import Any

from llmmod.data.cache.identity import (
    NoIdentityError,
    code_identity,
    digest,
    format_identity,
    render_identity,
    rows_identity,
    tokenizer_identity,
)
from llmmod.data.examples import Making
from llmmod.data.forms.ranked import Compared, Judged
from llmmod.data.reading.readings import Readings

log = logging.getLogger(__name__)


def cache_key(making: Making) -> str | None:
    """32 hex digits; None in a rehearsal, or where a part has no identity."""
    if making.smoke:
        return None
    try:
        return digest(_identity(making))
    except NoIdentityError as error:
        log.info("%s: the examples are not kept in the cache: %s", making.opened.conf.name, error)
        return None


def _identity(making: Making) -> dict[str, Any]:
    opened, tokenizing = making.opened, making.tokenizing
    conf, document = opened.conf, opened.kind == "document"
    return {
        "kind": opened.kind,
        "rows": _rows(opened.training),
        "held out": [conf.val_size, making.seed] if conf.val_size else _rows(opened.validating),
        "format": format_identity(conf.format) if not isinstance(conf.format, str) else None,
        "system": conf.system,
        "on_bad_row": conf.on_bad_row,
        "cutoff": [tokenizing.limit, None if document else tokenizing.policy],
        "mask_prompt": tokenizing.mask_prompt if opened.kind == "conversation" else None,
        "values": {name: kind.__name__ for name, kind in (opened.training.values or {}).items()},
        "ranked": [conf.ranked, tokenizing.form.weighs] if isinstance(tokenizing.form, Compared | Judged) else None,
        "blocks": [conf.packing, conf.drop_last_block] if document else None,
        "render": None if document else render_identity(tokenizing.render),
        "tokenizer": tokenizer_identity(tokenizing.tokenizer),
        "code": code_identity(),
    }


def _rows(readings: Readings | None) -> Any:
    """The rows and what reads them; with their places where bad ones are left out, for the account then names the first of them."""
    if readings is None:
        return None
    places = readings.source.name if readings.skip else None
    read_as = [readings.format.name, dict(readings.format.columns)]
    return {"content": rows_identity(readings.source), "limit": readings.limit, "places": places, "format": read_as}
