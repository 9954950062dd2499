"""transformers' `generate` as a process of its own: one JSON request a line in, one JSON answer a
line out.

It gets the allocator settings that suit it best, which must stand in the environment before the
process begins.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


class Peer:
    """The other end of the pipe."""

    def __init__(self, model: str, dtype: str = "float32"):
        command = [sys.executable, "-m", "benchmarks.peer", model, dtype]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ALLOCATOR},
        )
        self.peak_bytes = 0
        self.ask(kind="ready")

    def ask(self, **request) -> dict:
        """kind "ready"; or "generate" with batches [{"prompts": token lists, "new_tokens": n}],
        optionally a "header" that all prompts begin with (prefilled once, in the measured time) and
        "eos" ids; or "forward" with batches [{"texts": token lists, "counts": how many tokens at
        each one's end are asked for}]. Returns seconds by the clock and of processors (and those of
        the header among them), the sampled rows or the sums of log-probabilities, and the process's
        peak memory since it began."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer process ended with exit status {self.process.wait()}")
        answer = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def forget_peak() -> None:
    """Peak memory counts from here: what loading took is not of interest."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process; ru_maxrss begins with that of whoever started it, so
    it is not used where there is another."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def generate(model, prompts, new_tokens, header=None, eos=None):
    """One static batch, left-padded, sampling at temperature 1.

    Args:
        model: of transformers.
        prompts: lists of tokens.
        new_tokens: to be sampled.
        header: (tokens, cache) that all prompts begin with, repeated for every sequence.
        eos: tokens that end a sequence; None: every sequence gets all new tokens.

    Returns:
        The sampled tokens of each prompt.
    """
    import torch

    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    settings = dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        eos_token_id=eos,
        min_new_tokens=None if eos else new_tokens,
        pad_token_id=0,
    )
    if header is None:
        return model.generate(input_ids=tokens, attention_mask=mask, **settings)[:, longest:]
    header_tokens, cache = header
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(len(prompts))
    before = torch.tensor([header_tokens] * len(prompts))
    return model.generate(
        input_ids=torch.cat([before, tokens], 1),
        attention_mask=torch.cat([torch.ones_like(before), mask], 1),
        past_key_values=cache,
        **settings,
    )[:, len(header_tokens) + longest :]


def forward(model, texts, counts):
    """log P of the last `counts` tokens of each text, summed: one plain pass over the padded batch,
    with logits for nothing but those tokens."""
    import torch

    longest = max(map(len, texts))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in texts])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts])
    hidden = model.model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    sums = []
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        places = torch.arange(len(text) - count, len(text))
        logprobs = model.lm_head(hidden[row, places - 1]).float().log_softmax(-1)
        sums.append(float(logprobs[torch.arange(count), tokens[row, places]].sum()))
    return sums


def serve(directory: str, dtype: str) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype)
    ).eval()
    model.generation_config.eos_token_id = None  # only what a request names ends a row
    forget_peak()
    for line in sys.stdin:
        request = json.loads(line)
        before, cpu = time.perf_counter(), time.process_time()
        rows, header_seconds = [], (0.0, 0.0)
        with torch.inference_mode():
            if request["kind"] == "ready":  # what the first call sets up is not measured
                generate(model, [[1, 2, 3]], 2)
            if request["kind"] == "forward":
                for batch in request["batches"]:
                    rows += forward(model, batch["texts"], batch["counts"])
            if request["kind"] == "generate":
                header = None
                if request.get("header"):
                    cache = transformers.DynamicCache(config=model.config)
                    model(
                        input_ids=torch.tensor([request["header"]]),
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    )
                    header = request["header"], cache
                    header_seconds = time.perf_counter() - before, time.process_time() - cpu
                for batch in request["batches"]:
                    rows += generate(
                        model, batch["prompts"], batch["new_tokens"], header, request.get("eos")
                    ).tolist()
        answer = {
            "seconds": time.perf_counter() - before,
            "cpu_seconds": time.process_time() - cpu,
            "rows": rows,
            "header_seconds": header_seconds,
            "peak_bytes": peak_bytes(),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
