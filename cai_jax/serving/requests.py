"""What is asked for: bodies of requests as tokens, limits and ways to sample."""

from __future__ import annotations

import dataclasses
import os

from cai_jax.data.dialogue import DialogueFormat
from cai_jax.engine.decoding import TOP
from cai_jax.errors import UserError
from cai_jax.serving.fields import ApiError, Fields, items, text
from cai_jax.structs import Dialogue, Message, Sampling

ROLES = {"system": "system", "developer": "system", "user": "human", "assistant": "assistant"}
MAX_CHOICES, MAX_PROMPTS, MAX_MESSAGES, MAX_STOPS = 128, 1024, 4096, 16
MAX_STOP_LENGTH = 1000  # characters
MIN_TEMPERATURE = 0.01  # below it, all but 0 overflow
MAX_TOKENS = 2**31  # that may be asked for; a model's context is shorter
COMPLETION_TOKENS = 16  # OpenAI's default for a plain completion

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """tokens, and the text where the client sent one."""

    tokens: Tokens
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """A request for completions.

    Attributes:
      prompts: one, or several of a plain completion.
      sampling: of all choices; max_new_tokens may be 0.
      num_choices: of each prompt.
      seed: of what is drawn.
      chat: whether the answer has the form of a chat's.
      logprobs: how many of the likeliest tokens are wanted next to those sampled, None for no
        log-probabilities.
      prompt_logprobs: the same for the prompts' tokens, in vLLM's form.
      echo: whether the prompts come before what is sampled.
      stream, usage: whether tokens are sent as they come, and their number at the end.
      token_ids: whether they are wanted as numbers, too.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    num_choices: int
    seed: int
    chat: bool
    logprobs: int | None
    prompt_logprobs: int | None
    echo: bool
    stream: bool
    usage: bool
    token_ids: bool

    @property
    def prompt_top(self) -> int | None:
        """How many of the likeliest tokens are wanted at the prompts' tokens, None where no
        log-probabilities are."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in wanted if count is not None), default=None)


class Reader:
    """Reads bodies for a model. max_length: tokens of a prompt and what follows it."""

    def __init__(self, name: str, format: DialogueFormat, max_length: int):
        self.name, self.format, self.max_length = name, format, max_length

    def chat(self, body: dict) -> CompletionRequest:
        """A body of /v1/chat/completions."""
        fields = self._fields(body)
        messages = dialogue(fields.take("messages"), "messages")
        begun = messages[-1].role == "assistant"
        continues = fields.flag("continue_final_message", begun)
        if continues and not begun:
            raise ApiError(
                "continue_final_message: the last message must be the assistant's",
                "continue_final_message",
            )
        fields.flag("add_generation_prompt", not continues)
        start = messages[-1].text if continues else ""
        tokens = self._rendered(messages[:-1] if continues else messages, start)
        wanted = fields.flag("logprobs")
        top = fields.count("top_logprobs", None, 0, TOP)
        if top is not None and not wanted:
            raise ApiError("top_logprobs: set logprobs to true as well", "top_logprobs")
        limit = fields.count("max_tokens", None, 0, MAX_TOKENS)
        limit = fields.count("max_completion_tokens", limit, 0, MAX_TOKENS)
        stops = self.format.stop_strings()
        return self._completion_request(
            fields, (Prompt(tokens),), limit, True, (top or 0) if wanted else None, stops
        )

    def completion(self, body: dict) -> CompletionRequest:
        """A body of /v1/completions."""
        fields = self._fields(body)
        bos = fields.flag("add_special_tokens", True)
        prompts = tuple(
            self._prompt(value, where, bos)
            for value, where in several(fields.take("prompt"), "prompt")
        )
        logprobs = fields.count("logprobs", None, 0, TOP)
        limit = fields.count("max_tokens", COMPLETION_TOKENS, 0, MAX_TOKENS)
        return self._completion_request(fields, prompts, limit, False, logprobs)

    def pooling(self, body: dict) -> list[Dialogue | Tokens]:
        """A body of /pooling: the dialogues to be scored, or texts as tokens."""
        fields = self._fields(body)
        if (messages := fields.take("messages")) is not None:
            nested = isinstance(messages, list) and messages and isinstance(messages[0], list)
            chats = items(messages, "messages", MAX_PROMPTS) if nested else [messages]
            scored = [dialogue(chat, "messages") for chat in chats]
            if any(each[-1].role != "assistant" for each in scored):
                raise ApiError("messages: the last one must be the assistant's", "messages")
        else:
            scored = [
                self._prompt(value, where, True).tokens
                for value, where in several(fields.take("input"), "input")
            ]
        for name, value in {"encoding_format": "float", "task": "classify"}.items():
            if fields.take(name, value) != value:
                raise ApiError(f"{name}: only {value} is known here", name)
        fields.finish()
        return scored

    def _fields(self, body: dict) -> Fields:
        fields = Fields(body)
        name = fields.take("model", self.name)
        if name != self.name:
            raise ApiError(
                f"model: {str(name)[:100]!r} is not served here, {self.name!r} is",
                "model",
                404,
                "model_not_found",
            )
        return fields

    def _completion_request(
        self, fields: Fields, prompts, limit, chat: bool, logprobs, stops=()
    ) -> CompletionRequest:
        """What chats and plain completions have in common."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        room = self.max_length - longest
        limit = max(room, 0) if limit is None else limit
        if room < limit:
            raise ApiError(
                f"this model's context has {self.max_length} tokens; the prompt has {longest}, "
                f"and {limit} were asked for",
                "messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        options = fields.group("stream_options")
        usage = options.flag("include_usage")
        options.flag("continuous_usage_stats")
        options.finish()
        top_k = fields.count("top_k", 0, -1, 2**31 - 1)
        temperature = fields.number("temperature", 1.0, 0, 100)
        request = CompletionRequest(
            prompts,
            Sampling(
                limit,
                max(temperature, MIN_TEMPERATURE) if temperature else 0.0,
                max(top_k, 0),
                fields.number("top_p", 1.0, 1e-6, 1),
                tuple(dict.fromkeys((*stops, *self._stops(fields)))),
            ),
            fields.count("n", 1, 1, MAX_CHOICES),
            fields.count("seed", int.from_bytes(os.urandom(7)), -(2**63), 2**64 - 1),
            chat,
            logprobs,
            fields.count("prompt_logprobs", None, 0, TOP),
            fields.flag("echo") and not chat,
            fields.flag("stream"),
            usage,
            fields.flag("return_token_ids"),
        )
        fields.finish()
        return request

    def _stops(self, fields: Fields) -> list[str]:
        stops = fields.take("stop", [])
        stops = [stops] if isinstance(stops, str) else stops
        if stops != []:
            stops = [text(stop, "stop") for stop in items(stops, "stop", MAX_STOPS)]
        if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise ApiError(f"stop: expected 1 to {MAX_STOP_LENGTH} characters each", "stop")
        return stops

    def _rendered(self, messages: Dialogue, start: str) -> Tokens:
        """A chat's prompt. What users wrote is text, whatever it looks like."""
        try:
            segments = self.format.prompt(messages, start=start)
        except UserError as error:
            # Clients need not know where the model is.
            reason = str(error).replace(str(self.format.directory), self.name)
            raise ApiError(reason, "messages") from None
        return sum(segments, ())

    def _prompt(self, value, where: str, bos: bool) -> Prompt:
        """A plain prompt: a text, in which nothing is a control token, or tokens as they are."""
        tokenizer = self.format.tokenizer
        if isinstance(value, str):
            first = (tokenizer.bos,) if bos and tokenizer.bos is not None else ()
            prompt = Prompt(first + tokenizer.encode(text(value, where)), value)
        else:
            size = tokenizer.vocab_size
            if not all(type(token) is int and 0 <= token < size for token in value):
                raise ApiError(f"{where}: expected token ids from 0 to {size - 1}", where)
            prompt = Prompt(tuple(value))
        if not prompt.tokens:
            raise ApiError(f"{where}: is empty", where)
        return prompt


def several(value, where: str) -> list[tuple]:
    """(prompt, where it is) of one text, one list of tokens, or a list of either."""
    if isinstance(value, str):
        return [(value, where)]
    if isinstance(value, list) and value and type(value[0]) is int:
        return [(value, where)]
    prompts = items(value, where, MAX_PROMPTS)
    if not all(isinstance(prompt, (str, list)) for prompt in prompts):
        raise ApiError(f"{where}: expected texts or lists of token ids", where)
    return [(prompt, f"{where}[{index}]") for index, prompt in enumerate(prompts)]


def dialogue(value, where: str) -> Dialogue:
    """The messages of a chat: {role, content}, the content a text or a list of texts."""
    messages = []
    for index, item in enumerate(items(value, where, MAX_MESSAGES)):
        at = f"{where}[{index}]"
        if not isinstance(item, dict) or item.get("role") not in tuple(ROLES):
            raise ApiError(f"{at}: expected {{role, content}}, role among {', '.join(ROLES)}", at)
        if item.get("tool_calls"):
            raise ApiError(f"{at}: this server has no tools", at)
        content = item.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, f"{at}.content") for part in content)
        messages.append(Message(ROLES[item["role"]], text(content, f"{at}.content")))
    return tuple(messages)


def _part(part, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ApiError(f"{where}: only parts of type text are read here", where)
    return text(part.get("text"), where)
