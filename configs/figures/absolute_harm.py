"""Figure 10: expected harm from 0 to 4, by a regressor of rated dialogues, along RL at temperature 0 and 1."""

from configs import default, microworld

SNAPSHOTS = 8
NUM_SAMPLES = 16  # the paper: 256


def get_config():
    config = microworld.get_config()
    graph = config.graph.to_dict()
    report = graph.pop("report")
    graph.pop("evaluate")
    graph["rl"] = microworld.rl(snapshot_every_updates=SNAPSHOTS)
    graph["harm"] = microworld.harm()
    steps = range(SNAPSHOTS, microworld.rl()["num_updates"], SNAPSHOTS)
    models = {"initial": "helpful", "sl": "@sl"} | {f"rl-{step}": f"@rl:{step}" for step in steps} | {"rl": "@rl"}
    asked = default.absolute_harm("@harm", NUM_SAMPLES, source=microworld.RED_TEAM)
    graph["evaluate"] = microworld.evaluate(models, "revise", harm=asked)
    graph["report"] = report
    config.graph = graph
    config.stages = tuple(graph)
    return config
