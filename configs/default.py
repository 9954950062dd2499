"""Every field, with the paper's value (Bai et al. 2022, arXiv 2212.08073; "2204" is arXiv
2204.05862).

`get_config()` is Constitutional AI as published, in the sizes of the paper. Other configs start
from it and shrink it; the functions below make one stage each, so that a graph can hold several of
a kind. Where the paper is silent, the comment says so and gives the default's reason. A field is
overridden on the command line as `--config.graph.STAGE.FIELD=VALUE`.
"""

from ml_collections import ConfigDict, config_dict

# auto: the tokenizer's chat template if it has one, else the paper's Human/Assistant text; or text,
# chat
MODEL_FORMAT = "auto"


def optional(kind, value=None):
    """A field that may be empty: `optional(int)` is None until a number is given."""
    field = config_dict.placeholder(kind)
    if value is not None:
        field.set(value)
    return field


def topic():
    """What the run is about, in one place: stages name its parts as "topic:prompts" and so on. With
    a topic of your own set prompts, constitution (with worked examples) and the words; what is left
    at its default is named at the start."""
    return {
        "prompts": "embedded:red_team",  # requests that the constitution is about
        # ordinary requests, mixed in to keep helpfulness; "" for none
        "helpful": "embedded:helpful",
        # people's comparisons for the preference model; "" for none
        "comparisons": "embedded:helpful_comparisons",
        # Held out for evaluation. "": the split "heldout" of embedded data; of other sources two
        # tenths by a hash of the first human turn, and the stages train on the other eight tenths.
        # A file named here is held out with all its rows; one that is trained on, too, with those
        # of its split "heldout".
        "heldout_prompts": "",
        "heldout_helpful": "",
        "heldout_comparisons": "",
        # ours; a directory with the paper's official files; or a JSON file of our schema
        "constitution": "embedded",
        "choices": "embedded:hhh",  # multiple-choice comparisons in `evaluate`
        # what the judge of `evaluate` is asked on two answers to `prompts`; "": which one does less
        # harm
        "question": "",
        "name": "red-team",  # in the report: "red-team prompts"
        "quality": "harmless",  # in the report: "more harmless", "harmlessness"
    }


def prompts(
    source="topic:prompts",
    split="train",
    offset=0,
    limit=None,
    max_characters=None,
    max_bad_rows=0,
):
    """Which prompts: "embedded:red_team", "embedded:helpful", a .jsonl[.gz] or .parquet file with a
    field "prompt", "tfds:NAME", or "hf:ORG/NAME", several joined by "+"; `cai_jax/data/sources.py`
    has the grammar. All fields but `source` hold for every source that says nothing else:
    "a.jsonl[0-8/10]+b.jsonl[heldout:100]".

    `split`: the rows of that field "split"; a file without the field has the split "train" alone.
    "" takes all; "2-5/10" takes those whose first human turn falls into parts 2 to 5 of ten, the
    same in every file (`cai_jax/data/selection.py`). `offset` and `limit` cut a range out of the
    split; where `max_characters` is given, longer ones are left out before that."""
    fields = {"source": source, "split": split, "offset": offset, "limit": optional(int, limit)}
    fields["max_bad_rows"] = (
        max_bad_rows  # so many rows that cannot be read are left out, counted with lines
    )
    return fields if max_characters is None else {**fields, "max_characters": max_characters}


def human_pairs(
    source="topic:comparisons", split="train", offset=0, limit=None, max_characters=None
):
    """Which of people's comparisons: "embedded:helpful_comparisons", or a source of pairs as
    hh-rlhf, TRL and UltraFeedback publish them (`cai_jax/data/comparisons.py`). The other fields
    are those of `prompts`; the characters are those of the dialogue and the longer answer."""
    return prompts(source, split, offset, limit, max_characters)


def draw(max_new_tokens, temperature=1.0, top_k=0, top_p=1.0):
    """How tokens are drawn. The paper samples at temperature 1 with nothing cut off; temperature 0
    is greedy."""
    return {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }


def optimisation(learning_rate, batch_size, num_epochs=1):
    """Adam(W). The paper: one epoch, constant learning rate; its pretraining rate is not published,
    so the rates here are those of 2204's ratios (0.5, 0.01) on 2e-5, a usual finetuning rate for
    open models."""
    return {
        "num_epochs": num_epochs,
        "batch_size": batch_size,  # sequences (sl) or comparisons (pm) a step, over all devices
        # a step is worked through in so many parts, exactly; of packed rows, parts left empty cost
        # nothing
        "num_microbatches": 1,
        "learning_rate": learning_rate,
        "schedule": "constant",  # constant, linear or cosine (to zero), after warm-up
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,  # not stated in the paper; 0 switches clipping off
        # tokens; longer examples are left out and counted, never cut (2204: context 1024)
        "max_length": 1024,
        "save_every_steps": 100,
        "log_every_steps": 1,
    }


def adapters(rank=0, alpha=16.0, targets=("all",), base_dtype=""):
    """Low-rank adapters (LoRA, arXiv 2106.09685) on frozen weights instead of training all of them.
    The paper trains all.

    With them, a stage's state and checkpoints hold adapters and head only, and all models of an rl
    stage that go back to one base (policy, reference, preference model, value model) share one copy
    of its weights. A stage that starts from a model with adapters trains those on, and then needs
    the same numbers. Their usual learning rate is about 10 × that of full finetuning."""
    return {
        "rank": rank,  # 0: none, all weights are trained
        "alpha": alpha,  # a matrix W acts as W + alpha / rank · A·B
        "targets": targets,  # all, or some of q, k, v, o, gate, up, down ("q,v")
        "base_dtype": base_dtype,  # int8: the frozen matrices in 8 bits; "": in model.dtype
    }


def respond(
    model="helpful", num_samples=1, max_new_tokens=256, temperature=1.0, top_p=1.0, **prompt_fields
):
    """Answers to prompts (section 3.1). The length limit is not stated; 128 in 2204's RL, 256
    leaves room."""
    return {
        "kind": "respond",
        "inputs": {},
        "model": model,
        "prompts": prompts(**prompt_fields),
        "num_samples": num_samples,
        **draw(max_new_tokens, temperature, top_p=top_p),
        "format": MODEL_FORMAT,
    }


def revise(responses="respond", **fields):
    """Critique and revision rounds (section 3.1)."""
    return {
        "kind": "revise",
        "inputs": {"responses": responses},
        "model": "helpful",
        # ours; a directory with the paper's official files; or a JSON file of our schema
        "constitution": "topic:constitution",
        "num_principles": optional(int),  # the first n of the constitution (Figure 6); empty: all
        "num_rounds": 4,
        "critique": True,  # False: revise directly, without a critique (section 3.5, Figure 7)
        # worked examples before every request; whole examples, in the constitution's order
        "num_few_shot": 5,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_critique_tokens": 256,
        "max_revision_tokens": 256,  # not stated
        "format": MODEL_FORMAT,
        **fields,
    }


def sl(revisions="revise", helpful="respond_helpful", **fields):
    """Supervised finetuning on revisions → SL-CAI (section 3.2)."""
    return {
        "kind": "sl",
        "inputs": {
            "revisions": revisions,
            "helpful": helpful,
        },  # helpful: responses mixed in; "" for none
        "init": "base",  # a pretrained LM, not the helpful model (section 3.2)
        "targets": "all",  # all revisions (section 3.2), or final (introduction)
        "max_round": optional(int),  # SL-CAI-n trains on revisions 1..n; empty: all rounds
        # Answers that ran into the limit of tokens. keep: learned as far as they go, without an end
        # token. drop: left out and counted; what is left is shorter than what the model writes. The
        # paper is silent.
        "cut_answers": "keep",
        "helpful_fraction": optional(
            float
        ),  # of the examples; empty: all there are (the paper mixes them and gives no share)
        **optimisation(learning_rate=1e-5, batch_size=1024),
        "adapters": adapters(),
        "format": MODEL_FORMAT,
        **fields,
    }


def compare(
    model="@sl", num_samples=2, max_new_tokens=256, temperature=1.0, top_p=1.0, **prompt_fields
):
    """Groups of answers to the same prompt (section 4.1): pairs in the paper."""
    return {
        "kind": "compare",
        "inputs": {},
        "model": model,
        "prompts": prompts(**prompt_fields),
        "num_samples": num_samples,
        **draw(max_new_tokens, temperature, top_p=top_p),
        "format": MODEL_FORMAT,
    }


def feedback(comparisons="compare", **fields):
    """AI feedback: the multiple choice, or a chain of thought before it (section 4.1)."""
    return {
        "kind": "feedback",
        "inputs": {"comparisons": comparisons},
        # with a chain of thought the helpful model, else the feedback model (section 4.1)
        "model": "auto",
        "constitution": "topic:constitution",
        # or chain_of_thought; or preference_model: the scores of model="@pm" are the labels
        "mode": "multiple_choice",
        "num_few_shot": 5,
        # few-shot headers with freshly drawn principles; 0: one a comparison (the paper), n: n in
        # all
        "num_headers": 0,
        # 1 of 16 is drawn per comparison (the paper); more are averaged when labels are read
        "principles_per_pair": 1,
        "both_orders": False,  # ask with the options exchanged too; the flip rate is then reported
        "num_chains": 1,  # chains of thought a comparison and order, averaged
        "max_chain_tokens": 256,
        "temperature": 1.0,
        "format": MODEL_FORMAT,
        **fields,
    }


def human(**pair_fields):
    """People's comparisons as an input of `feedback`, which then says how often its labels agree
    with people."""
    return {"kind": "human", "inputs": {}, "human": human_pairs(**pair_fields)}


def best_of(responses, reward="@pm"):
    """Of the answers that a `respond` stage drew to a prompt the one with the highest score, in
    place of a policy."""
    return {"kind": "best_of", "inputs": {"responses": responses}, "reward": reward}


def pm(comparisons="compare", labels="feedback", **fields):
    """Preference model on AI labels mixed with human helpfulness comparisons (section 4.1; 2204
    section 4)."""
    return {
        "kind": "pm",
        "inputs": {
            "comparisons": comparisons,
            "labels": labels,
        },  # "" for both: human comparisons only (the RLHF baselines)
        "init": "base",
        "human": human_pairs(),
        "human_fraction": optional(
            float
        ),  # of the training comparisons; empty: all there are (the paper: 135,296 of 318,127)
        "label_kind": "soft",  # or hard
        # Soft labels are clamped to this range; () for none. auto: (0.4, 0.6) where `labels` come
        # after chains of thought, which make them nearly 0 or 1, else () (section 4.1).
        "clamp": ("auto",),
        "average_orders": True,
        # Pairs with an answer that ran into the limit of tokens. keep: where 1 % or more of the
        # answers did, the score of one that did is read at its last token, in rl and evaluate too.
        # drop: left out and counted. rl scores such answers, so the preference model had better
        # know them.
        "cut_answers": "keep",
        **optimisation(learning_rate=1e-5, batch_size=256),
        "adapters": adapters(),
        "holdout_fraction": 0.1,  # of prompts, never of rows: both sides of a prompt stay together
        # Mean 0, std 1 on the held-out responses; stored with the model. Where all pairs are AI
        # labels the scale that `clamp` gives the scores is lost in that; in a mixed set its ratio
        # to people's pairs remains.
        "normalise": True,
        "format": MODEL_FORMAT,
        **fields,
    }


def rl(policy="@sl", reward="@pm", **fields):
    """PPO against the preference model (section 4.1, "same settings as 2204")."""
    return {
        "kind": "rl",
        "inputs": {},
        "policy": policy,
        "reference": "",  # the KL's other side; "": the initial policy
        "reward": reward,  # a pm stage, or python:package.module.function (dialogues → scores)
        # the value model starts from the preference model, or from the policy with a zero head
        "value_init": "reward",
        # Or shared: a head on the policy's trunk. It starts at zero and has value_learning_rate,
        # which must then be much larger than the trunk's (such as 1e-3): at 2e-7 it stays where it
        # is.
        "value_model": "separate",
        "value_coefficient": 0.1,  # weight of the value loss where the trunk is shared
        "prompts": prompts("topic:prompts+topic:helpful"),  # both kinds (section 4.2)
        "format": MODEL_FORMAT,
        "num_updates": 1000,
        "rollouts_per_update": 256,  # not stated in the paper
        "num_epochs": 1,  # inner epochs over a rollout; 2204 uses 1 to 4
        "num_minibatches": 1,
        "num_microbatches": 1,
        "kl_coefficient": 0.001,  # per token, against the initial policy
        "kl_target": optional(float),  # nats a response: adapts the coefficient; empty: fixed
        "kl_horizon": 10000,
        "clip": 0.2,
        "value_clip": 0.2,
        "gamma": 1.0,
        "lam": 0.95,  # not stated; 0.95 is usual
        "whiten_rewards": False,
        # subtracted from the reward of an answer that ran into the length limit
        "missing_eos_penalty": 0.0,
        "learning_rate": 2e-7,  # 0.01 × the pretraining rate, with warm-up
        "value_learning_rate": 2e-7,  # of the value model, or of the head where the trunk is shared
        # constant, linear or cosine (to zero at the last update), after warm-up; of both rates
        "schedule": "constant",
        "warmup_updates": 10,
        "max_grad_norm": 1.0,
        "adapters": adapters(),  # on policy and value model
        "max_prompt_tokens": 512,
        "max_new_tokens": 128,  # 2204
        "temperature": 1.0,
        "save_every_updates": 20,
        # keep the policy every n updates (Figures 8 and 10); 0: only the last
        "snapshot_every_updates": 0,
        **fields,
    }


def harm(source="tfds:cai_hh_rlhf/red_team_attempts", split="", **fields):
    """A regressor of absolute harmfulness, 0 to 4, by the squared error to people's ratings of
    dialogues (section 4.5). Not among the stages of `get_config`: the ratings are a file of their
    own, see `harm.ratings`."""
    return {
        "kind": "harm",
        "inputs": {},
        "init": "base",  # "a language model"; not said which
        # hh-rlhf's red-team-attempts {transcript, rating}: the file, or the data set that
        # `data.prepare` makes of it
        "ratings": prompts(source, split),
        "heldout": prompts("", ""),  # measured on only; "" for none
        "holdout_fraction": 0.1,  # of the first human turns of `ratings`
        **optimisation(learning_rate=1e-5, batch_size=64),
        "adapters": adapters(),
        "format": MODEL_FORMAT,
        **fields,
    }


def evaluate(models, revisions="", **fields):
    """Samples and scores of several models on held-out prompts; accuracies on HHH comparisons
    (section 4.3)."""
    return {
        "kind": "evaluate",
        "inputs": {
            "revisions": revisions
        },  # scored round by round (Figure 5) and by principle; "" for none
        # name → model, "responses:FILE.jsonl", or "@stage" of best_of or respond; differences are
        # to the one first in the graph
        "models": models,
        # the model with Elo 0 (the paper: SL-CAI); the first where there is none of that name
        "anchor": "sl",
        "reward": "@pm",
        # matches with equal scores, or an undecided judge, say nothing (the paper); half: half a
        # win of each
        "elo_ties": "drop",
        # a model that compares answers (Elo, both orders) and names evasive ones, e.g. "judge"; ""
        # for none
        "judge": "",
        # what it is asked on answers to prompts_red_team; "": which one does less harm
        "judge_question": "topic:question",
        "feedback": "feedback",  # the model that answers the HHH multiple choice; "" for none
        # Any field prompts_NAME is a set of prompts that every model answers.
        "prompts_red_team": prompts("topic:prompts", "heldout"),
        "prompts_helpful": prompts("topic:helpful", "heldout"),
        "num_samples": 1,
        **draw(max_new_tokens=256),
        # or official evaluation files; "a+b" for several sets; "" for none
        "choices": "topic:choices",
        # BIG-bench's folder hhh_alignment: the 438 are then told apart into its 221 and the other
        # 217
        "big_bench": "",
        "choices_of_models": False,  # whether every one of `models` answers them, too
        "num_choices": optional(int),  # n of each set, evenly spaced; empty: all
        # items of the same set as worked examples, never of themselves; 0: zero-shot only
        "num_few_shot": 0,
        "num_chains": 0,  # chains of thought an item, averaged (the paper: 1 and 5); 0: none
        "max_chain_tokens": 256,
        # worked chains of `constitution` before each chain, as in `feedback` (its default: 5); 0:
        # none
        "num_few_shot_chains": 0,
        "constitution": "topic:constitution",  # whose chain examples those are
        # Calibration after chains of thought is also shown for probabilities clamped to this range.
        # auto: pm.clamp, of the preference model named as reward before others, or (0.4, 0.6); ()
        # for none.
        "clamp": ("auto",),
        "comparisons": human_pairs(split="heldout"),
        "harm": absolute_harm(),
        "format": MODEL_FORMAT,
        **fields,
    }


def absolute_harm(model="", num_samples=256, temperatures=(0.0, 1.0), **prompt_fields):
    """Expected harm of every model's answers (section 4.5, Figure 10): 64 held-out prompts, 256
    answers each, at both temperatures; greedy answers are all the same, so one is drawn."""
    return {
        "model": model,
        "num_samples": num_samples,
        "temperatures": temperatures,  # model: "@harm"; "" for none
        "prompts": {**prompts("topic:prompts", "heldout", limit=64), **prompt_fields},
    }


def base_config():
    """What every config shares, without a graph."""
    return ConfigDict(
        {
            "seed": 0,
            "stages": ("",),  # names of the stages to run, in order
            # stop; redo: stages whose fields or inputs changed are moved aside and run again;
            # restore: those that were moved aside under just these fields are moved back
            "on_change": "stop",
            # the day, YYYY-MM-DD, that chat templates write where they write one; "": the day the
            # run began
            "date": "",
            # Roles: directories, hub names (HuggingFaceTB/SmolLM2-135M-Instruct), gs:// paths,
            # @stage, or other roles.
            "models": {
                # what is finetuned; in the paper a pretrained LM
                "base": "models/smollm2-135m-instruct",
                # answers, criticises, writes chains of thought; in the paper helpful RLHF
                "helpful": "base",
                "feedback": "base",  # judges pairs; in the paper a pretrained LM
                "judge": "base",  # kept for evaluation
            },
            "topic": topic(),
            "mesh": {
                "data": -1,
                "fsdp": 1,
                "tensor": 1,
            },  # devices along each axis; -1 takes what is left
            "model": {
                "dtype": "float32",  # of weights and activations
                # What every chat template is given: no thoughts, as in the paper (Qwen3 and SmolLM3
                # know the argument, others ignore it). With True, thoughts are sampled, counted and
                # left out of every answer.
                "template_args": {"enable_thinking": False},
                # lax.scan over layers; unrolled programs take ten times as long to compile, and run
                # no faster
                "scan_layers": True,
                # activations kept in the backward pass: none (all kept), dots, full (recomputed)
                "remat": "none",
                "logprob_chunk": 128,  # positions whose logits exist at a time
            },
            "sampling": {
                "batch_size": 16,  # rows in flight
                "chunk_steps": 16,  # tokens a device call
                # Tokens of prompt and answer together, at most the model's positions; 0: the
                # model's positions. Memory is taken as prompts need it. Five worked examples of the
                # paper have 2,000 tokens; of what is still longer, worked examples are left out,
                # and prompts that are too long without any (both are counted).
                "max_length": 4096,
                # sample and score with weights rounded to 8 bits (never in rl); see
                # benchmarks/README.md
                "int8": False,
                # prefill and scoring by splash attention (TPU) or cuDNN's (GPU, 16 bits); False: by
                # XLA's products
                "flash": True,
            },
            # training steps to trace, such as 10-12 or sl:10-12: STAGE/profile/, for TensorBoard's
            # profiler
            "profile_steps": "",
            "logging": {
                "wandb": ""
            },  # a Weights & Biases project; TensorBoard and JSON Lines are always written
            "graph": {},
        }
    )


def get_config():
    config = base_config()
    models = {"initial": "helpful", "sl": "@sl", "rl": "@rl"}
    config.graph = ConfigDict(
        {
            "respond": respond(),
            "respond_helpful": respond(source="topic:helpful", num_samples=2),
            "revise": revise(),
            "sl": sl(),
            "compare": compare(),
            "feedback": feedback(),
            "pm": pm(),
            "rl": rl(),
            "harm": harm(),  # to use it: add it to the stages, and evaluate.harm.model=@harm
            "evaluate": evaluate(models, "revise"),
            "report": {"kind": "report", "inputs": {}},
        }
    )
    config.stages = (
        "respond",
        "respond_helpful",
        "revise",
        "sl",
        "compare",
        "feedback",
        "pm",
        "rl",
        "evaluate",
        "report",
    )
    return config
