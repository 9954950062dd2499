"""What the configs of TPU slices and GPU machines share: the paper's graph in bfloat16, sharded,
recomputing activations."""

from configs import default


def pod(base, *, data=1, fsdp, tensor, sl=1, pm=1, rl=1, rows=256, rank=0):
    """The paper's graph on a slice.

    Args:
      base: the base model's directory or hub name; BASE-Instruct answers and judges.
      data, fsdp, tensor: axes of the mesh.
      sl, pm, rl: microbatches of a step.
      rows: responses that are sampled at a time, over all chips.
      rank: of adapters on one base instead of full finetuning.
    Returns:
      The config.
    """
    config = default.get_config()
    config.mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
    config.models.update({"base": base, "helpful": f"{base}-Instruct", "feedback": "helpful"})
    # Activations and sampling in bfloat16; training keeps float32 weights and moments.
    config.model.update({"dtype": "bfloat16", "scan_layers": True, "remat": "full"})
    config.sampling.update({"batch_size": rows, "chunk_steps": 16, "max_length": 4096})
    config.graph.sl.num_microbatches = sl
    config.graph.pm.num_microbatches = pm
    config.graph.rl.num_microbatches = rl
    for name in ("sl", "pm", "rl") if rank else ():
        config.graph[name].adapters.rank = rank
        config.graph[name].learning_rate *= 10  # usual for adapters
    return config
