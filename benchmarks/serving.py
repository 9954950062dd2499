"""Concurrent chats through the server against the engine's own tokens a second on the same work:

    python -m benchmarks.serving --json out.json
    python -m benchmarks.serving --url http://127.0.0.1:8080/v1    # another server

The server runs in this process, in threads of its own, as `cai_jax.serve` runs it; the clients are
the openai package's. Answers are greedy, so engine and server sample the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import openai

from cai_jax import seeds, serve
from cai_jax.structs import Message, SampleRequest, Sampling
from tests import serving

MODEL = "models/smollm2-135m-instruct"
ASKED = "Tell me in a few sentences what a {} is, and what people use it for."
THINGS = "lock kite lamp boat drum clock bridge oven saw pump lens rope mill plough".split()


def texts(count: int) -> list[str]:
    return [ASKED.format(f"{THINGS[n % len(THINGS)]} of the year {1800 + n}") for n in range(count)]


async def ask_all(url: str, model: str, chats: list[str], new_tokens: int) -> int:
    """Asks all at once; tokens that came back."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=3600) as client:

        async def ask(text: str) -> int:
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=new_tokens,
            )
            return answer.usage.completion_tokens

        return sum(await asyncio.gather(*map(ask, chats)))


def timed(work) -> tuple[float, int]:
    """(seconds, tokens) of work that returns its number of tokens."""
    began = time.monotonic()
    tokens = work()
    return time.monotonic() - began, tokens


def ours(arguments, chats: list[str]) -> dict[str, list[float]]:
    """Tokens a second of engine and server, in turns."""
    limits = {"batch_size": arguments.batch_size, "max_length": 512}
    models, loaded, _ = serve.load(MODEL, "policy", "")
    engine, rates = models.engine(loaded, **limits), {"engine": [], "server": []}
    requests = [
        SampleRequest(str(n), loaded.format.prompt([Message("human", text)]), seeds.row_key(0, n))
        for n, text in enumerate(chats)
    ]
    sampling = Sampling(arguments.new_tokens, 0.0)
    with serving.running(MODEL, **limits) as server:
        url = f"{server.url}/v1"
        name = server.openai.models.list().data[0].id

        def by_engine() -> int:
            engine.prompts.store.clear()
            return sum(len(done.tokens) for done in engine.generate(requests, sampling))

        def by_server() -> int:
            server.worker._engine.prompts.store.clear()
            return asyncio.run(ask_all(url, name, chats, arguments.new_tokens))

        for repeat in range(-1, arguments.repeats):
            for side, work in (("engine", by_engine), ("server", by_server)):
                seconds, tokens = timed(work)
                if repeat < 0:  # compiles
                    continue
                rates[side].append(tokens / seconds)
                print(f"{side}: {tokens} tokens in {seconds:.1f} s", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--url", default="", help="of another server, measured instead of ours")
    parser.add_argument("--model", default="default", help="its name there")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    chats = texts(arguments.chats)
    if arguments.url:
        work = ask_all(arguments.url, arguments.model, chats, arguments.new_tokens)
        seconds, tokens = timed(lambda: asyncio.run(work))
        rates = {"peer": [tokens / seconds]}
    else:
        rates = ours(arguments, chats)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(json.dumps({"tokens a second": medians, "of each repeat": rates}))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "rates": rates}, file, indent=1)


if __name__ == "__main__":
    main()
