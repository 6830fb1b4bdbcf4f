"""A mix of datasets: the order of its examples, where it ends, and the settings that each dataset keeps."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from llmmod.config.schema.base import MixStopping
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.load import load_splits
from llmmod.data.dataset.splits import take_turns
from llmmod.errors import ConfigError

FIRST, ALL = MixStopping.first_exhausted, MixStopping.all_exhausted


def turns(*texts, weights, stopping):
    return "".join(take_turns([lambda text=text: iter(text) for text in texts], weights, stopping))


@pytest.mark.parametrize(
    ("texts", "weights", "stopping", "expected"),
    [
        (["abc", "xyz"], [1, 1], FIRST, "axbycz"),
        (["abcdef", "xyz"], [2, 1], FIRST, "abxcdyefz"),
        # It is a's turn, but a is exhausted.
        (["ab", "xyz"], [1, 1], FIRST, "axby"),
        (["ab", "xyz"], [1, 1], ALL, "axbyaz"),
        (["a", "xyz"], [1, 1], ALL, "axayaz"),
        (["abcd", "x"], [3, 1], FIRST, "abcxd"),
        (["abc"], [0.5], ALL, "abc"),
        # By hand: after n turns of a and m of x, a is next where (n + 1) / 0.75 <= (m + 1) / 0.25.
        (["aaaaaa", "xx"], [0.75, 0.25], FIRST, "aaaxaaax"),
    ],
)
def test_whose_turn_it_is(texts, weights, stopping, expected):
    assert turns(*texts, weights=weights, stopping=stopping) == expected


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 2, 1], [0.7, 0.2, 0.1]], ids=str)
def test_every_prefix_has_each_source_s_share(weights):
    seen = "".join(islice(take_turns([lambda c=c: iter(c * 1000) for c in "abc"], weights, FIRST), 200))
    for length in range(1, 201):
        for name, weight in zip("abc", weights, strict=True):
            assert abs(seen[:length].count(name) - length * weight / sum(weights)) <= 1.5


ALPACA = [{"instruction": f"q{n}", "output": f"alpaca {n}"} for n in range(6)]
CHATS = [{"chat": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"chat {n}"}]} for n in range(9)]
MIX = {
    "chats": {"path": "chats.json", "format": "messages", "columns": {"messages": "chat"}, "weight": 2.0},
    "alpaca": {"path": "alpaca.json", "system": "Be brief."},
}


@pytest.fixture
def load(tmp_path, monkeypatch, chatml, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("alpaca", ALPACA), ("chats", CHATS)):
        with open(f"{name}.json", "w") as file:
            json.dump(rows, file)

    def loaded(mix=MIX, kind="conversation", **conf):
        conf = DatasetConf(name="both", mix=mix, **conf)
        return load_splits(conf, render=chatml, tokenizer=tiny_tokenizer, seed=0, hub=HubConf(), kind=kind)

    return loaded


@pytest.fixture
def answers(trained_text):
    return lambda examples: [trained_text(example).removesuffix("<|im_end|>") for example in examples]


# The mix ends after the ninth chat: chats are next, and they are exhausted.
MIXED = [f"chat {n}" for n in range(9)]
for place in (2, 5, 8, 11):
    MIXED.insert(place, f"alpaca {place // 3}")


def test_each_has_its_own_format_and_columns_and_system_text(load, answers, tiny_tokenizer):
    splits = load()
    assert answers(splits.train) == MIXED
    systems = ["Be brief." in tiny_tokenizer.decode(example["input_ids"]) for example in splits.train]
    assert systems == [answer.startswith("alpaca") for answer in MIXED]
    assert splits.eval is None


def test_streamed_it_is_the_same(load, answers):
    assert answers(islice(load(streaming=True, buffer_size=1).train, 15)) == [*MIXED, "chat 0", "chat 1"]


def test_all_exhausted_restarts_the_shorter_dataset(load, answers):
    mixed = answers(load(mix_stopping=ALL).train)
    assert mixed[:13] == MIXED
    assert mixed[12:] == ["chat 8", "chat 0", "alpaca 4", "chat 1", "chat 2", "alpaca 5"]


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_is_taken_from_each(load, answers, streaming):
    splits = load(MIX | {"alpaca": MIX["alpaca"] | {"val_size": 2}}, val_size=3, streaming=streaming)
    held = [conversation.messages[-1].content for conversation in splits.eval_conversations]
    assert answers(splits.eval) == held
    assert [answer.split()[0] for answer in held] == ["chat"] * 3 + ["alpaca"] * 2
    assert not set(held) & set(answers(islice(splits.train, 8)))


def test_the_report_counts_the_trained_examples(load):
    for stopping in (FIRST, ALL):
        splits = load(mix_stopping=stopping)
        labels = [label for example in splits.train for label in example["labels"]]
        report = splits.report
        assert report.train.examples == len(splits.train)
        assert report.tokens == len(labels)
        assert report.trained_tokens == len(labels) - labels.count(-100)
    assert report.rows == 15
    assert report.lines()[0] == "both: 15 rows of chats (12 examples), alpaca (6 examples), read as messages, alpaca"


@pytest.mark.parametrize(
    ("mix", "conf", "message"),
    [
        ({"a": {"path": "none.json"}}, {}, "dataset.mix.a.path: no such file or directory: 'none.json'"),
        ({"a": {"path": "chats.json", "format": "alpaca"}}, {}, "dataset.mix.a.columns: the format alpaca needs a column"),
        (MIX, {"path": "chats.json"}, "dataset.path: not read with dataset.mix. Set dataset.mix.<name>.path."),
        ({"a": {"path": "chats.json", "val_size": 1, "val_files": "alpaca.json"}}, {}, "dataset.mix.a.val_size and dataset"),
    ],
    ids=["file", "columns", "beside", "two ways"],
)
def test_errors_name_the_key_that_was_typed(load, mix, conf, message):
    with pytest.raises(ConfigError) as error:
        load(mix, **conf)
    assert str(error.value).startswith(message)


PROMPTS = {
    "kilos": [{"prompt": f"kilos {n}", "answer": "x", "level": n, "unit": "kg"} for n in range(4)],
    "halves": [{"prompt": f"halves {n}", "level": n + 0.5} for n in range(4)],
    "words": [{"prompt": f"words {n}", "level": "hard", "unit": "m"} for n in range(4)],
    "several": [{"prompt": f"several {n}", "level": n if n else "none"} for n in range(4)],
    "plain": [{"prompt": f"plain {n}"} for n in range(4)],
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("names", "first", "second"),
    [
        (["kilos", "plain"], {"level": 1, "unit": "kg"}, {"level": None, "unit": None}),
        (["plain", "kilos"], {"level": None, "unit": None}, {"level": 1, "unit": "kg"}),
        (["kilos", "halves"], {"level": 1.0, "unit": "kg"}, {"level": 1.5, "unit": None}),
        (["kilos", "words"], {"unit": "kg"}, {"unit": "m"}),
        (["kilos", "several"], {"unit": "kg"}, {"unit": None}),
    ],
    ids=["lacking", "lacking first", "whole and other numbers", "numbers and texts", "of several kinds"],
)
def test_prompts_of_different_datasets_carry_the_same_columns(load, caplog, names, first, second, streaming):
    for name, rows in PROMPTS.items():
        with open(f"{name}.json", "w") as file:
            json.dump(rows, file)
    mix = {name: {"path": f"{name}.json"} for name in names}
    found = load(mix, kind="prompt", streaming=streaming, buffer_size=1).train
    rows = [{name: row[name] for name in row if name not in ("prompt_ids", "prompt", "answer")} for row in islice(found, 2, 4)]
    assert rows == [first, second]
    assert [type(row["level"]) for row in rows if "level" in row] == [type(row["level"]) for row in (first, second) if "level" in row]
    told = "reward functions don't get columns with values of different types: 'level' is a whole number in kilos and "
    assert (told in caplog.text) == ("level" not in first)


OF_KIND = {
    "document": lambda name, n: {"text": f"{name} {n} is a text."},
    "preference": lambda name, n: {"prompt": f"{name} {n}", "chosen": f"better {n}", "rejected": "worse"},
    "judgement": lambda name, n: {"prompt": f"{name} {n}", "completion": f"said {n}", "label": n % 2 == 0},
    "prompt": lambda name, n: {"prompt": f"{name} {n}", "answer": str(n)},
}


@pytest.mark.parametrize("streaming", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("stopping", [FIRST, ALL])
@pytest.mark.parametrize("kind", OF_KIND)
def test_rows_of_every_kind_are_mixed_by_their_weights(load, tiny_tokenizer, kind, stopping, streaming):
    for name, count in (("a", 9), ("b", 6)):
        with open(f"{name}.json", "w") as file:
            json.dump([OF_KIND[kind](name, n) for n in range(count)], file)
    mix = {"a": {"path": "a.json", "weight": 2.0}, "b": {"path": "b.json", "val_size": 2}}
    conf = {"buffer_size": 1} if streaming else {}
    splits = load(mix, kind=kind, streaming=streaming, mix_stopping=stopping, cutoff_len=32, **conf)
    if kind == "document":
        text = tiny_tokenizer.decode([token for row in islice(splits.train, 3) for token in row["input_ids"]])
        assert text.startswith("a 0 is a text.")
        assert "b " in text
    else:
        asked = [tiny_tokenizer.decode(row["prompt_ids"]).split("\n")[1][0] for row in islice(splits.train, 12)]
        assert asked == ["a", "a", "b"] * 4
        assert len(splits.eval) == 2
    if not streaming and kind != "document":
        counts, rows = splits.report.train, splits.train.to_dict()
        tokens = {name: sum(map(len, column)) for name, column in rows.items() if name.endswith("_ids")}
        assert (counts.examples, counts.tokens) == (len(splits.train), sum(tokens.values()))
        assert counts.trained_tokens == sum(tokens.values()) - tokens["prompt_ids"]
