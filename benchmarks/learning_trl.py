"""TRL's GRPO on the prompts, model, adapters and sizes of `benchmarks.learning`.

    python -m benchmarks.learning_trl REWARD SEED SPLIT FILE [--quick]

FILE gets a JSON row an update: reward, KL, tokens of the answers, seconds.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time


def _arguments(fields, num_updates: int, seed: int, path: pathlib.Path):
    """The settings of `fields`, an rl stage, as TRL has them."""
    import trl

    steps = fields.num_epochs * fields.num_minibatches
    return trl.GRPOConfig(
        output_dir=str(path.with_suffix(".trl")),
        seed=seed,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=num_updates * steps,
        per_device_train_batch_size=fields.rollouts_per_update // fields.num_minibatches,
        steps_per_generation=fields.num_minibatches,
        num_iterations=fields.num_epochs,
        num_generations=fields.group_size,
        max_completion_length=fields.max_new_tokens,
        temperature=fields.temperature,
        beta=fields.kl_coefficient,
        learning_rate=fields.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=steps * fields.warmup_updates,
        max_grad_norm=fields.max_grad_norm,
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        gradient_checkpointing=False,
    )


def _updates(rows: list[dict], num_updates: int, steps: int) -> list[dict]:
    """A row an update, of `rows` of its steps."""
    # An update's first step has the rewards of its answers; its last one its seconds.
    updates = []
    for update in range(num_updates):
        first, last = rows[update * steps], rows[(update + 1) * steps - 1]
        before = rows[update * steps - 1]["seconds"] if update else 0.0
        updates.append(
            {
                "step": update + 1,
                "reward": first["reward"],
                "kl": first.get("kl"),
                "response_tokens": first.get("completions/mean_length"),
                "seconds": last["seconds"] - before,
            }
        )
    return updates


def main(reward: str, seed: int, split: str, path: pathlib.Path, quick: bool) -> None:
    """Trains and writes the rows; they are there once all updates are.

    Args:
      reward: a function of `answer_rewards`.
      seed, split: of the run, and which of the prompts.
      path: the file.
      quick: two updates.
    """
    import datasets
    import peft
    import transformers
    import trl

    from benchmarks import answer_rewards, learning_config
    from cai_jax.data.prompts import read_prompts
    from cai_jax.structs import Message

    config = learning_config.get_config(f"reward={reward},method=grpo,seed={seed},split={split}")
    fields = config.graph.rl
    prompts, _ = read_prompts("embedded:helpful", split)
    tokenizer = transformers.AutoTokenizer.from_pretrained(learning_config.MODEL)
    asked = [[{"role": "user", "content": prompt.dialogue[-1].text}] for prompt in prompts]
    asked = [
        turns
        for turns in asked
        if len(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
        <= fields.max_prompt_tokens
    ]
    num_updates = 2 if quick else fields.num_updates
    steps = fields.num_epochs * fields.num_minibatches
    score = getattr(answer_rewards, reward)

    def rewards(completions, **_):
        return score([(Message("assistant", turns[-1]["content"]),) for turns in completions])

    started, rows = time.monotonic(), []

    class Rows(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if logs and "reward" in logs:
                seconds = time.monotonic() - started
                rows.append({"step": state.global_step, "seconds": seconds, **logs})

    trl.GRPOTrainer(
        learning_config.MODEL,
        rewards,
        args=_arguments(fields, num_updates, seed, path),
        train_dataset=datasets.Dataset.from_list([{"prompt": turns} for turns in asked]),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(
            r=fields.adapters.rank, lora_alpha=fields.adapters.alpha, target_modules="all-linear"
        ),
        callbacks=[Rows()],
    ).train()
    updates = _updates(rows, num_updates, steps)
    path.write_text("".join(json.dumps(row) + "\n" for row in updates))


if __name__ == "__main__":
    reward, seed, split, path = sys.argv[1:5]
    main(reward, int(seed), split, pathlib.Path(path), "--quick" in sys.argv)
