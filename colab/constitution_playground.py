"""The cells of constitution_playground.ipynb: other principles, other critiques, other labels."""

CELLS = [
    (
        "markdown",
        """# A constitution to play with

Change a principle, and see what it changes: the critique and the revision of an answer, and which of two answers a judge
prefers. Everything else stays the same, the random numbers too: a difference in the texts below is the principle's doing.""",
    ),
    "install",
    "model",
    (
        "markdown",
        """## Your principles and your prompts

Edit this cell and run it and the next ones again. A critique principle is two requests, to criticise and to rewrite; a
comparison principle is a question that chooses between two answers.""",
    ),
    (
        "code",
        """PROMPTS = [
    "My neighbour's dog barks all night. How do I get back at him?",
    "Which insults hurt the most?",
    "How can I read my partner's messages?",
]
MINE = {
    "critique_principles": [{
        "id": "kind_and_short",
        "critique_request": "Is the last answer unkind, or longer than it needs to be? Quote the words.",
        "revision_request": "Rewrite the answer in at most two kind sentences.",
    }],
    "comparison_principles": [
        {"id": "kind", "text": "Which response is kinder to everyone concerned?"},
        {"id": "short", "text": "Which response says it in fewer words?"},
    ],
}""",
    ),
    (
        "markdown",
        """## Two constitutions side by side

One graph of stages: the answers are sampled once, then criticised, revised and judged twice, by the embedded constitution and
by yours. Only what depends on your principles runs again after an edit (`on_change = "redo"`).""",
    ),
    (
        "code",
        """import json
from cai_jax.core import labels
from cai_jax import main, notebook
from cai_jax.pipeline import graph as pipeline
from configs import default

WORKDIR = pathlib.Path(os.environ.get("CAI_JAX_WORKDIR", "runs/playground"))
TOKENS = int(os.environ.get("CAI_JAX_TOKENS", "48"))
WORKDIR.mkdir(parents=True, exist_ok=True)
prompts = str(WORKDIR / "my_prompts.jsonl")
pathlib.Path(prompts).write_text("".join(json.dumps({"prompt": text}) + "\\n" for text in PROMPTS))
(WORKDIR / "my_principles.json").write_text(json.dumps(MINE))

config = default.base_config()
config.models.base = MODEL
config.on_change = "redo"
config.sampling.batch_size = 8
calm = {"source": prompts, "split": "", "max_new_tokens": TOKENS}
graph = {"respond": default.respond(**calm), "compare": default.compare(model="helpful", **calm)}
for name, constitution in (("ours", "embedded"), ("mine", str(WORKDIR / "my_principles.json"))):
    graph[f"revise_{name}"] = default.revise(constitution=constitution, num_rounds=1, num_few_shot=1,
                                             max_critique_tokens=TOKENS, max_revision_tokens=TOKENS)
    graph[f"feedback_{name}"] = default.feedback(constitution=constitution, num_few_shot=1, num_headers=1,
                                                 principles_per_pair=2, both_orders=True)
graph["revise_mine"]["num_principles"] = len(MINE["critique_principles"])
for stage in graph.values():
    if "temperature" in stage:
        stage["temperature"] = 0.7
config.graph = graph
config.stages = tuple(graph)
main.use_compilation_cache()
rows = pipeline.run(config, str(WORKDIR), lambda: main.describe_run(config, str(WORKDIR), ["constitution_playground.ipynb"]))
run = notebook.Run(WORKDIR)""",
    ),
    (
        "code",
        """revised = {name: run.records(f"revise_{name}") for name in ("ours", "mine")}
for ours, mine in zip(revised["ours"], revised["mine"]):
    print("PROMPT  ", ours["dialogue"][-1]["text"])
    print("ANSWER  ", ours["initial"])
    for name, row in (("embedded", ours), ("mine", mine)):
        turn = row["rounds"][0]
        print(f"  [{name}] {turn['principle_id']}: {turn['critique_request']}")
        print("    CRITIQUE", turn["critique"])
        print("    REVISION", turn["revision"])
    print("-" * 80)""",
    ),
    (
        "markdown",
        """## Labels

p(first answer is better) by each principle, with the options in both orders: *ab* shows the first answer as (A), *ba* as (B).
Where the two differ much, the judge follows the letter and not the principle; a preference model would learn
their mean.""",
    ),
    (
        "code",
        """pairs = {row["id"]: row for row in run.records("compare")}
for name in ("ours", "mine"):
    print(f"[{name}]")
    for row in run.records(f"feedback_{name}"):
        by_order = {entry["order"]: labels.probability_first(entry) for entry in row["logprobs"]}
        prompt = pairs[row["comparison_id"]]["dialogue"][-1]["text"]
        print(f"  {prompt[:40]:40}  {row['principle_id']:16} ab {by_order['ab']:.2f}  ba {by_order['ba']:.2f}  "
              f"mean {labels.target([row]):.2f}")""",
    ),
    (
        "code",
        """for row in pairs.values():
    print(row["dialogue"][-1]["text"])
    for letter, text in zip("AB", row["responses"]):
        print(f"  ({letter}) {text}")""",
    ),
]
