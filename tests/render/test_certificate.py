"""Every shipped render passes; every known mistake, added to a passing render, is found and shown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import llmmod.render.certificate
from llmmod.errors import ConfigError
from llmmod.render.auto import AutoTemplate
from llmmod.render.certificate import certify
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import Encoded, encode
from llmmod.render.findings import Finding, refuse
from llmmod.render.segments import Segment, Slot
from llmmod.render.template import Template

RENDERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "render").glob("*.yaml") if path.stem != "auto")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize("kind", ["byte_level", "dummy_prefix", "dummy_prefix_first"])
@pytest.mark.parametrize("name", RENDERS)
def test_a_shipped_render_passes(request, shipped, name, kind):
    tokenizer = request.getfixturevalue(kind)
    findings = certify(Template(tokenizer=tokenizer, **shipped(name)), tokenizer)
    assert [str(finding) for finding in findings if finding.fatal] == []
    assert [finding.check for finding in findings] == (["system"] if name == "vanilla" else [])


def test_the_tokenizers_own_chat_template_passes(smollm2, shipped):
    assert certify(AutoTemplate(tokenizer=smollm2, **shipped("auto")), smollm2) == []


def test_chatml_passes_with_smollm2_and_is_known_to_differ_in_the_default_system_text_alone(smollm2, shipped):
    [finding] = certify(Template(tokenizer=smollm2, **shipped("chatml")), smollm2)
    assert (finding.check, finding.fatal, finding.conversation) == ("own", False, "one question")
    own = {**shipped("chatml"), "system": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
    assert certify(Template(tokenizer=smollm2, **own), smollm2) == []


class CharacterByCharacter(Template):
    """LLaMA-Efficient-Tuning passed list(answer) to the tokenizer."""

    def examples(self, conversation, *, mask_prompt=True):
        split = lambda s: [s._replace(text=c) for c in s.text] if s.trained and s.text else [s]  # noqa: E731
        return [[piece for s in example for piece in split(s)] for example in super().examples(conversation)]


class TerminatorUntrained(Template):
    """The terminator isn't trained (axolotl 3754, TRL 3091)."""

    def examples(self, conversation, *, mask_prompt=True):
        return [[*example[:-1], example[-1]._replace(trained=False)] for example in super().examples(conversation)]


class RoundsFromZero(Template):
    """LLaMA-Efficient-Tuning trained ChatGLM2 from round 0 on; the model's own chat starts with round 1."""

    def examples(self, conversation, *, mask_prompt=True):
        self.conf.first_round = 0
        try:
            return super().examples(conversation)
        finally:
            self.conf.first_round = 1


class SystemOutside(Template):
    """LLaMA-2's system text before the first [INST], but only in training."""

    def examples(self, conversation, *, mask_prompt=True):
        self.conf.system_in_query = False
        try:
            return super().examples(conversation)
        finally:
            self.conf.system_in_query = True


class ExportedSystemOutside(Template):
    """The same mistake in the template that serving uses (LLaMA-Factory 10777, ms-swift 5880)."""

    def chat_template(self):
        return super().chat_template().replace("<s>[INST] ", "[INST] <s>")


class SpaceEndsThePrompt(Template):
    """The prompt ends with `Assistant: ` and the answer is `Yes`; in one text, the token would be ` Yes`."""

    def __init__(self, **conf):
        super().__init__(**conf)
        self.prompt_part, self.response = [*self.prompt_part, " "], self.response[1:]


class SpecialTokensInTexts(Template):
    """The conversation was encoded as one string, so a user's text could end the turn."""

    def _write(self, turns, system, mask_prompt):
        end = self.terminator
        found = []
        for s in super()._write(turns, system, mask_prompt):
            for number, text in enumerate((s.text or "").split("<|im_end|>")):
                found += [Segment(None, end, s.trained)] * bool(number) + [s._replace(text=text)] * (s.text is not None)
            found += [s] * (s.text is None)
        return found


class StopsAtEosAlone(Template):
    """Chat stopped at eos, not at the render's stop words."""

    def __init__(self, **conf):
        super().__init__(**conf)
        self.stop_ids = self.stop_ids[-1:]


class StopsInTheMidst(Template):
    """A stop word that every answer begins with."""

    def __init__(self, tokenizer, **conf):
        super().__init__(tokenizer=tokenizer, **conf)
        self.response = [tokenizer.convert_tokens_to_ids("<bot>"), *self.response]
        self.stop_ids, self.token_texts[self.response[0]] = [*self.stop_ids, self.response[0]], "<bot>"


class PlaceholdersInTexts(Template):
    """`{{idx}}` in a user's text was replaced."""

    def _texts(self, turn, first):
        return {name: text.replace("{{idx}}", "1") for name, text in super()._texts(turn, first).items()}


class BeginsTwice(Template):
    """The render writes BOS, and the template writes it again."""

    def _write(self, turns, system, mask_prompt):
        found = super()._write(turns, system, mask_prompt)
        return [found[0], *found]


class HistoryUntrained(Template):
    """Only the last answer of a conversation had labels, although all were requested."""

    def examples(self, conversation, *, mask_prompt=True):
        [example] = super().examples(conversation)
        last = max(index for index, segment in enumerate(example) if segment.text and segment.trained)
        return [[segment._replace(trained=segment.trained and index >= last) for index, segment in enumerate(example)]]


class PromptTrained(Template):
    """Questions of the history had labels."""

    def examples(self, conversation, *, mask_prompt=True):
        return super().examples(conversation, mask_prompt=False)


class ExportedWithoutNewline(Template):
    """The exported template leaves out a line break between rounds."""

    def chat_template(self):
        return super().chat_template().replace('"\\n<|im_start|>user', '"<|im_start|>user')


class ExportedBroken(Template):
    def chat_template(self):
        return "{{ raise_exception('no') }}"


PLANTED = [
    (CharacterByCharacter, "chatml", "pieces", "an answer isn't encoded as the tokenizer encodes its text"),
    (TerminatorUntrained, "chatml", "labels", "the terminator <|im_end|>(5) isn't trained, so generation won't learn to stop"),
    (RoundsFromZero, "chatglm2", "prompt", "training sees another prompt than inference asks with"),
    (SystemOutside, "llama2", "prompt", "training sees another prompt than inference asks with"),
    (ExportedSystemOutside, "llama2", "exported", "the exported chat template gives other ids than the prompt"),
    (SpaceEndsThePrompt, "default", "space", "the space that ends the prompt belongs to the answer's first token"),
    (SpecialTokensInTexts, "chatml", "injection", "a text became a special token"),
    (StopsAtEosAlone, "chatml", "terminator", "an answer ends with <|im_end|>(5), where generation doesn't stop; it stops at </s>(2)"),
    (StopsInTheMidst, "chatml", "terminator", "generation stops at <bot>(7), before an answer's end"),
    (PlaceholdersInTexts, "chatml", "texts", "a text of the user isn't written as it is: '{{idx}} {{query}} {{system}}'"),
    (BeginsTwice, "default", "bos", "the beginning token stands twice: <s>(1) <s>(1)"),
    (HistoryUntrained, "chatml", "answers", "what is trained of a conversation is not its answers"),
    (PromptTrained, "chatml", "answers", "what is trained of a conversation is not its answers"),
    (ExportedWithoutNewline, "chatml", "exported", "the exported chat template gives other ids than the prompt"),
    (ExportedBroken, "chatml", "exported", "the exported chat template gives an error: no"),
]


@pytest.mark.parametrize(("planted", "name", "check", "found"), PLANTED, ids=[planted.__name__ for planted, *_ in PLANTED])
def test_a_planted_mistake_is_caught(byte_level, shipped, planted, name, check, found):
    fields = shipped(name)
    assert certify(Template(tokenizer=byte_level, **fields), byte_level) == []
    findings = {finding.check: finding for finding in certify(planted(tokenizer=byte_level, **fields), byte_level)}
    assert check in findings
    assert findings[check].fatal
    assert findings[check].found.startswith(found)


def test_a_shift_of_labels_is_caught(byte_level, shipped, monkeypatch):
    def shifted(examples, tokenizer):
        return [Encoded(ids, [-100, *labels[:-1]]) for ids, labels in encode(examples, tokenizer)]

    monkeypatch.setattr(llmmod.render.certificate, "encode", shifted)
    findings = certify(Template(tokenizer=byte_level, **shipped("chatml")), byte_level)
    assert {"labels": True, "answers": True}.items() <= {finding.check: finding.fatal for finding in findings}.items()


def test_an_answer_without_a_terminator_is_caught(byte_level, shipped):
    template = Template(tokenizer=byte_level, **{**shipped("default"), "response": ["{{response}}"]})
    assert template.response[-1] == Slot("response")
    assert "terminator" in {finding.check for finding in certify(template, byte_level) if finding.fatal}


@pytest.mark.parametrize("conf", [{"train_on": "last"}, {"use_history": False}], ids=["last", "no-history"])
def test_what_a_render_is_asked_to_leave_untrained_is_no_mistake(byte_level, shipped, conf):
    assert certify(Template(tokenizer=byte_level, **{**shipped("chatml"), **conf}), byte_level) == []


def test_tokens_that_one_string_can_not_hold_are_noted(shipped, slow_chatglm2):
    from copy import deepcopy

    class Unwritable:  # ChatGLM2's tokenizer must not find the token `sop` in a text: `gossip` contains it
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text, **named):
            return self.tokenizer(text, **{**named, "split_special_tokens": True})

    tokenizer = deepcopy(slow_chatglm2)
    tokenizer.add_tokens(["[gMASK]", "sop"])
    [finding] = certify(Template(tokenizer=tokenizer, **shipped("chatglm2")), Unwritable(tokenizer))
    assert (finding.check, finding.fatal) == ("unwritable", False)
    assert finding.found == "a chat template can't write [gMASK](3000) sop(3001): programs that use the exported one must add it"


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_a_token_that_swallows_the_white_space_beside_it_is_noted(byte_level, shipped, side):
    from copy import deepcopy

    from tokenizers import AddedToken

    tokenizer = deepcopy(byte_level)
    tokenizer.add_tokens([AddedToken("<x>", special=True, **{side: True})])  # InternLM's `</s>` does this on both sides
    fields = {**shipped("default"), "response": ["{{response}}", {"token": "<x>"}], "sep": ["\n"], "stop_words": ["<x>"]}
    if side == "lstrip":
        fields |= {"response": ["{{response}}", "\n", {"token": "<x>"}], "sep": []}
    [finding] = certify(Template(tokenizer=tokenizer, **fields), tokenizer)
    assert (finding.check, finding.fatal) == ("unwritable", False)
    assert "can't write <x>(" in finding.found


def test_rows_of_the_data_are_checked_too_and_named(byte_level, shipped):
    class Forgetful(Template):
        def _texts(self, turn, first):
            return {name: text.replace("secret", "") for name, text in super()._texts(turn, first).items()}

    row = Conversation([Message("user", "Tell me."), Message("assistant", "A secret.")])
    findings = certify(Forgetful(tokenizer=byte_level, **shipped("chatml")), byte_level, {"a.json, row 7": row})
    assert [(finding.check, finding.conversation) for finding in findings] == [("texts", "a.json, row 7")]


def test_definitions_of_tools_that_are_left_out_are_noted(byte_level, shipped):
    row = Conversation([Message("user", "a"), Message("assistant", "b")], [{"type": "function", "function": {"name": "now"}}])
    [finding] = certify(AutoTemplate(tokenizer=byte_level, template=CHATML), byte_level, [row])
    assert (finding.check, finding.found, finding.fatal) == ("tools", "this render leaves the definitions of tools out", False)
    assert certify(Template(tokenizer=byte_level, **shipped("chatml")), byte_level, [row]) == []


def test_rows_that_are_not_trained_are_passed_over(byte_level, shipped):
    rows = [
        Conversation([Message("user", "a")]),
        Conversation([Message("assistant", "a")]),
        Conversation([Message("user", "a"), Message("assistant", "b", train=False), Message("user", "c"), Message("assistant", "d")]),
        Conversation([Message("user", "a"), Message("assistant", "b", train=False)]),
    ]
    assert certify(Template(tokenizer=byte_level, **shipped("chatml")), byte_level, rows) == []


def test_a_template_that_refuses_everything_is_not_certified(byte_level):
    class RefusesSystem(AutoTemplate):
        def examples(self, conversation, *, mask_prompt=True):
            from llmmod.errors import DataError, Problem

            raise DataError(Problem("a conversation", "no"))

    findings = certify(RefusesSystem(tokenizer=byte_level, template=CHATML), byte_level)
    assert [str(finding) for finding in findings] == ["the render refuses every conversation (seen in: all of them)"]


def test_a_refusal_lists_what_is_fatal_with_the_tokens_at_the_seam(byte_level, shipped):
    findings = certify(RoundsFromZero(tokenizer=byte_level, **shipped("chatglm2")), byte_level)
    note = Finding("own", "something to know", fatal=False)
    with pytest.raises(ConfigError) as error:
        refuse([*findings, note], "render=chatglm2")
    assert re.sub(r"\(\d+\)", "", str(error.value)) == (
        "render=chatglm2: training sees another prompt than inference asks with (seen in: one question)."
        " Fix the render, choose another, or train anyway: render.verify=false.\n"
        "   training: … R ou n d ▶ ' ' 0 ] '\\n' '\\n' éĹ …\n"
        "  inference: … R ou n d ▶ ' 1' ] '\\n' '\\n' éĹ ® …"
    )


def test_findings_that_are_not_fatal_are_not_refused():
    finding = Finding("own", "something to know")
    with pytest.raises(ConfigError):
        refuse([finding], "render=chatml")
    assert refuse([replace(finding, fatal=False)], "render=chatml") is None
