"""Figures 5, 6 and 7: revisions 0 to 4, the number of principles, with and without a critique, in
three sizes."""

from configs import microworld


def get_config():
    config = microworld.base_config()
    microworld.add_sizes(config)
    graph = {}
    for size, role in microworld.SIZES.items():
        end = "" if role == "helpful" else f"_{size}"
        graph[f"respond{end}"] = microworld.respond(model=role)
        graph[f"revise{end}"] = microworld.revise(responses=f"respond{end}", model=role)
        graph[f"revise_direct{end}"] = microworld.revise(
            responses=f"respond{end}", model=role, critique=False
        )
    for number in (1, 2, 4, 8):
        graph[f"revise_{number}"] = microworld.revise(num_principles=number)
    config.graph = graph
    config.stages = tuple(graph)
    return config
