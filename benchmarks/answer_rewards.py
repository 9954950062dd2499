"""Rewards of `benchmarks.learning`: functions of dialogues that end in an answer."""


def question_mark(dialogues):
    """1 where the answer has a question mark."""
    return [float("?" in dialogue[-1].text) for dialogue in dialogues]


def single_question(dialogues):
    """Harder: ½ for a question mark, 1 where the answer is one question and nothing after it; the
    policy must learn to stop as well."""
    answers = [dialogue[-1].text.strip() for dialogue in dialogues]
    return [0.5 * ("?" in text) + 0.5 * (text.find("?") == len(text) - 1 >= 0) for text in answers]
