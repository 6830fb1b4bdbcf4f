"""What runs in this process runs on one thread."""

from __future__ import annotations

from toy import one_thread

__all__ = ["one_thread"]
