"""`dataset.mix.<name>.*`: errors of an entry are reported like those of any other key, before any import."""

from __future__ import annotations

import pytest

WHOLE = ["dataset=json", "+dataset.mix.a.path=a.json", "+dataset.mix.b.path=b.json", "+dataset.mix.b.val_split=test"]


@pytest.fixture(autouse=True)
def _files(told, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text("[]")


def test_a_mix_is_right(told):
    more = [
        "+dataset.mix.a.weight=2",
        "+dataset.mix.b.format=alpaca",
        "+dataset.mix.b.columns.prompt=question",
    ]
    assert told(*WHOLE, *more, "dataset.mix_stopping=all_exhausted") == []


def test_a_mix_may_be_written_in_one(told):
    assert told("dataset=json", "+dataset.mix={a: {path: a.json, weight: 2}, b: {data_files: [b.json], val_size: 5}}") == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+dataset.mix.a.wieght=2", "dataset.mix.a.wieght: no such field. Did you mean 'weight'?"),
        ("+dataset.mix.a.columns.promt=x", "dataset.mix.a.columns.promt: no such field. Did you mean 'prompt'?"),
        ("+dataset.mix.a.columns.prompt=3", "dataset.mix.a.columns.prompt: found 3. Expected a text, or null."),
        ("+dataset.mix.a.weight=much", "dataset.mix.a.weight: found 'much'. Expected a number."),
        ("+dataset.mix.a.weight=true", "dataset.mix.a.weight: found true. Expected a number."),
        ("+dataset.mix.a.weight=0", "dataset.mix.a.weight: found 0. Allowed: above 0."),
        ("+dataset.mix.a.max_samples=0", "dataset.mix.a.max_samples: found 0. Allowed: 1 or more."),
        ("+dataset.mix.a.max_samples=1.5", "dataset.mix.a.max_samples: found 1.5. Expected a whole number, or null."),
        (
            "+dataset.mix.a.val_size=1.5",
            "dataset.mix.a.val_size: found 1.5. Allowed: a fraction such as 0.1, or a whole number of examples.",
        ),
        ("+dataset.mix.a.columns=x", "dataset.mix.a.columns: found 'x'. Expected keys with values, written {a: 1}."),
        ("+dataset.mix.c=x.json", "dataset.mix.c: found 'x.json'. Expected a dataset, e.g. dataset.mix.c.path=…."),
        ("+dataset.mix.c.path=none.json", "dataset.mix.c.path: no such file or directory: 'none.json'"),
        ("+dataset.mix.c.path=jsom", None),
        ("+dataset.mix.a.val_files=none.json", "dataset.mix.a.val_files: no such file or directory: 'none.json'"),
        ("+dataset.mix.c.weight=1", "dataset.mix.c.path: is not set. Set dataset.mix.c.path or dataset.mix.c.data_files."),
        ("dataset.path=a.json", "dataset.path: not read with dataset.mix: each of its datasets has its own. Set dataset.mix.<name>.path."),
    ],
)
def test_what_is_wrong_with_it(told, override, message):
    found = told(*WHOLE, override)
    if message is None:
        assert found == [], "a name on the hub is looked up when it is read"
    else:
        assert len(found) == 1
        assert found[0].startswith(message), found


def test_all_of_it_at_once(told):
    found = told(*WHOLE, "+dataset.mix.a.wieght=2", "+dataset.mix.b.weight=-1", "+dataset.mix.c.path=none.json")
    assert [line.partition(":")[0] for line in found] == ["dataset.mix.a.wieght", "dataset.mix.b.weight", "dataset.mix.c.path"]


def test_beside_a_dataset_of_its_own(told):
    found = told("+dataset.mix.a.path=a.json")
    assert "dataset.data_files: not read with dataset.mix: each of its datasets has its own. Begin with dataset=json." in found


def test_without_a_mix_nothing_stops_it(told):
    assert told("dataset.mix_stopping=all_exhausted") == ["dataset.mix_stopping: only read with dataset.mix."]
