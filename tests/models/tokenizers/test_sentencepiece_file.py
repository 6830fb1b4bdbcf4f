"""SentencePiece's files, read without protobuf."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmmod.models.tokenizers.sentencepiece_bpe import BPE, USER_DEFINED, read_model

MODELS = ["chatglm2_tiny", "baichuan2_tiny", "internlm", "llama2"]


@pytest.mark.parametrize("name", MODELS)
def test_says_what_protobuf_reads(vocabulary, name):
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto.FromString(vocabulary(name).read_bytes())
    model = read_model(vocabulary(name))
    assert [tuple(piece) for piece in model.pieces] == [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    assert model.type == proto.trainer_spec.model_type == BPE
    assert model.byte_fallback == proto.trainer_spec.byte_fallback
    assert model.dummy_prefix == proto.normalizer_spec.add_dummy_prefix


def test_user_defined_pieces(vocabulary):
    reserved = [f"<reserved_{number}>" for number in (102, 103, 106, 107)]
    assert read_model(vocabulary("baichuan2_tiny")).texts(USER_DEFINED) == [*reserved, "<eoh>", "<eoa>"]


def test_what_a_file_leaves_out_is_sentencepieces_default(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a")  # one piece, "a", and nothing else
    model = read_model(tmp_path / "tokenizer.model")
    assert model.pieces == (("a", 0.0, 1),)  # sentencepiece_model.proto: score 0, type NORMAL
    assert (model.type, model.byte_fallback, model.dummy_prefix) == (1, False, True)  # UNIGRAM, false, true


@pytest.mark.parametrize(
    "content",
    [b"", b"never read", b"\x0a\x7fa", b"\x0a\x03\x0a\x01\xff", b"\x80", b"\x08\x01", b"\x12\x02\x18\x02"],
    ids=["empty", "text", "cut short", "not utf-8", "cut in a number", "a number in place of a piece", "without pieces"],
)
def test_a_file_that_is_not_a_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"^tokenizer.model is not a SentencePiece model"):
        read_model(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("module", ["sentencepiece.sentencepiece_model_pb2", "transformers.utils.sentencepiece_model_pb2_new"])
def test_the_import_order_of_protobuf_modules_does_not_matter(vocabulary, module):
    code = f"import {module}, sys, pathlib; from llmmod.models.tokenizers.sentencepiece_bpe import read_model as read; "
    code += "print(len(read(pathlib.Path(sys.argv[1])).pieces))"
    done = subprocess.run([sys.executable, "-c", code, str(vocabulary("chatglm2_tiny"))], capture_output=True, text=True, timeout=60)
    assert done.stdout == "3000\n", done.stderr
