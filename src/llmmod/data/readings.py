"""Conversations from a source's rows: bad ones end it or are left out, each with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from llmmod.data.choose import Format
from llmmod.data.faults import Faults
from llmmod.data.row import Place, RowError
from llmmod.data.sources import Source
from llmmod.errors import DataError, Problem
from llmmod.render.conversation import Conversation, Message


@dataclass(frozen=True)
class Readings:
    """The conversations of a source; it can be read again and again.

    Args:
        source: where the rows come from.
        format: what reads them.
        skip: whether bad rows are left out.
        system: the system text of conversations that have none; None: theirs stays unset.
        limit: conversations, at most; None: all.
    """

    source: Source
    format: Format
    skip: bool = False
    system: str | None = None
    limit: int | None = None

    def __iter__(self) -> Iterator[tuple[Place, Conversation]]:
        return self.read(Faults())

    def read(self, bad: Faults) -> Iterator[tuple[Place, Conversation]]:
        """The conversations; what is wrong with the rows that are left out is added to `bad` on the way.

        Raises:
            DataError: a bad row where none may be left out.
        """
        return islice(self._all(bad), self.limit)

    def survey(self) -> tuple[int, Faults]:
        """How many conversations there are, and what is wrong with the rows that are left out.

        Raises:
            DataError: a bad row where none may be left out, or no good one.
        """
        bad = Faults()
        count = sum(1 for _ in self.read(bad))
        if not count:
            skipped = f"none of its {len(bad)} rows can be used; the first: {bad.first[0]}" if bad else "no rows"
            raise DataError(Problem(self.source.name, skipped))
        return count, bad

    def _all(self, bad: Faults) -> Iterator[tuple[Place, Conversation]]:
        for place, row in self.source:
            try:
                if isinstance(row, RowError):
                    raise row
                conversation: Conversation = self.format.read(row)
            except RowError as error:
                if not self.skip:
                    raise error.at(place) from error.__cause__
                bad.add(error.at(place))
                continue
            yield place, self._with_system(conversation)

    def _with_system(self, conversation: Conversation) -> Conversation:
        if self.system is None or conversation.system is not None:
            return conversation
        return replace(conversation, messages=[Message("system", self.system), *conversation.messages])
