"""Small tokenizers made by hand: SentencePiece's, which write a space before every text, and what
templates need."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers

from cai_jax.data.dialogue import DialogueFormat

SPECIALS = ("<unk>", "<s>", "</s>")


def sentencepiece(directory, merges=(), specials=(), template=None, config=None):
    """Writes a model directory (no weights) whose tokenizer is one of SentencePiece's kind: "▁" for
    spaces, one before every text, single letters and the given merges; unknown letters are bytes.
    Returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    letters = [chr(number) for number in range(33, 127)] + ["▁", "\n"]
    pieces = [*SPECIALS, *specials, *(f"<0x{number:02X}>" for number in range(256)), *letters]
    pieces += [a + b for a, b in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([*SPECIALS, *specials])
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {"eos_token": "</s>", "unk_token": "<unk>", **(config or {})}
    if template is not None:
        fields["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    (directory / "config.json").write_text(json.dumps({"vocab_size": len(vocabulary)}))
    return directory


class Bytes:
    """A letter's bytes are its tokens; 0 ends an answer."""

    bos, control_tokens, eos_ids, directory = None, (), (0,), "bytes"

    def encode(self, text, special=False):
        return tuple(text.encode())

    def encode_all(self, texts, special=False):
        return [self.encode(text) for text in texts]


BYTE_FORMAT = DialogueFormat(Bytes(), "text")
