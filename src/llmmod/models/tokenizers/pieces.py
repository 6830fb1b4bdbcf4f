"""A SentencePiece BPE model as a Rust tokenizer.

The two work alike where the rules are put in the other's terms: SentencePiece merges the neighbours whose union has the best score, the
Rust library those whose pair comes first in a list; spaces become `▁` in both, a character without a piece its bytes. Whether that was
all, `proof` finds out: some rules can't be put so (extra white space removed, user-defined pieces behind a dummy prefix).
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from llmmod.models.tokenizers.model_file import NORMAL, UNKNOWN, USER_DEFINED, Model

_NUL = "\0"


def rust_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a BPE model: ids of texts, without special tokens."""
    unknown = next(iter(model.texts(UNKNOWN)), None)
    vocabulary = {_name(piece.text): index for index, piece in enumerate(model.pieces)}
    bpe = models.BPE(vocab=vocabulary, merges=_merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    prefix = [normalizers.Prepend("▁")] if model.dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if model.dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Matched behind the normalizer, as SentencePiece does: they may have spaces in them.
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in model.texts(USER_DEFINED)])
    return tokenizer


def _name(piece: str) -> str:
    """A piece as the Rust vocabulary has it. That of NUL is none of any text: SentencePiece takes the byte instead (InternLM's 354)."""
    return _NUL * 2 if piece == _NUL else piece


def _merges(model: Model) -> list[tuple[str, str]]:
    """Pairs of pieces whose union is a piece, the best score first, as SentencePiece's bpe_model.cc chooses.

    Among equal scores it takes the pair furthest to the left, so that a piece grows there until it can't. The Rust library does the same
    where pairs with a longer left piece come first: LLaMA-2's runs of up to 16 spaces all have the same score.
    """
    score = {text: score for text, score, type_ in model.pieces if type_ == NORMAL and text != _NUL}
    pairs = [
        (-best, -at, at - len(whole), whole[:at], whole[at:])
        for whole, best in score.items()
        for at in range(1, len(whole))
        if whole[:at] in score and whole[at:] in score
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]
