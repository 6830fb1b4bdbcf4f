"""The chat template and tokenizer of a saved model, for programs that write a prompt as one string.

The jinja chat template writes the same text as the render. Programs encode that text as one string and recognise special tokens in it, so
the template spells every token, BOS included. Two things differ from the render: if a user's text spells a special token, it becomes that
token, and if an answer begins or ends with white space, the tokens there may merge. The certificate compares the two.

ChatGLM2's code puts `[gMASK]` and `sop` before a text by their ids and never looks for tokens in a text: "sop" is a part of "gossop". A
chat template can only write text. A saved tokenizer therefore spells them `[gMASK]` and `<sop>`, as GLM-4 does, and recognises them in a
text. Their ids stay the same.
"""

from __future__ import annotations

import copy
import json
from itertools import groupby
from string import Template as Text
from typing import TYPE_CHECKING, Any

from llmmod.config.schema.base import Bos
from llmmod.render.segments import RESPELT, Part, Render, Slot

if TYPE_CHECKING:
    from llmmod.render.template import Template

_OWN = ("bos_token", "eos_token", "unk_token", "pad_token")

# A jinja loop can't set a variable outside of itself, but it can set the attributes of a namespace.
_TEMPLATE = Text("""\
{%- set ns = namespace(system=$system, asked=[], query='', text='', round=$round, start=0) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set ns.system = messages[0]['content'] -%}
    {%- set ns.start = 1 -%}
{%- endif -%}
{%- for tool in tools or [] -%}
    {%- set ns.system = ns.system ~ ('\\n' if ns.system else '') ~ (tool | tojson) -%}
{%- endfor -%}
$skip
{%- set turns = messages[ns.start:] -%}
{%- for message in turns -%}
    {%- set ns.text = message['content'] or '' -%}
    {%- for call in message['tool_calls'] or [] -%}
        {%- set ns.text = ns.text ~ ('\\n' if ns.text else '') ~ (call | tojson) -%}
    {%- endfor -%}
    {%- if message['role'] == 'assistant' -%}
        $answer
        {%- set ns.round = ns.round + 1 -%}
        {%- set ns.asked = [] -%}
    {%- else -%}
        {%- set ns.asked = ns.asked + [ns.text] -%}
        {%- if loop.last or turns[loop.index]['role'] == 'assistant' -%}
            {%- set ns.query = ns.asked | join('\\n') -%}
            $question
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
""")
_SKIP_HISTORY = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' and not loop.last -%}
        {%- set ns.start = loop.index -%}
    {%- endif -%}
{%- endfor -%}"""


def write_chat_template(template: Template) -> str:
    """The chat template of a render.

    It writes the generation prompt after every question, whether or not `add_generation_prompt` is set: a render's parts don't say which of
    their texts that is. `tools` and `tool_calls` are written as JSON.
    """
    return _Writer(template).write()


class _Writer:
    def __init__(self, template: Template) -> None:
        self.template, self.conf = template, template.conf

    def write(self) -> str:
        return _TEMPLATE.substitute(
            system=_literal(self.conf.system),
            round=self.conf.first_round,
            skip="" if self.conf.use_history else _SKIP_HISTORY,
            answer=self._answer(),
            question=self._query() + self._question(),
        ).replace("\n\n", "\n")

    def _answer(self) -> str:
        strip = "{%- set ns.text = ns.text | trim -%}" if self.conf.strip else ""
        whole = self._written(self.template.response)
        if not self.conf.efficient_eos:
            return strip + whole
        return strip + _either("loop.last", whole, self._written(self.template.response[:-1]))

    def _query(self) -> str:
        """Statements that change the query as the render does."""
        strip = "{%- set ns.query = ns.query | trim -%}" if self.conf.strip else ""
        if not self.conf.system_in_query:
            return strip
        with_system, without = (self._set_query([*self._prefix(system), Slot("query")]) for system in ("x", ""))
        return _either(self._is_first(), _either("ns.system", with_system, without), "") + strip

    def _question(self) -> str:
        prompt, sep, each_turn = self.template.prompt_part, self.template.sep, self.conf.bos == Bos.each_turn
        prefixes = ([], []) if self.conf.system_in_query else (self._prefix("x"), self._prefix(""))
        with_system, without = (self._written(self._begun([*prefix, *prompt], True)) for prefix in prefixes)
        return _either(self._is_first(), _either("ns.system", with_system, without), self._written([*sep, *self._begun(prompt, each_turn)]))

    def _is_first(self) -> str:
        return f"ns.round == {self.conf.first_round}"

    def _prefix(self, system: str) -> Part:
        """The text before the first turn, which depends on whether the system text is empty."""
        if not system and self.conf.empty_prefix is not None:
            return self.template.empty_prefix
        prefix = [piece for piece in self.template.prefix if system or piece != Slot("system")]
        return [*prefix, *self.template.sep] if prefix and not self.conf.system_in_query else prefix

    def _begun(self, part: Part, wanted: bool) -> Part:
        bos = self.template.bos_id
        return [bos, *part] if wanted and bos is not None and list(part[:1]) != [bos] else part

    def _set_query(self, part: Part) -> str:
        return "" if part == [Slot("query")] else f"{{%- set ns.query = {self._expression(part)} -%}}"

    def _written(self, part: Part) -> str:
        return f"{{{{- {self._expression(part)} -}}}}" if part else ""

    def _expression(self, part: Part) -> str:
        """A part as a jinja expression, neighbouring texts and tokens joined into one string."""
        variables = {"query": "ns.query", "system": "ns.system", "response": "ns.text", "idx": "ns.round"}
        pieces: list[str] = []
        for is_slot, group in groupby(part, key=lambda piece: isinstance(piece, Slot)):
            if is_slot:
                pieces += [variables[piece.name] for piece in group if isinstance(piece, Slot)]
            else:
                texts = (self.template.token_texts[piece] if isinstance(piece, int) else str(piece) for piece in group)
                pieces.append(_literal("".join(texts)))
        return " ~ ".join(pieces)


def _either(condition: str, yes: str, no: str) -> str:
    otherwise = f"{{%- else -%}}{no}" if no else ""
    return yes if yes == no else f"{{%- if {condition} -%}}{yes}{otherwise}{{%- endif -%}}"


def _literal(text: str) -> str:
    """A jinja string. JSON's escapes are a subset of Python's."""
    return json.dumps(text, ensure_ascii=False)


def exported(render: Render, tokenizer: Any) -> tuple[Any, str]:
    """The tokenizer to save, and the chat template that writes the same as the render.

    Args:
        render: the render used in training.
        tokenizer: the run's tokenizer. It is returned as it is unless some of its tokens have to be spelt differently.
    """
    spelt = getattr(render, "token_texts", None)
    if spelt is None or (other := _readable(tokenizer)) is tokenizer:
        return tokenizer, render.chat_template()
    writer: Any = copy.copy(render)
    writer.token_texts = dict(zip(spelt, other.convert_ids_to_tokens(list(spelt)), strict=True))
    return other, writer.chat_template()


def with_template(tokenizer: Any, chat_template: str) -> Any:
    """A copy of a tokenizer with another chat template. The copy of a fast one shares its vocabulary: 49,000 tokens take 0.1 s to copy."""
    shared = {id(tokenizer.backend_tokenizer): tokenizer.backend_tokenizer} if tokenizer.is_fast else {}
    copied = copy.deepcopy(tokenizer, shared)
    copied.chat_template = chat_template
    return copied


def _readable(tokenizer: Any) -> Any:
    """A tokenizer with the same ids that recognises its special tokens in a text; the same object if it already does."""
    has = set(RESPELT) <= set(getattr(tokenizer, "added_tokens_encoder", ()))
    if not has or not tokenizer.is_fast or not tokenizer.split_special_tokens:
        return tokenizer
    own = {name: getattr(tokenizer, name) for name in _OWN if getattr(tokenizer, name)}
    others = [name for name in tokenizer.added_tokens_encoder if name not in own.values()]
    kept = ("model_input_names", "padding_side", "model_max_length", "name_or_path")
    rust = tokenizer.backend_tokenizer
    return type(tokenizer)(
        tokenizer_object=type(rust).from_str(json.dumps(_respelt(json.loads(rust.to_str())))),
        extra_special_tokens=[RESPELT.get(name, name) for name in others],
        **own,
        **{name: getattr(tokenizer, name) for name in kept},
    )


def _respelt(made: Any) -> Any:
    """A tokenizer.json with new spellings in its vocabulary, its added tokens and the tokens that begin a text."""
    if isinstance(made, dict):
        return {RESPELT.get(key, key): _respelt(value) for key, value in made.items()}
    if isinstance(made, list):
        return [_respelt(value) for value in made]
    return RESPELT.get(made, made) if isinstance(made, str) else made
