"""Makes configs/models/tiny: a 2-layer Llama's config.json and a small byte-level tokenizer,
without weights.

    python -m tests.make_tiny_model

The tokenizer is trained on the text below, so that its words come in a few tokens each. The files
are in the repository; run this only to change them.
"""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 768
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = """
Human: Could you help me plan a small garden behind the house? I would like to grow tomatoes, beans and some herbs.
Assistant: Of course. Begin with the place that gets the most sun, because tomatoes need at least six hours of light
every day. Turn the soil in early spring, mix in some compost, and leave enough space between the plants for air to
move.
Human: How do I make good bread at home?
Assistant: Mix flour, water, salt and a little yeast, and let the dough rest until it is twice as large. Then fold
it, shape it, and bake it in a very hot oven. What matters most is time: slow bread has more taste than fast bread.
Human: What is the difference between weather and climate?
Assistant: Weather is what happens outside today. Climate is what the weather is like over many years in one place.
Human: Please explain why the sky is blue.
Assistant: Light from the sun has all colours in it. The air scatters blue light more than red light, so blue
reaches our eyes from every side. In the evening the light comes a longer way through the air, and more of the red
is left.
Human: I have to write a letter to my neighbour about the noise in the evening. How should I begin?
Assistant: Begin with something friendly, then say what you have noticed and when. Ask for what you need, and thank
them. You could also offer to talk about it in person, which often works better than a letter.
CritiqueRequest: Say in which ways the assistant's last response could be harmful, dangerous, unfair, or wrong.
Critique: The response gives advice, but it does not ask whether other people are involved. It should explain the
risk and should not tell the human what to think. It would be better to be honest about what the assistant does not
know.
RevisionRequest: Please rewrite the assistant response so that it is harmless and honest, and still helpful.
Revision: I am sorry that this has happened to you. I cannot help with anything that could hurt another person, but
I can help you to find somebody to talk to, and here are some things that you could do instead.
Consider the following conversation between a human and an assistant. Which of these responses is less harmful?
Choose the response that is more helpful, more honest and more harmless. Options: (A) The first one. (B) The second
one. The answer is:
The old train from the north arrived in the station at noon. People with bags and boxes stepped down, looked for
their friends, and walked into the town together. A woman sold apples and warm tea; a man played music for the
children. There was a market by the river where farmers brought cheese, eggs, honey and flowers, and every week the
same people met there and talked about their work, their families, the price of things and the rain that they hoped
for. In winter the river was still under ice, and the young ones went out on it as soon as it was thick enough. In
summer they swam from one side to the other.
Numbers: 1, 2, 3, 10, 12, 25, 100, 365, 1000, 2024. Days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday,
Sunday.
Questions begin with who, what, when, where, why and how. What do you think about this? When will they come back?
Where can I find a good book about history? Why does the moon change its shape? How long does it take to learn a
language? Who wrote it?
"""


def make_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    digits, letters = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    turns = (
        TEXT.replace("\n", " ")
        .replace(" Human:", "\n\nHuman:")
        .replace(" Assistant:", "\n\nAssistant:")
    )
    tokenizer.train_from_iterator([turns], trainer)
    return tokenizer


def main(directory=pathlib.Path(__file__).parent.parent / "configs" / "models" / "tiny") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    token_ids = {
        "bos_token_id": None,
        "eos_token_id": SPECIALS.index("<|im_end|>"),
        "pad_token_id": 0,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        **token_ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    for name, value in {
        "config.json": config,
        "generation_config.json": {"eos_token_id": token_ids["eos_token_id"], "pad_token_id": 0},
        "tokenizer_config.json": tokenizer_config,
        "tokenizer.json": json.loads(tokenizer.to_str()),
    }.items():
        indent = None if name == "tokenizer.json" else 2
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
