"""What Constitutional AI does to SmolLM2-135M-Instruct, on public data, judged by people's
comparisons that nothing else saw.

    # The same command again goes on where it was stopped:
    python -m cai_jax.main --config=configs/results/smollm2.py:size=cpu --workdir=runs/smollm2
    python -m cai_jax.results runs/smollm2 --out=results/smollm2

Sizes: `cpu` (two cores), `gpu` (one of 80 GB; `:size=gpu,piece=1` to `piece=8` run some of its
stages, one piece after the other), `smoke` (a random model, for a test). `data=DIR` (data) says
where the files are: `python -m cai_jax.data.published DIR` downloads them under the names that are
expected here.

Data, in the form of files that hold subsets of them: prompts, the first human turns of hh-rlhf
harmless-base and helpful-base (github.com/anthropics/hh-rlhf, by way of
github.com/janphilippfranken/typo); comparisons, hh-rlhf's test files; principles, worked examples
and the 438 HHH questions, github.com/anthropics/ConstitutionalHarmlessnessPaper.

**Who sees what.** Every first human turn falls into one of ten parts, the same in every file
(`cai_jax/data/records.py`): parts 0 and 1 are held out (the policies answer these prompts,
preference models and labels are measured on these pairs), 2 to 5 teach the judge and nothing else,
6 to 9 teach everything else. So no stage that makes a policy sees a prompt or a pair of the
judge's. (`pm_all` of the gpu size does: it says what more data are worth, and neither trains nor
judges anything.)

**Budget of `cpu`: 9,000 seconds.** What the run of results/smollm2 took by the clock and of its two
processors, on a machine that did next to nothing else:

| stage | work | seconds | of processors |
|---|---|---|---|
| respond, respond_helpful | 6.8 k tokens sampled | 64 | 92 |
| revise (official), _ours, _text: 2 rounds | 48 k sampled | 820 | 1,254 |
| revise_direct | 8 k sampled | 118 | 170 |
| sl, sl_direct | 42 k trained | 298 | 537 |
| pm_judge | 671 pairs, 135 k trained | 964 | 1,754 |
| pm_harmless, pm_helpful, pm_human | 173, 147 and 320 pairs, 99 k trained | 690 | 1,249 |
| three on human pairs | 341 k read | 319 | 570 |
| compare; feedback; feedback_pm | 13 k sampled, 143 k read | 282 | 482 |
| pm_ai, pm_relabelled | 98 k trained | 610 | 1,104 |
| five rl, 6 updates × 32 answers (see below) | 29 k sampled, 71 k trained | 1,360 | 2,422 |
| respond_best, two best_of | 30 k sampled, 2 × 768 answers scored | 372 | 655 |
| evaluate and nine smaller evaluations | 33 k sampled, some 4 k texts scored | 903 | 1,575 |
| | | 6,806 = 1 h 53 min | 11,870 |

Answers are drawn at temperature 0.7 (a model of this size rambles at 1), which is also the
distribution that PPO optimises. That run's rl had 6 updates at 3e-4 with KL coefficient 0.05, in
which the policies hardly moved; the five now have 24 of two epochs at 1e-3 and 0.01, with which
`benchmarks.learning` learns, at 25 s an update some 3,000 s in all. Other learning rates are
guesses, not tuned on anything.

`gpu` takes all pairs up to 512 tokens, a preference model on all pairs but the held-out ones
(`pm_all`), chains of thought and XSTest besides. It has not run: its stages were tried in bfloat16
on the tiny model on a CPU, and planned for an H100 by formula (`python -m cai_jax.plan
--config=configs/results/smollm2.py:size=gpu --topology=h100:1 --quick`: at most 39 % of 80 GB). Its
times are not known; the pieces are cut so that none should need more than 8 minutes, and one that
is stopped goes on. What a piece hands to the next: adapters on q, k, v and o of rank 8, 3.7 MB a
trained model (twice that of an rl stage, for its value model), the records, and some 60 MB of
rollouts an rl stage.
"""

import dataclasses
import os

from configs import default

MODEL = "models/smollm2-135m-instruct"
TINY = "random:" + os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models", "tiny"
)
HELD_OUT, JUDGE, REST = "0-1/10", "2-5/10", "6-9/10"
CALM = {"temperature": 0.7}
NO_PROMPTS = default.prompts("", "")


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between the sizes. Lengths are in tokens where nothing else is given; None: no
    limit."""

    red_team: int  # prompts of the supervised stage
    helpful: int
    compared: int  # prompts whose answers are compared
    held_out: int  # prompts that the policies answer, of each kind
    # held-out pairs on which preference models and labels are measured, of each kind
    judged: int | None
    pairs: int | None = None  # of each kind, for a preference model
    prompt_characters: int = 200
    pair_characters: int | None = 320
    judge_characters: int | None = 600
    answer: int = 48
    rounds: int = 2
    few_shot: int = 1
    choice_few_shot: int = 2
    samples_best: int = 8
    batch_size: int = 16
    microbatches: int = 16  # a row each: little memory, and what a step leaves empty costs nothing
    max_length: int = 192
    rate: float = 2e-4
    save_every_steps: int = 10
    updates: int = 24
    rollouts: int = 32
    rl_answer: int = 32
    rl_rate: float = 1e-3
    rl_minibatches: int = 2
    value_model: str = "shared"  # a head on the policy: half of a step's work
    choices: int | None = 80
    adapters: tuple = (16, 32.0, ("all",))
    extras: bool = False  # pm_all, a chain of thought, XSTest


SIZES = {
    "cpu": Size(red_team=96, helpful=48, compared=160, held_out=48, judged=100),
    "gpu": Size(
        red_team=1024,
        helpful=512,
        compared=2048,
        held_out=256,
        judged=None,
        prompt_characters=400,
        pair_characters=None,
        judge_characters=None,
        answer=128,
        rounds=4,
        few_shot=4,
        choice_few_shot=5,
        batch_size=32,
        microbatches=1,
        max_length=512,
        rate=1e-4,
        save_every_steps=50,
        updates=80,
        rollouts=128,
        rl_answer=96,
        rl_rate=1e-4,
        rl_minibatches=4,
        value_model="separate",
        choices=None,
        adapters=(8, 16.0, ("q", "k", "v", "o")),
        extras=True,
    ),
    "smoke": Size(
        red_team=3,
        helpful=2,
        compared=3,
        held_out=2,
        judged=4,
        pairs=6,
        prompt_characters=40,
        pair_characters=160,
        judge_characters=160,
        answer=6,
        rounds=1,
        few_shot=0,
        choice_few_shot=0,
        samples_best=2,
        batch_size=4,
        microbatches=2,
        max_length=512,
        rate=1e-3,
        updates=2,
        rollouts=4,
        rl_answer=4,
        rl_rate=1e-3,
        choices=2,
        adapters=(2, 4.0, ("q", "v")),
    ),
}
PIECES = (  # of `gpu`
    ("respond", "respond_helpful", "revise", "revise_direct"),
    ("revise_ours", "revise_text", "sl", "sl_direct"),
    ("compare", "pm_judge", "pm_harmless", "pm_helpful", "pm_human", "pm_all"),
    (
        "human_pairs",
        "feedback",
        "agree_chat",
        "agree_text",
        "agree_ours",
        "agree_chain",
        "feedback_pm",
        "pm_ai",
        "pm_relabelled",
    ),
    ("rl", "rl_helpful"),
    ("rl_human", "rl_human_labels", "rl_relabelled"),
    ("respond_best", "best_of", "best_of_human", "evaluate"),
    (
        "evaluate_direct",
        "evaluate_ours",
        "evaluate_text",
        "evaluate_harmless",
        "evaluate_helpful",
        "evaluate_human",
        "evaluate_ai",
        "evaluate_relabelled",
        "evaluate_all",
        "evaluate_choices",
        "report",
    ),
)
# As they are called in print → the model. Differences are taken against the first.
POLICIES = {
    "SmolLM2": "helpful",
    "SL-CAI": "@sl",
    "SL-CAI-direct": "@sl_direct",
    "RL-CAI": "@rl",
    "H-RLHF": "@rl_helpful",
    "HH-RLHF": "@rl_human",
    "RL-CAI-human-labels": "@rl_human_labels",
    "RL-CAI-PM-labels": "@rl_relabelled",
    "best-of-8": "@best_of",
    "best-of-8-human-PM": "@best_of_human",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The stages of a size on the files of the directory `data`: a method for each section, after
    the settings that their stages have in common."""

    size: Size
    data: str

    def graph(self) -> dict:
        """The stages in the order in which they run."""
        made = {
            **self.supervised(),
            **self.judges(),
            **self.ai_feedback(),
            **self.reinforcement(),
            **self.evaluations(),
        }
        if self.size.extras:
            made |= self.extras()
            made["evaluate"]["prompts_xstest"] = default.prompts(
                f"{self.data}/eval_xstest.jsonl.gz", ""
            )
        return made | {"report": default.report()}  # it reads all that ran before it

    # ---- Sections --------------------------------------------------------------------------------

    def supervised(self) -> dict:
        """Section 3: critiques and revisions, four ways; SL-CAI."""
        size = self.size
        answer = {"max_new_tokens": size.answer, **CALM}
        return {
            "respond": default.respond(**self.those(self.red_team, limit=size.red_team), **answer),
            "respond_helpful": default.respond(
                **self.those(self.helpful, limit=size.helpful), **answer
            ),
            "revise": self.revise(),
            "revise_direct": self.revise(critique=False),
            "revise_ours": self.revise(constitution="embedded"),
            # The paper's Human/Assistant text, not the model's chat template.
            "revise_text": self.revise(format="text"),
            "sl": default.sl("revise", **self.steps),
            "sl_direct": default.sl("revise_direct", **self.steps),
        }

    def judges(self) -> dict:
        """People's comparisons: the judge, and three preference models; labels against people."""
        judge = self.pairs(self.both_pairs, JUDGE)
        judge["max_characters"] = self.size.judge_characters
        return {
            "pm_judge": self.pm(judge),
            "pm_harmless": self.pm(self.pairs(self.harmless_pairs)),
            "pm_helpful": self.pm(self.pairs(self.helpful_pairs)),
            "pm_human": self.pm(self.pairs(self.both_pairs)),
            "human_pairs": default.human(**self.held_out(self.both_pairs)),
            "agree_chat": self.feedback("human_pairs"),
            "agree_text": self.feedback("human_pairs", format="text"),
            "agree_ours": self.feedback("human_pairs", constitution="embedded"),
        }

    def ai_feedback(self) -> dict:
        """Section 4: AI feedback, and a better source of labels in its place."""
        size, scores = self.size, {"model": "@pm_harmless", "mode": "preference_model"}
        compared = self.those(self.red_team, offset=size.red_team, limit=size.compared)
        helpful = self.pairs(self.helpful_pairs)
        return {
            "compare": default.compare(**compared, max_new_tokens=size.answer, **CALM),
            "feedback": self.feedback("compare"),
            "feedback_pm": self.feedback("compare", **scores),
            "pm_ai": self.pm(helpful, "compare", "feedback"),
            "pm_relabelled": self.pm(helpful, "compare", "feedback_pm"),
        }

    def reinforcement(self) -> dict:
        """Reinforcement learning, whose baselines start from the model as it is, as in the paper;
        and the best of several answers."""
        size, both = self.size, f"{self.red_team}+{self.helpful}"
        held_out = self.those(both, HELD_OUT, limit=size.held_out)
        return {
            "rl": self.rl("@sl", "@pm_ai", both),
            "rl_helpful": self.rl("base", "@pm_helpful", self.helpful),
            "rl_human": self.rl("base", "@pm_human", both),
            "rl_human_labels": self.rl("@sl", "@pm_human", both),
            "rl_relabelled": self.rl("@sl", "@pm_relabelled", both),
            "respond_best": default.respond(
                model="@sl",
                num_samples=size.samples_best,
                max_new_tokens=size.answer,
                **held_out,
                **CALM,
            ),
            "best_of": default.best_of("respond_best", "@pm_ai"),
            "best_of_human": default.best_of("respond_best", "@pm_human"),
        }

    def evaluations(self) -> dict:
        """Answers by the judge; preference models on the held-out pairs; the HHH questions."""
        held_out = {"limit": self.size.held_out}
        pairs = {"comparisons": self.held_out(self.both_pairs)}
        red_team = default.prompts(**self.those(self.red_team, HELD_OUT, **held_out))
        helpful = default.prompts(**self.those(self.helpful, HELD_OUT, **held_out))
        answered = {"prompts_red_team": red_team, "prompts_helpful": helpful}
        made = {
            "evaluate": self.evaluate(POLICIES, "@pm_judge", "revise", **pairs, **answered),
            "evaluate_direct": self.evaluate({}, "@pm_judge", "revise_direct"),
            "evaluate_ours": self.evaluate({}, "@pm_judge", "revise_ours"),
            "evaluate_text": self.evaluate({}, "@pm_judge", "revise_text"),
        }
        for source in ("harmless", "helpful", "human", "ai", "relabelled"):
            made[f"evaluate_{source}"] = self.evaluate({}, f"@pm_{source}", **pairs)
        made["evaluate_choices"] = self.evaluate(
            {},
            "",
            choices=f"{self.data}/eval_438HHHEvaluations.jsonl.gz",
            feedback="feedback",
            num_choices=self.size.choices,
        )
        return made

    def extras(self) -> dict:
        """What only a large size has."""
        sampled = f"{self.data}/hh_helpful_rejection_sampled.jsonl.gz"
        chain = {"num_few_shot": 2, "max_chain_tokens": self.size.answer, **CALM}
        return {
            "pm_all": self.pm(self.pairs(f"{self.both_pairs}+{sampled}", "2-9/10")),
            "evaluate_all": self.evaluate(
                {}, "@pm_all", comparisons=self.held_out(self.both_pairs)
            ),
            "agree_chain": self.feedback("human_pairs", mode="chain_of_thought", **chain),
        }

    # ---- Data ------------------------------------------------------------------------------------

    @property
    def red_team(self) -> str:
        return f"{self.data}/redteam_hh_harmless_first_turns.jsonl.gz"

    @property
    def helpful(self) -> str:
        return f"{self.data}/helpful_hh_first_turns.jsonl.gz"

    @property
    def harmless_pairs(self) -> str:
        return f"{self.data}/hh_harmless_base.jsonl.gz"

    @property
    def helpful_pairs(self) -> str:
        return f"{self.data}/hh_helpful_base.jsonl.gz"

    @property
    def both_pairs(self) -> str:
        return f"{self.harmless_pairs}+{self.helpful_pairs}"

    @property
    def official(self) -> str:
        """The paper's own constitution."""
        return f"{self.data}/official/prompts"

    def those(self, source, split=REST, **which) -> dict:
        """Prompts; `which`: offset and limit."""
        own = {"source": source, "split": split, "max_characters": self.size.prompt_characters}
        return {"offset": 0, "limit": None, **own, **which}

    def pairs(self, source, split=REST) -> dict:
        """Comparisons to learn from."""
        size = self.size
        return default.human_pairs(source, split, 0, size.pairs, size.pair_characters)

    def held_out(self, source) -> dict:
        """Comparisons to be measured on."""
        size = self.size
        return default.human_pairs(source, HELD_OUT, 0, size.judged, size.pair_characters)

    # ---- What stages of a kind have in common ----------------------------------------------------

    @property
    def adapters(self) -> dict:
        return default.adapters(*self.size.adapters)

    @property
    def steps(self) -> dict:
        size = self.size
        return {
            **default.optimisation(size.rate, size.batch_size),
            "schedule": "linear",
            "warmup_steps": 3,
            "adapters": self.adapters,
            "max_length": size.max_length,
            "save_every_steps": size.save_every_steps,
            "num_microbatches": size.microbatches,
        }

    def revise(self, **fields) -> dict:
        shared = {
            "constitution": self.official,
            "num_rounds": self.size.rounds,
            "num_few_shot": self.size.few_shot,
            **CALM,
            "max_critique_tokens": self.size.answer,
            "max_revision_tokens": self.size.answer,
        }
        return default.revise(**shared | fields)

    def feedback(self, comparisons, **fields) -> dict:
        shared = {
            "constitution": self.official,
            "num_few_shot": self.size.choice_few_shot,
            "num_headers": 4,
            "both_orders": True,
        }
        return default.feedback(comparisons, **shared | fields)

    def pm(self, human, comparisons="", labels="") -> dict:
        # Held-out pairs are the same for all, and stages of their own; a few more normalise the
        # scores.
        return default.pm(comparisons, labels, human=human, holdout_fraction=0.05, **self.steps)

    def rl(self, policy, reward, source) -> dict:
        size = self.size
        prompts = self.those(source, limit=4 * size.updates * size.rollouts)
        return default.rl(
            policy=policy,
            reward=reward,
            prompts=default.prompts(**prompts),
            adapters=self.adapters,
            num_updates=size.updates,
            rollouts_per_update=size.rollouts,
            num_epochs=2,
            num_minibatches=size.rl_minibatches,
            warmup_updates=1,
            kl_coefficient=0.01,
            learning_rate=size.rl_rate,
            value_learning_rate=size.rl_rate,
            max_prompt_tokens=128,
            max_new_tokens=size.rl_answer,
            value_model=size.value_model,
            save_every_updates=4,
            **CALM,
        )

    def evaluate(self, models, reward, revisions="", **fields) -> dict:
        shared = {
            "anchor": "SmolLM2",
            "reward": reward,
            "feedback": "",
            "choices": "",
            "max_new_tokens": self.size.answer,
            **CALM,
            "prompts_red_team": NO_PROMPTS,
            "prompts_helpful": NO_PROMPTS,
            "comparisons": self.held_out(""),
        }
        return default.evaluate(models, revisions, **shared | fields)


def get_config(arg="size=cpu"):
    given = dict(part.partition("=")[::2] for part in (arg or "size=cpu").split(",") if part)
    if unknown := set(given) - {"size", "data", "piece"}:
        raise ValueError(f"'{', '.join(unknown)}': expected size=…, data=… and piece=…")
    name = given.get("size", "cpu")
    if name not in SIZES:
        raise ValueError(f"size={name}: expected one of {', '.join(SIZES)}")
    size, data = SIZES[name], given.get("data", "data")
    config = default.base_config()
    config.models.base = TINY if name == "smoke" else MODEL
    if name == "gpu":
        config.model.update({"dtype": "bfloat16", "scan_layers": True})
        config.sampling.update({"batch_size": 256, "max_length": 4096})
    if name == "smoke":
        config.sampling.batch_size = 8
    config.graph = made = Study(size, data).graph()
    config.stages = tuple(made)
    if "piece" in given:
        if (
            name != "gpu"
            or not given["piece"].isdigit()
            or not 1 <= int(given["piece"]) <= len(PIECES)
        ):
            raise ValueError(f"piece={given['piece']}: size=gpu has pieces 1 to {len(PIECES)}")
        config.stages = PIECES[int(given["piece"]) - 1]
    return config
