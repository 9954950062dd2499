"""Chat templates: somebody else's programs, checked before anything is sampled and the same on
every day.

What a template must do is tried on small dialogues when it is loaded; one that cannot be used is
refused by name, in one line. Reasoning (`<think>…</think>`) is no part of an answer: its tags are
known here.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence

from cai_jax.errors import UserError

# The paper's models write no thoughts. Templates that can leave them out read this argument; others
# ignore it.
DEFAULT_ARGS = {"enable_thinking": False}
RESERVED_ARGS = ("messages", "tools", "documents", "tokenize", "chat_template", "strftime_now")
RESERVED_ARGS += ("add_generation_prompt", "continue_final_message", "return_dict", "padding")
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
# Around control tokens that stand in a message, and inside them, while the template is rendered:
# what a user wrote is no tag to a template either. Unicode keeps these code points for such
# internal use: they never are characters of a text.
BEGIN, END, HIDE = "\ufdd0", "\ufdd1", "\ufdd2"
_TURNS = (
    {"role": "user", "content": "probequestion"},
    {"role": "assistant", "content": "probeanswer"},
    {"role": "user", "content": "probesecond"},
    {"role": "assistant", "content": "probereply"},
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run says of its templates. args: passed to every rendering; date: YYYY-MM-DD that a
    template writes where it asks for today's, "" for today."""

    args: Mapping = dataclasses.field(default_factory=lambda: dict(DEFAULT_ARGS))
    date: str = ""

    @classmethod
    def of(cls, run_config) -> Settings:
        """From config.model.template_args and config.date."""
        args = run_config.get("model", {}).get("template_args", DEFAULT_ARGS)
        args = args.to_dict() if hasattr(args, "to_dict") else dict(args or {})
        for name in args:
            if name in RESERVED_ARGS:
                raise UserError(
                    f"config.model.template_args.{name}: is set by the library; leave it away"
                )
        return cls(args, run_config.get("date") or "")

    def read_by(self, template: str) -> dict:
        """Those that decide what `template` writes."""
        args = {name: value for name, value in self.args.items() if name in template}
        return args | ({"date": self.date} if "strftime_now" in template else {})


def choose(templates, directory) -> str:
    """The template of a tokenizer that has one, several by name ("default" is taken), or none
    ("")."""
    if not isinstance(templates, dict):
        return templates or ""
    if "default" in templates:
        return templates["default"]
    if len(templates) == 1:
        return next(iter(templates.values()))
    names = ", ".join(sorted(map(str, templates)))
    raise UserError(
        f"{directory}: chat_template: no 'default' among {names}; name one of them 'default', or "
        "use format = 'text'"
    )


def reasoning_tags(template: str, added_tokens: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Those of REASONING_TAGS that a tokenizer or its template knows."""
    return tuple(pair for pair in REASONING_TAGS if pair[1] in template or pair[1] in added_tokens)


def without_reasoning(text: str, tags: Sequence[tuple[str, str]]) -> str:
    """The answer in what a model wrote: closed thoughts are taken out, a thought that the prompt
    opened ends at its closing tag, and of one that is not closed nothing is left."""
    for begin, end in tags:
        if begin not in text and end not in text:
            continue
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", "", text, flags=re.DOTALL)
        text = text.rpartition(end)[2]
        text = text.partition(begin)[0].lstrip()
    return text


def _clock(day: datetime.date) -> str:
    """A definition of `strftime_now` for the head of a template: it always is midnight of that
    day."""
    codes = [f"%{code}" for code in (*"aAwdbBmyYHIpMSfjUWcxX", "-d", "-m", *"eFDT")]
    known = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in codes)
    return "{% macro strftime_now(form) %}{{ form" + known + " }}{% endmacro %}"


class ChatTemplate:
    """A tokenizer's template with a run's settings.

    gap: what it writes between a prompt and an answer. after: what it writes after the last answer.
    merges_system: it takes no system turns, so their text has to come before the first human
    turn's.
    """

    def __init__(self, tokenizer, settings: Settings):
        self.directory, self.source = tokenizer.directory, tokenizer.template
        self._hf, self.tags = tokenizer.hf, tokenizer.reasoning_tags
        self._control_tokens = tokenizer.control_tokens
        self.settings, self._fixed = settings, ""
        if "strftime_now" in self.source:
            day = datetime.date.fromisoformat(settings.date or datetime.date.today().isoformat())
            self._fixed = _clock(day) + "\n" * self.source.startswith("\n")
        hidden = {*self._control_tokens, *(tag for pair in self.tags for tag in pair)}
        hidden = sorted(map(re.escape, hidden), key=len, reverse=True)
        self._hidden = re.compile("|".join(hidden) or "(?!)")
        self.gap = self.after = ""
        self._check_answer()
        self._check_turns()
        self.merges_system = not self._takes_system()

    def mark(self, text: str) -> str:
        """The text with control tokens and tags in it hidden from the template, and marked as
        text."""
        text = re.sub(f"[{BEGIN}{END}{HIDE}]", "", text)
        return self._hidden.sub(lambda m: f"{BEGIN}{m[0][0]}{HIDE}{m[0][1:]}{END}", text)

    def render(self, turns: Sequence[dict], generate: bool, source: str | None = None) -> str:
        """The text of [{role, content}, …]; with `generate`, up to where an answer begins.
        `source`: another template than the tokenizer's."""
        try:
            return self._hf.apply_chat_template(
                list(turns),
                chat_template=self._fixed + (source or self.source),
                tokenize=False,
                add_generation_prompt=generate,
                **self.settings.args,
            )
        except Exception as error:
            roles = ", ".join(turn["role"] for turn in turns)
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.directory}: the chat template refuses turns of {roles}: {reason}"
            ) from None

    # --- Trying the template on small dialogues ---------------------------------------------------

    def _refuse(self, reason: str, advice: str = "") -> UserError:
        advice = advice or "use format = 'text', or a template without that"
        return UserError(f"{self.directory}: the chat template {reason}; {advice}")

    def _check_answer(self) -> None:
        """A question and its answer; sets `gap` and `after`. Raises UserError for what would make
        wrong tokens of them."""
        question, answer = _TURNS[0]["content"], _TURNS[1]["content"]
        prompt, complete = self.render(_TURNS[:1], True), self.render(_TURNS[:2], False)
        if question not in prompt or answer not in complete:
            raise self._refuse("does not write what a turn says")
        for begin, end in self.tags:
            if prompt.rfind(begin) > prompt.rfind(end):
                raise self._refuse(
                    f"begins every answer inside a thought ({begin})",
                    "switch that off in config.model.template_args (often "
                    "enable_thinking=False), or use format = 'text'",
                )
        if not complete.startswith(prompt):
            raise self._refuse(f"does not begin an answer as its prompt ends ({prompt[-20:]!r})")
        self.gap, _, self.after = complete[len(prompt) :].partition(answer)
        # Between prompt and answer there may be a closed thought, and nothing else.
        visible = without_reasoning(self.gap, self.tags)
        control = [token for token in self._control_tokens if token in visible]
        ignores = prompt == self.render(_TURNS[:1], False)
        for token in sorted(control, key=len, reverse=True):
            visible = visible.replace(token, "")
        if visible.strip() or (control and ignores):
            reason = (
                "ignores add_generation_prompt" if ignores else "does not write all of a prompt"
            )
            raise self._refuse(f"{reason}: {self.gap[:60]!r} comes between prompt and answer")
        if self._control_tokens:
            text = self.mark(f"{self._control_tokens[0]}x")
            if text not in self.render([{"role": "user", "content": text}], True):
                raise self._refuse("changes what a turn says")

    def _check_turns(self) -> None:
        """A longer dialogue, as `_check_answer`."""
        prompt, complete = self.render(_TURNS[:3], True), self.render(_TURNS, False)
        order = [complete.find(turn["content"]) for turn in _TURNS]
        if -1 in order or order != sorted(order):
            raise self._refuse("loses turns of a longer dialogue")
        if not complete.startswith(prompt):
            raise self._refuse("rewrites earlier turns once they are answered")
        if complete[len(prompt) : order[-1]] != self.gap:
            raise self._refuse("begins a later answer in another way than the first")

    def _takes_system(self) -> bool:
        system = {"role": "system", "content": "probesystem"}
        try:
            prompt = self.render([system, *_TURNS[:3]], True)
            complete = self.render([system, *_TURNS], False)
        except UserError:
            return False
        return prompt.count(system["content"]) == 1 and complete.startswith(prompt)
