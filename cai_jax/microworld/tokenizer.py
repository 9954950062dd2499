"""A word-level tokenizer for the microworld. A word carries the space before it, so that text comes
back exactly."""

from __future__ import annotations

import json
import pathlib
import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from cai_jax.microworld import documents

SPECIAL = ("<pad>", "<eos>", "<unk>")
PATTERN = r"\n\n|\n| ?[A-Za-z']+| ?[^A-Za-z'\s]|\s"


def vocabulary() -> list[str]:
    """Every token of the language: special tokens, then words with their spaces, sorted."""
    dice = documents.Dice(0)
    words = set()
    # Enough documents to see every word many times.
    for _ in range(20000):
        text = "".join(text for text, _ in documents.document(dice)).replace(documents.END, "")
        words.update(re.findall(PATTERN, text))
    return [*SPECIAL, *sorted(words)]


def write(directory) -> int:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json; returns the
    vocabulary's size."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    # Words carry their spaces: decoding joins them and adds nothing.
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "pad_token_id": 0}, indent=2) + "\n"
    )
    return len(words)
