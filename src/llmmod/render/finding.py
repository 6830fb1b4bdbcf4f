"""What the certificate found, and the error that it becomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmmod.errors import ConfigError, Problem


@dataclass(frozen=True)
class Finding:
    """Something that the certificate can't vouch for.

    Args:
        check: which of its checks failed.
        found: what was found, as a clause without a full stop.
        conversation: what is special about the conversation that showed it, or which row it is.
        seam: the tokens where it shows, a line for each side; may be empty.
        fatal: whether it makes training wrong; what doesn't is worth knowing.
    """

    check: str
    found: str
    conversation: str = ""
    seam: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return "\n".join([f"{self.found} (seen in: {self.conversation})", self.seam]).rstrip()


@dataclass(frozen=True)
class Refusal(Problem):
    """A finding as a problem of the configuration, with the tokens at the seam below it."""

    seam: str = ""

    def __str__(self) -> str:
        return "\n".join([super().__str__(), self.seam] if self.seam else [super().__str__()])


def refuse(findings: Iterable[Finding], key: str) -> None:
    """Nothing, where no finding is fatal.

    Args:
        findings: of the certificate.
        key: what it is about: `render=<name>`, or `tokenizer`.

    Raises:
        ConfigError: with each finding that is fatal.
    """
    do = f"Mend the {key.partition('=')[0]}, choose another, or train all the same: render.verify=false"
    fatal = [
        Refusal(key, f"{finding.found} (seen in: {finding.conversation})", do=do, seam=finding.seam)
        for finding in findings
        if finding.fatal
    ]
    if fatal:
        raise ConfigError(fatal)
