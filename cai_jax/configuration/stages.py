"""The kinds of stages: every field of each, what it reads and what it makes.

Defaults are the paper's values (Bai et al. 2022, arXiv 2212.08073; "2204" is arXiv 2204.05862).
Where the paper is silent the comment says so and gives the default's reason. `configs/default.py`
makes stages from these tables; a field is overridden on the command line as
`--config.graph.STAGE.FIELD=VALUE`. `cai_jax/stages/KIND.py` has the stage itself.
"""

from __future__ import annotations

import dataclasses
import importlib

from cai_jax.configuration.evaluations import EVALUATION_FIELDS, HARM_FIELDS
from cai_jax.configuration.fields import (
    Field,
    Function,
    Named,
    Table,
    choice,
    count,
    flag,
    model,
    number,
    positive,
    records,
    share,
    with_defaults,
)
from cai_jax.configuration.groups import (
    ADAPTERS,
    CLAMP,
    COMPARISONS,
    CONSTITUTION,
    CUT_ANSWERS,
    DRAW,
    MAX_NEW_TOKENS,
    MODEL_FORMAT,
    OPTIMISATION,
    SCHEDULES,
    TEMPERATURE,
    rows,
)


@dataclasses.dataclass(frozen=True)
class StageKind:
    """A kind of stage. What models it needs is in its fields (`fields.Model`), what it reads in its
    inputs (`fields.Records`).

    Attributes:
      comment: what it does, with the paper's section.
      fields: the table of its fields.
      inputs: the table of the stages whose records it reads.
      writes: what its records are to other stages; "" for none.
      makes: the kind of model that it trains: policy, reward or harm; "" for none.
      samples: whether it asks models by the sampler, within sampling.max_length.
      reads_run: whether it reads every stage of the run, whatever its inputs name.
    """

    comment: str
    fields: Table
    inputs: Table = dataclasses.field(default_factory=dict)
    writes: str = ""
    makes: str = ""
    samples: bool = False
    reads_run: bool = False

    @property
    def table(self) -> Table:
        return {"inputs": self.inputs, **self.fields}


# Section 3: critiques, revisions, supervised finetuning

RESPOND = StageKind(
    "answers to prompts (section 3.1)",
    {
        "model": model("helpful", "what answers"),
        "prompts": rows(required=True),
        "num_samples": count(1, "answers to each prompt"),
        **DRAW,
        "max_new_tokens": MAX_NEW_TOKENS,
        "format": MODEL_FORMAT,
    },
    writes="responses",
    samples=True,
)

REVISE = StageKind(
    "rounds of critique and revision (section 3.1)",
    {
        "model": model("critic", "what criticises and revises"),
        "constitution": CONSTITUTION,
        "num_principles": count(None, "the first n of the constitution (Figure 6); empty: all"),
        "num_rounds": count(4, "critiques and revisions of each answer"),
        "critique": flag(True, "False: revise without a critique (section 3.5, Figure 7)"),
        "num_few_shot": count(5, "worked examples before every request, in the file's order", 0),
        **DRAW,
        "max_critique_tokens": count(256, "of a critique; not stated"),
        "max_revision_tokens": count(256, "of a revision; not stated"),
        "format": MODEL_FORMAT,
    },
    inputs={"responses": records("respond", "responses", "what is revised")},
    writes="revisions",
    samples=True,
)

SL = StageKind(
    "supervised finetuning on revisions: SL-CAI (section 3.2)",
    {
        "init": model("base", "a pretrained LM, not the helpful model (section 3.2)"),
        "targets": choice("all", ("all", "final"), "all revisions (section 3.2), or the last"),
        "max_round": count(None, "SL-CAI-n learns revisions 1 to n; empty: all rounds"),
        # Kept, they are learned as far as they go, without an end token. Without them, what is left
        # is shorter than what the model writes.
        "cut_answers": choice("keep", CUT_ANSWERS, "answers that ran into the limit of tokens"),
        # The paper mixes helpful answers and gives no share.
        "helpful_fraction": share(None, "of the examples; empty: all there are"),
        **with_defaults(OPTIMISATION, batch_size=1024),
        "adapters": ADAPTERS,
        "format": MODEL_FORMAT,
    },
    inputs={
        "revisions": records("revise", "revisions", "'' for none", empty=True),
        "helpful": records("respond_helpful", "responses", "mixed in; '' for none", empty=True),
    },
    makes="policy",
)

# Section 4: comparisons, AI feedback, the preference model, reinforcement learning

COMPARE = StageKind(
    "groups of answers to the same prompt (section 4.1): pairs in the paper",
    {
        "model": model("@sl", "what answers"),
        "prompts": rows(required=True),
        "num_samples": count(2, "answers to each prompt", low=2),
        **DRAW,
        "max_new_tokens": MAX_NEW_TOKENS,
        "format": MODEL_FORMAT,
    },
    writes="comparisons",
    samples=True,
)

HUMAN = StageKind(
    "people's comparisons as an input of `feedback`, which then measures its labels by them",
    {"human": rows("comparisons", True, source="topic:comparisons")},
    writes="comparisons",
)


FEW_SHOT = count(5, "worked examples before every question", low=0)
# 0: newly drawn principles for every comparison, as in the paper; n: for n sets in all
HEADERS = count(0, "sets of worked examples; 0: one a comparison", low=0)


def _judge_of(fields) -> str:
    return "reward" if fields["mode"] == "preference_model" else "policy"


FEEDBACK = StageKind(
    "AI feedback: the multiple choice, or a chain of thought before it (section 4.1)",
    {
        # auto: with a chain of thought the helpful model, else the feedback model (section 4.1)
        "model": model("auto", "what judges", needs=_judge_of),
        "constitution": CONSTITUTION,
        "mode": choice(
            "multiple_choice",
            ("multiple_choice", "chain_of_thought", "preference_model"),
            "preference_model: the scores of model=@pm are the labels",
        ),
        "num_few_shot": FEW_SHOT,
        "num_headers": HEADERS,
        # More than the paper's are averaged when labels are read.
        "principles_per_pair": count(1, "drawn per comparison (the paper: 1 of 16)"),
        "both_orders": flag(False, "ask with the options exchanged too, report the flip rate"),
        "num_chains": count(1, "chains of thought a comparison and order, averaged"),
        "max_chain_tokens": count(256, "of a chain of thought"),
        "temperature": TEMPERATURE,
        "format": MODEL_FORMAT,
    },
    inputs={"comparisons": records("compare", "comparisons", "what is judged")},
    writes="labels",
    samples=True,
)

PAIRS = {
    "human": COMPARISONS,
    # The paper: 135,296 of 318,127.
    "human_fraction": share(None, "of the training comparisons; empty: all there are"),
    "label_kind": choice("soft", ("soft", "hard"), "of AI labels"),
    # auto: (0.4, 0.6) where `labels` come after chains of thought, which make them nearly 0 or
    # 1, else () (section 4.1)
    "clamp": Field(("auto",), tuple, CLAMP, "soft labels are clamped to it; () for none"),
    "average_orders": flag(True, "of labels that were asked in both orders"),
}
PAIR_INPUTS = {
    "comparisons": records("compare", "comparisons", "'' for none", empty=True),
    # "" for both: people's comparisons only (the RLHF baselines)
    "labels": records("feedback", "labels", "of those comparisons; '' for none", empty=True),
}

PM = StageKind(
    "preference model on AI labels and people's comparisons (section 4.1; 2204 section 4)",
    {
        "init": model("base", "a language model, or a preference model to train further", "any"),
        **PAIRS,
        # keep: where 1 % or more of the answers ran into the limit, the score of one that did is
        # read at its last token, in rl and evaluate too. rl scores such answers, so the preference
        # model had better know them.
        "cut_answers": choice("keep", CUT_ANSWERS, "pairs with one that ran into the limit"),
        **OPTIMISATION,
        "adapters": ADAPTERS,
        # Both sides of a prompt stay together.
        "holdout_fraction": share(0.1, "of prompts, never of rows", open_high=True),
        # Where all pairs are AI labels the scale that `clamp` gives the scores is lost in that; in
        # a mixed set its ratio to people's pairs remains.
        "normalise": flag(True, "to mean 0, std 1 on held-out responses; stored with the model"),
        "format": MODEL_FORMAT,
    },
    inputs=PAIR_INPUTS,
    writes="scored pairs",
    makes="reward",
)

DPO = StageKind(
    "direct preference optimisation on comparisons or revisions, without a preference model",
    {
        "init": model("@sl", "what is trained"),
        "reference": model("", "what it is compared with; '': init (with adapters: their base)"),
        **PAIRS,
        "revision_pairs": choice(
            "final",
            ("final", "each"),
            "the last over the initial answer, or each over the one before",
        ),
        "loss": choice("sigmoid", ("sigmoid", "ipo"), "see core/dpo.py"),
        "beta": positive(0.1, "how dear it is to leave the reference"),
        "label_smoothing": number(0.0, "labels that are taken to be wrong", 0, 0.5, open_high=True),
        "nll_coefficient": number(0.0, "weight of the better answer's −log p by the token"),
        "cut_answers": choice("keep", CUT_ANSWERS, "pairs with one that ran into the limit"),
        **with_defaults(OPTIMISATION, learning_rate=5e-7),
        "adapters": ADAPTERS,
        "holdout_fraction": share(0.1, "of prompts, never of rows", open_high=True),
        "format": MODEL_FORMAT,
    },
    inputs={**PAIR_INPUTS, "revisions": records("", "revisions", "'' for none", empty=True)},
    makes="policy",
)

TERM_WEIGHT = number(1.0, "of the term in the sum; less than 0 for a penalty", low=None)
REWARD_TERMS = {
    "preference_model": {
        "model": model("@pm", "scores dialogues", "reward"),
        "weight": TERM_WEIGHT,
    },
    "python": {
        "function": Field("", str, Function(), "python:module.function of dialogues"),
        "weight": TERM_WEIGHT,
    },
    # The model that labels, in place of a preference model on its labels: of the answers to one
    # prompt pairs are compared, in both orders, and the win probabilities averaged.
    "judge": {
        "model": model("feedback", "what judges"),
        "constitution": CONSTITUTION,
        "num_few_shot": FEW_SHOT,
        "num_headers": HEADERS,
        "pairs": choice("round_robin", ("round_robin", "first"), "all pairs, or with the first"),
        "format": MODEL_FORMAT,
        "weight": TERM_WEIGHT,
    },
    "length": {"weight": TERM_WEIGHT},  # tokens of the answer
    "missing_end": {"weight": TERM_WEIGHT},  # 1 where the answer met its limit of tokens
}

RL = StageKind(
    'PPO against the preference model (section 4.1, "same settings as 2204")',
    {
        "policy": model("@sl", "what is trained"),
        "reference": model("", "the KL's other side; '': the initial policy"),
        "reward": model("@pm", "or python:module.function of dialogues", "reward", python=True),
        # terms of a weighted sum instead of `reward`, by name; see rewards/reward.py
        "rewards": Named({}, REWARD_TERMS),
        "algorithm": choice(
            "ppo", ("ppo", "grpo", "rloo"), "how rewards become a loss; see docs/methods.md"
        ),
        "group_size": count(1, "answers to each prompt of an update; grpo, rloo: at least 2"),
        "group_normalisation": choice(
            "mean_std",
            ("mean_std", "mean", "none"),
            "grpo: what is subtracted from a reward and divides it, over its group",
        ),
        # sequence_mean: long answers weigh less by the token; fixed_length: by max_new_tokens
        "loss_aggregation": choice(
            "token_mean",
            ("token_mean", "sequence_mean", "fixed_length"),
            "how the losses of tokens are averaged; rloo's are of answers",
        ),
        # Its head starts at zero in any case, and Adam moves each weight of it by hardly more than
        # the sum of the rates: 2e-4 in 1000 steps at 2e-7. Where explained_variance stays near 0,
        # value_learning_rate must be larger.
        "value_init": choice(
            "reward", ("reward", "policy"), "whose trunk a separate value model starts from"
        ),
        "value_from": model("", "that preference model; '': the first of the reward's", "reward"),
        # shared: a head on the policy's trunk, which learns at learning_rate; the head has
        # value_learning_rate alone, which must be much larger (such as 1e-3).
        "value_model": choice("separate", ("separate", "shared"), "shared: the policy's trunk"),
        "value_coefficient": number(0.1, "weight of the value loss where the trunk is shared"),
        "prompts": rows(required=True, source="topic:prompts+topic:helpful"),  # section 4.2
        # The paper trains on both kinds and gives no share. To set it, `prompts` are red-team ones
        # and these the others.
        "helpful_prompts": rows(source=""),
        "helpful_fraction": share(
            None, "of the prompts; empty: all there are", open_low=True, open_high=True
        ),
        "format": MODEL_FORMAT,
        "num_updates": count(1000, "rollouts with the steps on them"),
        "rollouts_per_update": count(256, "answers; not stated in the paper"),
        "num_epochs": count(1, "over each rollout; 2204 uses 1 to 4"),
        "num_minibatches": count(1, "optimiser steps an epoch"),
        "num_microbatches": count(1, "a step is computed in so many, exactly"),
        "kl_coefficient": number(0.001, "per token, against the initial policy"),
        "kl_in": choice("reward", ("reward", "loss"), "what the KL is a part of"),
        # k1 in the loss has a gradient of mean 0, k2 in it the KL's, k3 KL(ref ‖ policy)'s.
        # k3 in the reward has one that vanishes near the reference, and grows without bound.
        "kl_estimator": choice("k1", ("k1", "k2", "k3"), "k1 in the reward, k2 or k3 in the loss"),
        "kl_target": positive(None, "nats a response: adapts the coefficient; empty: fixed"),
        "kl_horizon": count(10000, "responses in which the coefficient adapts"),
        "clip": positive(0.2, "of the ratio of probabilities"),
        "value_clip": positive(0.2, "of the change of values"),
        "gamma": share(1.0, "discount a token"),
        "lam": share(0.95, "of the advantages; not stated, usual"),
        "whiten_rewards": flag(False, "to std 1 in each update"),
        "missing_eos_penalty": number(0.0, "off the reward of an answer that met its limit"),
        "learning_rate": number(2e-7, "0.01 × the pretraining rate, with warm-up"),
        "value_learning_rate": number(2e-7, "of the value model, or the head on a shared trunk"),
        "schedule": choice("constant", SCHEDULES, "of both rates, to zero at the last update"),
        "warmup_updates": count(10, "updates up to the learning rates", low=0),
        "max_grad_norm": number(1.0, "0: no clipping"),
        "adapters": ADAPTERS,  # on policy and value model
        "max_prompt_tokens": count(512, "longer prompts are left out and counted"),
        "max_new_tokens": count(128, "of an answer (2204)"),
        # At temperature 0 a log-probability would be infinite.
        "temperature": positive(1.0, "of the policy, in sampler and learner alike"),
        # int8 and bfloat16 decode faster and are another distribution: the difference must be
        # corrected, by min(π / π_sampler, cap) of each token or of each answer.
        "sampler_weights": choice("", ("", "bfloat16", "int8"), "'': those of the policy"),
        "correction": choice("none", ("none", "token", "sequence"), "of what another sampler drew"),
        "correction_cap": number(2.0, "the largest weight of the correction", 1),
        "save_every_updates": count(20, "updates between checkpoints"),
        "snapshot_every_updates": count(
            0, "updates whose policies are kept (Figures 8 and 10); 0: only the last", low=0
        ),
    },
    writes="responses",
    makes="policy",
    samples=True,
)

BEST_OF = StageKind(
    "of the answers that a `respond` stage drew to a prompt the one with the highest score",
    {"reward": model("@pm", "what scores them", "reward")},
    inputs={"responses": records("respond", "responses", "the answers")},
    writes="responses",
)

# Evaluation

HARM = StageKind(
    "a regressor of absolute harmfulness, 0 to 4, on people's ratings of dialogues (section 4.5)",
    HARM_FIELDS,
    makes="harm",
)

EVALUATE = StageKind(
    "answers of several models to held-out prompts, scored; accuracies (section 4.3)",
    EVALUATION_FIELDS,
    inputs={
        # Scored by round (Figure 5) and by principle.
        "revisions": records("", "revisions", "'' for none", empty=True)
    },
    writes="responses",
    samples=True,
)

REPORT = StageKind("the report of all that ran before it", {}, reads_run=True)

STAGES: dict[str, StageKind] = {
    "respond": RESPOND,
    "revise": REVISE,
    "sl": SL,
    "compare": COMPARE,
    "human": HUMAN,
    "feedback": FEEDBACK,
    "pm": PM,
    "dpo": DPO,
    "rl": RL,
    "best_of": BEST_OF,
    "harm": HARM,
    "evaluate": EVALUATE,
    "report": REPORT,
}


def stage_module(kind: str):
    """The module of a kind of stage: `SCHEMA` and `run(ctx)`, and where they are needed

    check(fields, config, where): raises UserError for fields that do not fit together;
    shortest(fields): the shortest requests that it can make (see `pipeline.limits`);
    kept_steps(fields): the steps whose checkpoints stay.
    """
    return importlib.import_module(f"cai_jax.stages.{kind}")
