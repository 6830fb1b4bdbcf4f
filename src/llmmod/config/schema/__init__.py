"""The schemas: a dataclass for each part of a configuration."""
