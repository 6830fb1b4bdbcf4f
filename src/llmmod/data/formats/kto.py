"""An answer and whether it is good, for kto: `prompt`, `completion` and `label` (trl), or turns that end with the answer.

A prompt is read as in alpaca, or from a list of turns; the answer is a text or a turn. Good and bad answers don't have to be in pairs. A
list of answers without a label is ranked, best first, as for reward models; `ranked_labels` decides which of them are good.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmmod.data.rows import columns as shared
from llmmod.data.rows.records import PromptRecord, Row, RowError, described, present
from llmmod.data.rows.turns import read_tools

KIND = "judgement"
ROLES = (*shared.PROMPT_ROLES, "response", "label")
REQUIRED = ("response", "label")
USUAL: Mapping[str, tuple[str, ...]] = {
    **shared.USUAL,
    "response": ("completion", "output", "response", "answer"),
    "label": ("label", "kto_tag"),
}
_LABELS = {"true": True, "1": True, "false": False, "0": False}  # as CSV files spell them


def find_columns(available: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
    """Role -> column; None if rows don't have an answer with a label or a rank."""
    answers = dict(given)
    for role in REQUIRED:
        name = next((name for name in USUAL[role] if name in available and name not in answers.values()), None)
        if role not in answers and name is not None:
            answers[role] = name
    found = shared.find_prompt_columns(available, given, answers)
    return found if found and ("response" in found or ("label" in found and "messages" in found)) else None


def recognises(head: Sequence[Row], columns: Mapping[str, str]) -> bool:
    """Whether the first rows have this format, by the names of the columns or because the first answer is a list."""
    return "label" in columns or shared.holds_ranked(head, columns["response"])


def read(row: Row, columns: Mapping[str, str]) -> PromptRecord:
    """The prompt of a row, its answer, and `label`; or its answers, best first.

    Raises:
        RowError: prompt, answer or label is missing or something else.
    """
    if "label" not in columns:
        if not shared.holds_ranked([row], columns["response"]):
            do = "Name its column: dataset.columns.label=…; a list of answers, best first, doesn't need one"
            raise RowError("an answer without a label", column=columns["response"], do=do)
        return shared.read_ranked(row, columns, columns["response"])
    messages = shared.read_prompt(row, columns)
    name = columns.get("response")
    if name is None:
        messages, answer = messages[:-1], shared.only_answer(messages[-1:], columns["messages"])
    else:
        answer = shared.only_answer(shared.read_answer(row, name), name)
    prompt = shared.as_prompt(messages, shared.prompt_column(columns), tools=read_tools(row, columns))
    value = present(row, columns["label"])
    label = value == 1 if value in (0, 1) else _LABELS.get(str(value).strip().lower())  # True == 1 == 1.0
    if label is None:
        raise RowError(f"{described(value)} where true or false is expected", column=columns["label"])
    return PromptRecord(prompt, [answer], {"label": label})
