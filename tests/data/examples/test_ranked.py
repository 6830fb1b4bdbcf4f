"""Ranked answers: their pairs, labels and weights, and that those of one row stay in one split."""

from __future__ import annotations

import json
import logging
from itertools import islice

import pytest

from llmmod.config.schema.base import CutoffPolicy, Ranked
from llmmod.config.schema.data import DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.load import load_splits
from llmmod.data.examples.answers import ranked_labels, ranked_pairs


@pytest.mark.parametrize(
    ("which", "of_two", "of_four"),
    [
        ("all", [(0, 1)], [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        ("adjacent", [(0, 1)], [(0, 1), (1, 2), (2, 3)]),
        ("ends", [(0, 1)], [(0, 3)]),
        ("first_two", [(0, 1)], [(0, 1)]),
    ],
)
def test_which_pairs(which, of_two, of_four):
    assert (ranked_pairs(2, Ranked(which)), ranked_pairs(4, Ranked(which))) == (of_two, of_four)


@pytest.mark.parametrize(
    ("which", "of_three", "of_four"),
    [
        ("all", [(0, True), (2, False)], [(0, True), (1, True), (2, False), (3, False)]),
        ("adjacent", [(0, True), (2, False)], [(0, True), (3, False)]),
        ("ends", [(0, True), (2, False)], [(0, True), (3, False)]),
        ("first_two", [(0, True), (1, False)], [(0, True), (1, False)]),
    ],
)
def test_which_labels(which, of_three, of_four):
    assert (ranked_labels(3, Ranked(which)), ranked_labels(4, Ranked(which))) == (of_three, of_four)


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# Rows of 2, 3, … 10 answers, best first.
ROWS = [{"instruction": f"row {n}", "output": [f"row {n} {rank}" for rank in NUMBERS[:n]]} for n in range(2, 11)]


@pytest.fixture
def load(tmp_path, monkeypatch, chatml, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)

    def loaded(kind="preference", rows=ROWS, **conf):
        with open("x.json", "w") as file:
            json.dump(rows, file)
        conf = DatasetConf(**({"name": "mine"} | ({} if "mix" in conf else {"path": "x.json"}) | conf))
        return load_splits(conf, kind=kind, render=chatml, tokenizer=tiny_tokenizer, seed=1, hub=HubConf(), verify="chatml")

    return loaded


@pytest.fixture
def said(tiny_tokenizer):
    """A row -> the texts of its answers."""

    def texts(row):
        names = ("chosen_ids", "rejected_ids") if "chosen_ids" in row else ("completion_ids",)
        return [tiny_tokenizer.decode(row[name]).removesuffix("<|im_end|>") for name in names]

    return texts


def by_row(rows, said):
    """Number of answers of a row -> weights of that row's examples."""
    found = {}
    for row in rows:
        found.setdefault(int(said(row)[0].split()[1]), []).append(row["weight"])
    return found


def test_every_pair_of_a_row_once_and_each_row_counts_once(load, said, caplog):
    caplog.set_level(logging.INFO)
    train = load().train
    found = by_row(train, said)
    assert {n: len(weights) for n, weights in found.items()} == {n: n * (n - 1) // 2 for n in range(2, 11)}
    assert all(sum(weights) == pytest.approx(1.0) for weights in found.values())
    assert [said(row) for row in islice(train, 1, 4)] == [
        ["row 3 zero", "row 3 one"], ["row 3 zero", "row 3 two"], ["row 3 one", "row 3 two"],
    ]  # fmt: skip
    told = "165 pairs from the ranked answers of 9 rows (dataset.ranked=all); each row has the same total weight"
    assert told in caplog.messages


@pytest.mark.parametrize(("which", "pairs"), [("adjacent", 45), ("ends", 9), ("first_two", 9)])
def test_other_pairs(load, said, which, pairs):
    train = load(ranked=Ranked(which)).train
    assert len(train) == pairs
    assert all(sum(weights) == pytest.approx(1.0) for weights in by_row(train, said).values())


def test_pairs_of_a_row_are_never_on_both_sides(load, said):
    splits = load(val_size=3)
    train, held = ({said(row)[0].split()[1] for row in part} for part in (splits.train, splits.eval))
    assert (len(train), len(held)) == (6, 3)
    assert not train & held
    # predict asks once for each row, and its best answer is the reference.
    assert [one.messages[-1].content.split()[2] for one in splits.eval_conversations] == ["zero"] * 3


def test_ranks_judge_answers_for_kto(load, said, caplog):
    caplog.set_level(logging.INFO)
    train = load("judgement").train
    found = {n: [(said(row)[0].split()[2], row["label"]) for row in train if said(row)[0].split()[1] == str(n)] for n in (2, 3, 4)}
    assert found == {
        2: [("zero", True), ("one", False)],
        3: [("zero", True), ("two", False)],
        4: [("zero", True), ("one", True), ("two", False), ("three", False)],
    }
    assert all(sum(weights) == pytest.approx(2.0) for weights in by_row(train, said).values())
    assert any(message.startswith("50 judged answers from the ranked answers of 9 rows") for message in caplog.messages)


@pytest.mark.parametrize("policy", CutoffPolicy)
def test_a_long_pair_is_cut_or_its_weight_goes_to_the_other_pairs(load, said, policy):
    rows = [{"instruction": "row 3", "output": ["row 3 zero", "row 3 one", "row 3 two" + " far" * 60]}]
    train = load(rows=rows, cutoff_len=48, cutoff_policy=policy).train
    assert [row["weight"] for row in train] == ([1.0] if policy == CutoffPolicy.drop else pytest.approx([1 / 3] * 3))
    assert all(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 48 for row in train)
    assert said(train[0]) == ["row 3 zero", "row 3 one"]


def test_pairs_are_the_same_in_streams_and_mixes(load, said, caplog):
    caplog.set_level(logging.INFO)
    kept = [said(row) for row in load().train]
    assert [said(row) for row in islice(load(streaming=True, buffer_size=1).train, 166)] == [*kept, kept[0]]
    assert "mine: 165 pairs from the ranked answers of 9 rows" in caplog.messages
    with open("two.json", "w") as file:
        json.dump([{"prompt": "q", "chosen": f"row 2 {n}", "rejected": "bad"} for n in range(20)], file)
    mixed = load(mix={"many": {"path": "x.json", "weight": 9.0}, "two": {"path": "two.json"}})
    assert [row["weight"] for row in mixed.train if said(row)[1] == "bad"] == [1.0] * 18
    assert mixed.report.train.examples == 165 + 18
    assert mixed.report.ranked == "all"


def test_rows_of_one_pair_have_no_weights(load):
    rows = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad"} for n in range(3)]
    assert load(rows=rows).train.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
