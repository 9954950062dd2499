"""The fields of servers that answer for a model (`openai:URL#MODEL`, `batch:DIR#MODEL`)."""

from __future__ import annotations

from cai_jax.configuration.fields import (
    Field,
    Named,
    Table,
    Variable,
    choice,
    count,
    number,
    positive,
    word,
)

# How many requests, for how long, and at which price: nothing of this decides an answer.
TRANSPORT: Table = {
    "key_env": Field(
        "", str, Variable(), "the environment variable that holds the key; '' for none"
    ),
    "served_as": word("", "what the server calls the model in its answers, if not as it is asked"),
    "concurrency": count(16, "requests in flight"),
    "requests_per_minute": count(None, "at most; empty: no limit"),
    "tokens_per_minute": count(None, "read and written, at most; empty: no limit"),
    "timeout": positive(600.0, "seconds that one answer may take"),
    "attempts": count(8, "at a request whose answers cannot be used"),
    "patience": positive(600.0, "seconds without an answer of the server, then the run stops"),
    "lines_per_file": count(10_000, "requests in a file of batch:DIR; the rest in the next ones"),
    "input_price": number(0.0, "of a million tokens read"),
    "output_price": number(0.0, "of a million tokens written"),
}
OPENAI: Table = {
    **TRANSPORT,
    # fields: vLLM's and SGLang's (and this project's) continue_final_message; plain: a last turn of
    # the assistant is continued as it is (llama.cpp, Ollama, Anthropic); words: any server.
    "continue_turns": choice(
        "words", ("words", "fields", "plain"), "how an answer's first words are given"
    ),
    "limit_field": choice(
        "max_tokens", ("max_tokens", "max_completion_tokens"), "what the server calls the limit"
    ),
    # auto: the first that a probe finds to work
    "tier": choice("auto", ("auto", "scored", "top", "counted"), "how options are compared"),
    "num_samples": count(16, "of a question that is counted"),
    "samples_per_request": count(16, "of those, asked for at once; 1 where the server ignores n"),
    "form": choice("openai", ("openai", "anthropic"), "of the files of batch:DIR"),
    "extra_body": Named({}, Field(None, object, None, "a field"), "of every request's JSON"),
}
ENDPOINTS = {"openai": OPENAI}
# What of them decides answers, for fingerprints.
DECISIVE = tuple(name for name in OPENAI if name not in TRANSPORT)


def of(config, reference: str):
    """The fields for a model: of the first role on the way from `reference` that has fields of its
    own, else of "all"."""
    seen = set()
    while reference in config.models and reference not in seen:
        if reference in config.endpoints:
            return config.endpoints[reference]
        seen.add(reference)
        reference = config.models[reference]
    return config.endpoints["all"]
