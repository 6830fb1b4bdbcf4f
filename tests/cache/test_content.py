from __future__ import annotations

import pytest

from llmmod.cache.content import source_files

FILES = {
    "rows.py": "import json, torch\nimport names\nfrom mine import words\ndef read(row):\n    from mine.deep import far\n",
    "names.py": "",
    "mine/__init__.py": "from . import beside\n",
    "mine/words.py": "from .deep.far import x\nfrom ..rows import y\n",
    "mine/beside.py": "from rows import read\n",
    "mine/deep/__init__.py": "",
    "mine/deep/far.py": "from ..beside import z\n",
    "mine/unused.py": "",
}


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def test_source_files_are_all_that_a_module_imports_but_installed_ones(tmp_path):
    found = source_files("rows")
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "rows": "rows.py",
        "names": "names.py",
        "mine": "mine/__init__.py",
        "mine.words": "mine/words.py",
        "mine.beside": "mine/beside.py",
        "mine.deep": "mine/deep/__init__.py",
        "mine.deep.far": "mine/deep/far.py",
    }


def test_an_installed_module_has_only_its_own_file():
    assert list(source_files("json.decoder")) == ["json.decoder"]


def test_a_module_without_a_file():
    assert source_files("sys") == {}
