"""Rows that are left out, of which there may be millions: how many, and what is wrong with the first few."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmmod.errors import DataError

SHOWN = 3


@dataclass
class Faults:
    """An account of what is wrong with rows.

    Args:
        count: rows.
        first: of the first `SHOWN` of them, in their order.
    """

    count: int = 0
    first: list[DataError] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def add(self, fault: DataError) -> None:
        """Count one."""
        self.count += 1
        self.first += [fault] if len(self.first) < SHOWN else []

    def __iadd__(self, other: Faults) -> Faults:
        self.count += other.count
        self.first = [*self.first, *other.first][:SHOWN]
        return self
