"""From a command line to a configuration: schemas, composing, messages, validation."""

from llmmod.upstream import require_upstream

require_upstream(__name__)  # before its modules import what is private to Hydra
