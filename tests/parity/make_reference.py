"""Writes what transformers computes for `cases.py`, and for SmolLM2-135M-Instruct, into small
files.

    PYTHONPATH=tests python -m parity.make_reference

Needs torch (the files are from torch 2.13.0, transformers 5.23.0, in ten minutes); `make test`
compares with the files and does not.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from parity import cases

HERE = pathlib.Path(__file__).parent
SMOLLM2 = HERE.parent.parent / "models" / "smollm2-135m-instruct"
NUM_TOKENS = 64
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Give me three tips for sleeping better.",
    "Why is the sky blue?",
    "What is 12 + 30?",
    "Name a fruit that is yellow.",
    "How do plants drink water?",
    "Explain what a magnet is to a child.",
    "Suggest a name for a small bakery.",
    "What should I pack for a walk in rain?",
    "Translate 'good morning' into Spanish.",
    "Is it safe to look at the sun?",
    "How long should I boil an egg?",
    "Tell me a short story about a lost key.",
    "What do bees make?",
    "How can I say no politely?",
    "Which planet is the largest?",
    "Write a line for a birthday card.",
    "What is a budget?",
    "Why do cats purr?",
)


def model_of(config: dict) -> torch.nn.Module:
    """transformers' model of one case, its weights put in by name."""
    fields = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(
        fields, attn_implementation="eager", dtype=torch.float32
    )
    tensors = {name: torch.from_numpy(value) for name, value in cases.weights(config).items()}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if (
        "embed_out.weight" in tensors
    ):  # what GPT-NeoX files say is called otherwise inside transformers 5
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def logits_of(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Logits [B, T, V], positions counted over real tokens."""
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    as_tensor = {
        "input_ids": tokens,
        "attention_mask": mask.astype(np.int64),
        "position_ids": positions,
    }
    return model(**{name: torch.from_numpy(value) for name, value in as_tensor.items()}).logits


def smollm2_answers() -> list[dict]:
    """Greedy answers in float32, one prompt at a time, and some of the logits that lead to the
    first token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = inputs["input_ids"]
        logits = model(**inputs).logits[0, -1]
        new = model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)[
            0, tokens.shape[1] :
        ]
        answers.append(
            {
                "prompt": prompt,
                "tokens": tokens[0].tolist(),
                "every_1024th_logit": [round(value, 5) for value in logits[::1024].tolist()],
                "answer": new.tolist(),
                "text": tokenizer.decode(new, skip_special_tokens=True),
            }
        )
    return answers


def main() -> None:
    tokens, mask = cases.batch(left=False)
    with torch.no_grad():
        logits = {
            name: logits_of(model_of(config), tokens, mask).numpy()[mask]
            for name, config in cases.CASES.items()
        }
        np.savez_compressed(HERE / "logits.npz", **logits)
        if SMOLLM2.exists():
            lines = [json.dumps(answer, ensure_ascii=False) for answer in smollm2_answers()]
            (HERE / "smollm2.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
