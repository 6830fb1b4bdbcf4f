"""A change of an input that affects the examples is a cache miss; any other change is a hit."""

from __future__ import annotations

import logging
import os
import shutil
import sys

import pytest
from datasets import Dataset
from written_rows import write

from llmmod.cache import content as identity
from llmmod.cache import store as cache_limit
from llmmod.config.schema.base import CutoffPolicy, OnBadRow
from llmmod.config.schema.data import ColumnsConf, DatasetConf
from llmmod.config.schema.model import HubConf
from llmmod.data.dataset.load import load_splits
from llmmod.render.auto import AutoTemplate
from llmmod.render.template import Template

ROWS = [{"instruction": f"Question {n}?", "output": f"Answer {n}.", "other": f"Other {n}."} for n in range(1, 13)]
BASE = {"path": "x.json", "val_size": 3, "columns": ColumnsConf(prompt="instruction", response="output")}


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(ROWS)


@pytest.fixture
def hits(chatml, tiny_tokenizer, caplog):
    """A function that loads the data and returns whether the examples came from the cache."""

    def loaded(*, render=chatml, tokenizer=tiny_tokenizer, seed=42, smoke=False, verify=None, **conf):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            conf = DatasetConf(name="mine", **(BASE | conf))
            load_splits(conf, render=render, tokenizer=tokenizer, seed=seed, hub=HubConf(), smoke=smoke, verify=verify)
        return [record.message for record in caplog.records if record.message.startswith("mine: examples from the cache, ")] != []

    assert not loaded()
    return loaded


def template(tokenizer, **changes):
    parts = {"name": "mine", "prompt": ["{{query}}\n"], "response": ["{{response}}", {"token": "<|im_end|>"}]}
    return Template(tokenizer=tokenizer, **(parts | changes))


def other_tokenizer(tokenizer, how):
    import copy

    made = copy.deepcopy(tokenizer)
    how(made)
    return made


MISSES = {
    "a row": (lambda: write([*ROWS[:-1], {**ROWS[-1], "output": "Answer 12!"}]), {}),
    "the order of rows": (lambda: write(ROWS[::-1]), {}),
    "another file": (lambda: shutil.copy("x.json", "y.json"), {"path": None, "data_files": ["x.json", "y.json"]}),
    "columns": (lambda: None, {"columns": ColumnsConf(prompt="instruction", response="other")}),
    "system": (lambda: None, {"system": "Be brief."}),
    "split": (lambda: None, {"split": "train[:10]"}),
    "max_samples": (lambda: None, {"max_samples": 10}),
    "val_size": (lambda: None, {"val_size": 4}),
    "val_files": (lambda: None, {"val_size": 0, "val_files": "x.json"}),
    "seed": (lambda: None, {"seed": 43}),
    "cutoff_len": (lambda: None, {"cutoff_len": 512}),
    "cutoff_policy": (lambda: None, {"cutoff_policy": CutoffPolicy.left}),
    "mask_prompt": (lambda: None, {"mask_prompt": False}),
    "on_bad_row": (lambda: None, {"on_bad_row": OnBadRow.skip}),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_change_that_affects_the_examples_is_a_miss(hits, name):
    change, conf = MISSES[name]
    assert hits()
    change()
    assert not hits(**conf)
    assert hits(**conf)


def test_the_same_size_and_date_are_not_the_same_content(hits):
    before = os.stat("x.json")
    write([{**ROWS[0], "output": "Answer x."}, *ROWS[1:]])
    os.utime("x.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat("x.json").st_mtime_ns == before.st_mtime_ns
    assert os.stat("x.json").st_size == before.st_size
    assert not hits()


HITS = {
    "num_proc": {"num_proc": 2},
    "the detected format, named": {"format": "alpaca"},
    "buffer_size": {"buffer_size": 5},
    "verify": {"verify": "chatml"},
    "the same seed, set": {"seed": 42},
    "the cache's limit": {"cache_max_gb": 0},
}


@pytest.mark.parametrize("name", HITS)
def test_any_other_change_is_a_hit(hits, name):
    assert hits(**HITS[name])


def test_a_file_that_was_moved_and_touched_is_a_hit(hits):
    shutil.move("x.json", "y.json")
    os.utime("y.json", (0, 0))
    assert hits(path="y.json")


def test_without_a_draw_the_seed_does_not_matter(hits):
    assert not hits(val_size=0)
    assert hits(val_size=0, seed=7)


ANSWER_AND_EOS = ["{{response}}", {"token": "eos_token"}]


@pytest.mark.parametrize(
    "changes", [{"sep": ["\n"]}, {"response": ANSWER_AND_EOS}, {"system": "x"}, {"train_on": "last"}, {"stop_words": ["<s>"]}], ids=str
)
def test_a_render_that_differs_is_a_miss(hits, tiny_tokenizer, changes):
    assert not hits(render=template(tiny_tokenizer))
    assert hits(render=template(tiny_tokenizer, name="another", verify=False))
    assert not hits(render=template(tiny_tokenizer, **changes))


def test_another_text_of_a_chat_template_is_a_miss(hits, tiny_tokenizer):
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    text = text.replace("{% endfor %}", "{% endfor %}{% if add_generation_prompt %}") + "{% endif %}"

    def auto(written):
        with open("t.jinja", "w") as file:
            file.write(written)
        return AutoTemplate(tokenizer=tiny_tokenizer, name="auto", template="t.jinja")

    assert not hits(render=auto(text))
    assert hits(render=auto(text))
    assert not hits(render=auto(text.replace("{{ m.content }}", "{{ m.content | trim }}")))


TOKENIZERS = {
    "a token": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]}),
    "eos": lambda tokenizer: setattr(tokenizer, "eos_token", "<|im_start|>"),
    "normalizer": lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", lowercase()),
}


def lowercase():
    from tokenizers.normalizers import Lowercase

    return Lowercase()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_differs_is_a_miss(hits, tiny_tokenizer, name):
    assert not hits(tokenizer=other_tokenizer(tiny_tokenizer, TOKENIZERS[name]))


def test_a_tokenizer_that_was_used_is_the_same(hits, tiny_tokenizer):
    used = other_tokenizer(tiny_tokenizer, lambda t: t("some text", truncation=True, max_length=3, padding="max_length"))
    assert hits(tokenizer=used)


def test_another_class_of_tokenizer_is_a_miss(hits, tiny_tokenizer):
    other = other_tokenizer(tiny_tokenizer, lambda t: None)
    other.__class__ = type("Other", (type(tiny_tokenizer),), {})
    assert not hits(tokenizer=other)


def test_changed_code_is_a_miss(hits, tmp_path, monkeypatch):
    copies = []
    for folder in identity.CODE:
        copies.append(shutil.copytree(folder, tmp_path / "code" / folder.name, ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(identity, "CODE", tuple(copies))
    assert hits()
    with open(copies[1] / "encode.py", "a") as file:
        file.write("# changed\n")
    assert not hits()


def test_another_version_of_a_library_is_a_miss(hits, monkeypatch):
    monkeypatch.setattr(identity, "installed", lambda name: "0.0")
    assert not hits()


OWN = """
from other_rows import PREFIX
def read(row, ending=""):
    return [{"role": "user", "content": PREFIX + row["instruction"]}, {"role": "assistant", "content": row["output"] + ending}]
"""


def test_changed_source_of_a_users_function_or_its_imports_is_a_miss(hits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LLMMOD_ALLOW", "own_rows")
    conf = {"columns": ColumnsConf(), "format": {"_target_": "own_rows.read"}}

    def written(own, other):
        (tmp_path / "own_rows.py").write_text(own)
        (tmp_path / "other_rows.py").write_text(other)
        for name in ("own_rows", "other_rows"):
            sys.modules.pop(name, None)

    written(OWN, 'PREFIX = "a"\n')
    assert not hits(**conf)
    assert hits(**conf)
    assert not hits(**conf | {"format": {"_target_": "own_rows.read", "ending": "!"}})
    written(OWN + "# more\n", 'PREFIX = "a"\n')
    assert not hits(**conf)
    written(OWN, "PREFIX = 'b'\n")
    assert not hits(**conf)


def test_rows_of_a_table_are_identified_by_their_content(hits):
    Dataset.from_list(ROWS).save_to_disk("saved")
    assert not hits(path="saved")
    Dataset.from_list(ROWS).save_to_disk("again")
    assert hits(path="again")
    Dataset.from_list(ROWS).select(range(11, -1, -1)).save_to_disk("turned")
    assert not hits(path="turned")


def test_examples_without_a_key_are_not_kept(hits, cache, chatml):
    kept = sorted(cache.iterdir())

    class Own(Template):
        pass

    def own(row):
        return [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]

    render = object.__new__(Own)
    vars(render).update(vars(chatml))
    for options in ({"render": render}, {"format": own, "columns": ColumnsConf()}, {"smoke": True}, {"cache": False}):
        assert not hits(**options)
        assert not hits(**options)
    assert sorted(cache.iterdir()) == kept


def test_a_file_that_changes_while_it_is_read_is_not_kept(hits, monkeypatch):
    from llmmod.data.dataset import builder

    build = builder.build_dataset

    def meanwhile(*args, **kwargs):
        write(ROWS[:6])
        return build(*args, **kwargs)

    write(ROWS[:9])
    with monkeypatch.context() as patch:
        patch.setattr(builder, "build_dataset", meanwhile)
        assert not hits()
    write(ROWS[:9])
    assert not hits()


def test_examples_above_the_limit_are_removed_when_others_are_written(hits, monkeypatch):
    write(ROWS[:9], "y.json")
    assert not hits(path="y.json", cache_max_gb=1)
    assert hits()
    monkeypatch.setattr(cache_limit, "_in_use", {})  # as if the process that used them had ended
    assert not hits(path="y.json", cache_max_gb=0, max_samples=8)
    assert not hits()


def test_a_run_continues_if_the_cache_cannot_be_written(hits, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMMOD_CACHE", str(tmp_path / "file" / "cache"))
    assert not hits()
    assert "the cache can't be used" in caplog.text


def test_a_hit_gives_what_the_miss_gave(hits, chatml, tiny_tokenizer):
    def load(**conf):
        return load_splits(
            DatasetConf(name="mine", **(BASE | conf)), render=chatml, tokenizer=tiny_tokenizer, seed=42, hub=HubConf(), verify="chatml"
        )

    found, made = load(), load(cache=False)
    assert found.train.to_dict() == made.train.to_dict()
    assert found.eval.to_dict() == made.eval.to_dict()
    assert list(found.eval_conversations) == list(made.eval_conversations)
    assert found.report == made.report
    assert len(found.eval_conversations) == 3
