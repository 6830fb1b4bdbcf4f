"""Commands that run in the tests' process use one thread."""

from __future__ import annotations

from toy import one_thread

__all__ = ["one_thread"]
