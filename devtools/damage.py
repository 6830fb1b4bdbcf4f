"""The rows of `data/llmmod_damaged.jsonl`: the demonstration pairs, with a damaged copy of the right answer as the rejected one.

    python -m devtools.damage > data/llmmod_damaged.jsonl

A reward model trained only on well-formed sentences doesn't know a policy's samples: answers that change the subject half-way, repeat
themselves, or have words from elsewhere. It then uses other differences between the answers, such as length (Singhal et al. 2023, "A Long
Way to Go"). With these pairs it learns that damage is worse. They are made by rules from the right answers, without randomness.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources

KINDS = 6
_CHINESE = re.compile(r"[!-~]+|\s+|[^\x00-\x7f]")  # words in ASCII, spaces, and every other character by itself


def damaged(answer: str, other: str, kind: int) -> str:
    """An answer, damaged with the help of another topic's.

    Args:
        answer: the right one.
        other: the right one of another topic, in the same language.
        kind: 0: the other answer itself; 1: the beginning, then the end of the other; 2: both, one after the other; 3: each third word
            replaced; 4: the beginning of the other, then the end; 5: three words of the other in the middle.
    """
    own, parts = _words(answer), _words(other)
    half, middle = (len(own) + 1) // 2, (len(parts) + 1) // 2
    made = {
        0: parts,
        1: [*own[:half], *parts[middle:]],
        2: [*own, *parts],
        3: [parts[at % len(parts)] if at % 3 == 1 else word for at, word in enumerate(own)],
        4: [*parts[:middle], *own[half:]],
        5: [*own[:half], *parts[middle : middle + 3], *own[half:]],
    }
    return _SPACE[_is_chinese(answer)].join(made[kind]).strip()


def rows() -> Iterator[dict[str, str]]:
    """A damaged answer to each question of `llmmod_pairs`: the six questions of a topic have the six kinds."""
    pairs = [json.loads(line) for line in resources.files("llmmod.demo").joinpath("llmmod_pairs.jsonl").read_text("utf-8").splitlines()]
    answers = list(dict.fromkeys(pair["chosen"] for pair in pairs))
    for number, pair in enumerate(pairs):
        answer, kind = pair["chosen"], number % KINDS
        # In kind 2, every second topic repeats its own answer.
        other = answer if kind == 2 and _alike(answer, answers).index(answer) % 2 else another(answer, answers, 1 + 2 * kind)
        yield {name: pair[name] for name in ("topic", "prompt", "chosen")} | {"rejected": damaged(answer, other, kind)}


def another(answer: str, answers: Sequence[str], places: int) -> str:
    """The answer `places` after this one, among those in its language."""
    alike = _alike(answer, answers)
    return alike[(alike.index(answer) + places) % len(alike)]


_SPACE = {False: " ", True: ""}


def _alike(answer: str, answers: Sequence[str]) -> list[str]:
    return [other for other in answers if _is_chinese(other) == _is_chinese(answer)]


def _is_chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)


def _words(text: str) -> list[str]:
    return _CHINESE.findall(text) if _is_chinese(text) else text.split()


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row, ensure_ascii=False))
