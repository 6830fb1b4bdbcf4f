"""Paths that Hydra's grammar splits: an equals sign (hydra 1577, 266), a comma (573, 96, 1838), and others."""

from __future__ import annotations

from pathlib import Path

import pytest
from typed import lines, trained, typed, write_lines


@pytest.fixture
def place(tmp_path):
    """A function that writes rows into the directory data/<name>; the answer of each row is <name>."""
    return lambda name: (
        (tmp_path / "data" / name).mkdir(parents=True)
        or write_lines(f"data/{name}/rows.jsonl", [{"instruction": f"Say {n}.", "output": name} for n in range(3)])
    )


@pytest.fixture
def preview(base):
    """A function that runs preview with arguments as a user types them."""
    chosen = ("model=llama", f"model.pretrained_model_name_or_path={base}", "render=chatml", "dataset=json", "pipeline=[preview]")
    return lambda *arguments: typed(*arguments, *chosen)


def answers(directory):
    return {trained(line) for line in lines(f"{directory}/preview/preview.jsonl")}


SPELLINGS = {
    "quoted": ("lr=1e-4/epoch=3", 'dataset.data_files="data/lr=1e-4/epoch=3/rows.jsonl"'),
    "escaped": ("lr=1e-4/epoch=3", r"dataset.data_files=data/lr\=1e-4/epoch\=3/rows.jsonl"),
    "comma": ("v1, final (2)", 'dataset.data_files="data/v1, final (2)/rows.jsonl"'),
    "chinese": ("数据 集", 'dataset.data_files="data/数据 集/rows.jsonl"'),
    "apostrophe": ("it's", 'dataset.data_files="data/it\'s/rows.jsonl"'),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_quoted_or_escaped_path_is_read(place, preview, spelling):
    name, override = SPELLINGS[spelling]
    place(name)
    assert preview(override, 'output_dir="输出 1"').code == 0
    assert answers("输出 1") == {name}


def test_a_bare_equals_sign_is_refused_by_its_key_with_what_to_type(place, preview):
    place("lr=1e-4/epoch=3")
    done = preview("output_dir=run", "dataset.data_files=data/lr=1e-4/epoch=3/rows.jsonl")
    assert done.code == 2
    assert "dataset.data_files" in done.said
    assert "Quote the value" in done.said


def test_in_a_sweep_a_quoted_comma_separates_nothing(place, preview):
    place("v1, final (2)")
    done = preview("-m", "hydra.sweep.dir=sweep", 'dataset.data_files="data/v1, final (2)/rows.jsonl"', "seed=1,2")
    assert done.code == 0
    assert len([*Path("sweep").rglob("preview.jsonl")]) == 2


def test_a_path_of_windows_is_shown_as_typed(preview):
    done = preview("output_dir=run", r'dataset.data_files="C:\Users\me\new data\rows.jsonl"')
    assert done.code == 2
    assert r"C:\Users\me\new data\rows.jsonl" in done.said
