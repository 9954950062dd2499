"""The other sides of `benchmarks.training`: torch with transformers, TRL's PPO, Tunix's PPO.

Each runs its library's own loop; no row stops early. The first round, which is not measured, is a
single epoch. Models start from the same weights, values and rewards from a new head on them.
"""

from __future__ import annotations

import json
import os
import pathlib
import queue
import tempfile
import threading

from benchmarks import sides

PAD = 5  # a token that no text has: both libraries take a padding token for the end of a row


def supervised(work):
    """One step of transformers' model with its own loss and torch's fused AdamW."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32)
    model.train()
    model.config.use_cache = False
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-5, weight_decay=0.01, betas=(0.9, 0.95), fused=True
    )
    tokens = torch.tensor(work["rows"])
    while True:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield {"loss": loss.item()}


class _Turns:
    """Lets a library's own loop, which runs in a thread, do one round a turn: it calls `pause`
    after each, and once before."""

    def __init__(self, loop):
        self._go, self._done = queue.Queue(), queue.Queue()
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()
        self._result()

    def _run(self, loop):
        try:
            loop(self)
            self._done.put(RuntimeError("the loop ended"))
        except BaseException as error:
            self._done.put(error)

    def _result(self):
        numbers = self._done.get()
        if isinstance(numbers, BaseException):
            raise numbers
        return numbers

    def pause(self, numbers=None):
        self._done.put(numbers)
        self._go.get()

    def turn(self):
        self._go.put(None)
        return self._result()


def trl_ppo(work):
    """`trl.experimental.ppo` with policy, reference, reward model and value model; 16 rows sampled
    and scored at once."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import datasets
    import torch
    import transformers
    from trl.experimental import ppo

    # --- models
    directory, count = work["model"], len(work["prompts"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)

    def policy():
        return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def scalar():
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, dtype=torch.float32, num_labels=1, pad_token_id=PAD
        )

    # --- settings
    args = ppo.PPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=count,
        gradient_accumulation_steps=1,
        num_mini_batches=work["minibatches"],
        num_ppo_epochs=work["epochs"],
        local_rollout_forward_batch_size=count,
        response_length=work["new_tokens"],
        num_sample_generations=0,
        stop_token=None,
        stop_token_id=None,
        temperature=1.0,
        learning_rate=1e-6,
        total_episodes=count * 1000,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

    # --- the trainer's own loop, paused after every update
    def loop(turns):
        class Pause(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, **_):
                args.num_ppo_epochs = 1

            def on_step_end(self, args, state, control, **_):
                numbers, args.num_ppo_epochs = (
                    {"steps": args.num_ppo_epochs * args.num_mini_batches},
                    work["epochs"],
                )
                turns.pause(numbers)

        trainer = ppo.PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy(),
            ref_model=policy(),
            reward_model=scalar(),
            value_model=scalar(),
            train_dataset=datasets.Dataset.from_dict({"input_ids": work["prompts"]}),
            callbacks=[Pause()],
        )
        turns.pause()
        trainer.train()

    turns = _Turns(loop)
    while True:
        yield turns.turn()


class _Numbers:
    """A tokenizer whose texts are tokens as numbers: Tunix takes prompts as text."""

    def encode(self, text, **_):
        return [int(number) for number in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self):
        return 1

    def pad_id(self):
        return PAD


def _tunix_config(llama, model: str):
    """The checkpoint's own config.json as Tunix's Llama."""
    fields = json.loads((pathlib.Path(model) / "config.json").read_text())
    return llama.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["hidden_size"] // fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=fields["rope_theta"]
        if "rope_theta" in fields
        else fields["rope_parameters"]["rope_theta"],
        norm_eps=fields["rms_norm_eps"],
        weight_tying=True,
    )


def tunix_ppo(work):
    """Tunix's PPOLearner with actor, reference, critic and reward model on one device; 16 rows
    sampled and scored at once."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from tunix.models.llama3 import model as llama
    from tunix.models.llama3 import params as loading
    from tunix.rl import rl_cluster
    from tunix.rl.ppo import ppo_learner
    from tunix.rl.rollout import base_rollout

    # --- the model as Tunix's Llama
    compilations = sides.compilations()
    count = len(work["prompts"])
    size, prompt, new = count // work["minibatches"], len(work["prompts"][0]), work["new_tokens"]
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    config = _tunix_config(llama, work["model"])
    called = llama.Llama3.__call__

    def tolerant(
        self, *args, segment_ids=None, **named
    ):  # 0.1.7 gives it segments, which only its other models take
        return called(self, *args, **named)

    llama.Llama3.__call__ = tolerant

    def policy():
        return loading.create_model_from_safe_tensors(work["model"], config, mesh, jnp.float32)

    def scalar(seed):  # rl.utils.create_critic_model for a model whose embedding is its unembedding
        model = policy()
        model.config = dataclasses.replace(config, weight_tying=False)
        model.lm_head = nnx.Linear(config.embed_dim, 1, use_bias=False, rngs=nnx.Rngs(seed))
        return model

    # --- settings
    roles = rl_cluster.Role
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6),
        critic_optimizer=optax.adamw(1e-6),
        eval_every_n_steps=10**9,
        max_steps=10**9,
        mini_batch_size=size,
        train_micro_batch_size=size,
        rollout_micro_batch_size=count,
        compute_logps_micro_batch_size=count,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=new,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        max_prompt_length=prompt,
        kv_cache_size=prompt + new,
        eos_tokens=[1],
    )
    cluster = rl_cluster.RLCluster(
        actor=policy(),
        critic=scalar(0),
        reference=policy(),
        reward=scalar(1),
        tokenizer=_Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        ),
    )
    learner = ppo_learner.PPOLearner(
        cluster, ppo_learner.PPOConfig(num_iterations=work["epochs"], beta=0.001)
    )
    # --- all rows of a round at once
    # By default it would sample a minibatch, learn it, and sample the next. All rows at once
    # suit it better, and are the same work: the learner believes in accumulation, the trainers make
    # a step of every minibatch.
    learner._training_config = dataclasses.replace(training, gradient_accumulation_steps=None)
    learner._training_config.gradient_accumulation_steps = work["minibatches"]

    # It asks before it asks for the round's prompts: the first round is one epoch, the others have
    # all.
    learner._num_iterations = lambda: work["epochs"] if cluster.actor_trainer.train_steps else 1

    def loop(turns):
        def batches():
            text = [" ".join(map(str, row)) for row in work["prompts"]]
            before = 0
            turns.pause()
            while True:
                yield {"prompts": np.array(text, dtype=object)}
                jax.block_until_ready(
                    [
                        nnx.state(trainer.model)
                        for trainer in (cluster.actor_trainer, cluster.critic_trainer)
                    ]
                )
                done = cluster.actor_trainer.train_steps
                turns.pause({"steps": done - before})
                before = done

        learner.train(batches())

    turns = _Turns(loop)
    yield turns.turn() | compilations()
    while True:
        yield turns.turn()
