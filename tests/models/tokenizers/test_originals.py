"""Tokenizers of original checkpoints give the same ids as the original code."""

from __future__ import annotations

import json
import unicodedata

import pytest

from llmmod import load_tokenizer
from llmmod.errors import ConfigError
from llmmod.models.tokenizers.originals import SentencePieceTokenizer
from llmmod.render.encode import TextEncoder
from llmmod.render.segments import own_beginning

# name -> model_type of the transformers class for its weights
NATIVE = {"chatglm2_tiny": "glm", "baichuan2_tiny": "llama", "internlm": "llama", "qwen": "qwen2", "llama2": "llama"}
NAMES = list(NATIVE)


def ids_of(tokenizer, rows):
    """Ids with and without special tokens, where the oracle has them."""
    with_special = [tokenizer(row["text"]).input_ids for row in rows if "ids" in row]
    return with_special, [tokenizer(row["text"], add_special_tokens=False).input_ids for row in rows if "ids_without_specials" in row]


def expected(rows):
    return [row["ids"] for row in rows if "ids" in row], [row["ids_without_specials"] for row in rows if "ids_without_specials" in row]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_originals(loaded, oracle, name):
    assert loaded(name).is_fast
    assert ids_of(loaded(name), oracle(name)) == expected(oracle(name))


@pytest.mark.parametrize("name", NAMES)
def test_ids_become_the_text_again(loaded, oracle, name):
    texts = [row["text"] for row in oracle(name) if not row.get("special_looking")]
    decoded = loaded(name).batch_decode(loaded(name)(texts).input_ids, skip_special_tokens=True)
    normal = (lambda text: unicodedata.normalize("NFC", text)) if name == "qwen" else str
    assert decoded == [normal(text) for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_stock_transformers_reloads_what_is_saved(loaded, oracle, tmp_path, name):
    from transformers import AutoTokenizer

    tokenizer = loaded(name)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": NATIVE[name]}))
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(again, oracle(name)) == expected(oracle(name))
    assert tokenizer.special_tokens_map.items() <= again.special_tokens_map.items()  # Qwen2Tokenizer also sets an unk_token
    assert (again.padding_side, again.model_input_names, len(again)) == (
        tokenizer.padding_side,
        tokenizer.model_input_names,
        len(tokenizer),
    )
    assert not list(tmp_path.glob("*.py"))
    assert ids_of(load_tokenizer(str(tmp_path)), oracle(name)) == expected(oracle(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_does_not_encode_to_special_tokens(loaded, name):
    tokenizer = loaded(name)
    special = tokenizer.all_special_tokens
    texts = [*special[:12], "".join(special[:3]), f"people {special[0]} gossop"]
    encoded = TextEncoder(tokenizer).encode(texts)
    assert set(tokenizer.all_special_ids).isdisjoint(token for ids in encoded for token in ids)
    assert tokenizer.batch_decode(encoded) == texts


@pytest.mark.parametrize(
    ("name", "beginning"), [("chatglm2_tiny", None), ("baichuan2_tiny", None), ("internlm", 1), ("qwen", None), ("llama2", 1)]
)
def test_a_text_begins_with_the_originals_bos_token(loaded, name, beginning):
    assert own_beginning(loaded(name)) == beginning


def test_chatglm2s_tokens_follow_its_pieces(loaded):
    tokenizer = loaded("chatglm2_tiny")
    tokens = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [3000, 3001, 3002, 3003, 3004]  # of 64,789 pieces: 64789, 64790, ...
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 0, None)
    assert tokenizer("a", "b").input_ids == [3001, 3003, *tokenizer("a", add_special_tokens=False).input_ids, *raw(tokenizer, "b"), 2]
    assert tokenizer(["a", "你好"], padding=True).attention_mask[0][0] == 0  # on the left


def raw(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def test_baichuans_reserved_tokens_are_tokens(loaded):
    tokenizer = loaded("baichuan2_tiny")
    assert tokenizer.convert_tokens_to_ids(["<reserved_106>", "<reserved_107>"]) == [5, 6]
    assert tokenizer.decode([5, *raw(tokenizer, "你好")], skip_special_tokens=True) == "<reserved_106>你好"  # as the original: not special


def test_qwens_tokens_follow_its_vocabulary(loaded):
    tokenizer = loaded("qwen")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [151643, 151644, 151645, 151646, 151850]
    assert (tokenizer.pad_token, tokenizer.eos_token, len(tokenizer)) == ("<|endoftext|>", "<|endoftext|>", 151851)


def test_saved_beside_a_layout_that_stock_transformers_does_not_know(loaded, tmp_path):
    from transformers import AutoTokenizer

    loaded("baichuan2_tiny").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "baichuan"}')  # the 13B models keep it: a native class doesn't exist
    for load in (load_tokenizer, AutoTokenizer.from_pretrained):
        assert load(str(tmp_path))("你好，世界").input_ids == [1099, 2590, 237, 193, 159, 240, 158, 149]


@pytest.mark.parametrize(
    ("name", "class_name"),
    [("baichuan2_tiny", "BaichuanTokenizer"), ("baichuan2_tiny", "BaiChuanTokenizer"), ("chatglm2_tiny", "ChatGLMTokenizer")],
)
def test_a_checkpoint_is_known_by_its_tokenizers_class_and_runs_no_code(directory, oracle, name, class_name):
    remote = {"AutoTokenizer": ["tokenization.Tokenizer", None]}
    path = directory(name, {"tokenizer_class": class_name, "auto_map": remote, "use_fast": False}, config={"model_type": "unheard-of"})
    (path / "tokenization.py").write_text("raise SystemExit('ran')")
    assert ids_of(load_tokenizer(str(path), trust_remote_code=True), oracle(name)) == expected(oracle(name))


def test_what_tokenizer_config_says_is_kept(directory):
    pad = {"__type": "AddedToken", "content": "<unk>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "BaichuanTokenizer",
        "pad_token": pad,
        "add_bos_token": True,
        "model_max_length": 4096,
        "padding_side": "left",
    }
    tokenizer = load_tokenizer(str(directory("baichuan2_tiny", config)))
    assert tokenizer("你好").input_ids == [1, 1099]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length, tokenizer.padding_side) == (0, 4096, "left")
    assert load_tokenizer(str(directory("baichuan2_tiny", config)), padding_side="right", eos_token="<eoa>").eos_token_id == 8


@pytest.mark.parametrize(
    "files", [{"added_tokens": {"<|end|>": 3000}}, {"tokenizer_config": {"added_tokens_decoder": {"3000": {"content": "<|end|>"}}}}]
)
def test_tokens_that_were_added_to_a_checkpoint(directory, files):
    tokenizer = load_tokenizer(str(directory("baichuan2_tiny", **files)))
    assert tokenizer("你好<|end|>").input_ids == [1099, 3000]


def test_a_chat_template_in_a_file_is_kept(directory):
    path = directory("baichuan2_tiny")
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load_tokenizer(str(path)).apply_chat_template([{"role": "user", "content": "你好"}], return_dict=False) == [1099]


def test_what_a_text_begins_with_stays_whatever_is_asked_of_bos_and_eos(directory):
    tokenizer = load_tokenizer(str(directory("chatglm2_tiny")), add_eos_token=True)
    assert tokenizer("你好").input_ids == [3001, 3003, *raw(tokenizer, "你好")]


def test_an_added_token_with_a_gap_before_it_is_refused(directory):
    with pytest.raises(ConfigError, match=r"added token '<x>' has the id 3007, which doesn't follow"):
        load_tokenizer(str(directory("baichuan2_tiny", added_tokens={"<x>": 3007})))


def test_a_damaged_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internlm"}')
    (tmp_path / "tokenizer.model").write_text("<!DOCTYPE html>")
    with pytest.raises(ConfigError, match=r"can't be loaded: tokenizer.model is not a SentencePiece model"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["chatglm2_tiny", "llama2"])
def test_a_tokenizer_json_of_transformers_4_is_taken_as_it_is(loaded, oracle, tmp_path, name):
    # LlamaTokenizer of transformers 5.23 would put a pre-tokenizer in place of the normalizer.
    loaded(name).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false, "unk_token": "<unk>"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    rows = [row for row in oracle(name) if not row.get("special_looking")]
    assert ids_of(load_tokenizer(str(tmp_path)), rows)[1] == expected(rows)[1]


def changed(path, tmp_path, *, dummy_prefix, removes_spaces):
    """A directory with the same model but another normalizer_spec."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = dummy_prefix, removes_spaces
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "model_type", "removes_spaces", "prefix"),
    [
        pytest.param("baichuan2_tiny", "baichuan", False, [], id="user-defined pieces after a dummy prefix"),
        pytest.param("baichuan2_tiny", "internlm", True, [1], id="with bos, white space removed"),
        pytest.param("chatglm2_tiny", "chatglm", True, [3001, 3003], id="with a prefix, white space removed"),
    ],
)
def test_rules_that_the_fast_tokenizer_has_not_got(vocabulary, oracle, tmp_path, caplog, name, model_type, removes_spaces, prefix):
    from sentencepiece import SentencePieceProcessor

    path = changed(vocabulary(name), tmp_path, dummy_prefix=True, removes_spaces=removes_spaces)
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer, processor = load_tokenizer(str(path)), SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert "SentencePiece itself is used" in caplog.text
    texts = [row["text"] for row in oracle(name)]
    assert TextEncoder(tokenizer).encode(texts) == processor.encode(texts)
    assert tokenizer("你好\n").input_ids == prefix + processor.encode("你好\n")
    assert tokenizer.decode(tokenizer("你好 😀").input_ids, skip_special_tokens=True) == "你好 😀"
    pair = tokenizer("你好", "世界").input_ids
    first, second = raw(tokenizer, "你好"), raw(tokenizer, "世界")
    assert pair == [*prefix, *first, *(prefix if model_type != "chatglm" else []), *second, *([2] if model_type == "chatglm" else [])]
    saved = tmp_path / "saved"
    tokenizer.save_pretrained(saved)
    again = load_tokenizer(str(saved))
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert "stock transformers doesn't have a class for it" in caplog.text
