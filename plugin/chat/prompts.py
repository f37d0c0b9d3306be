"""What is said to the model beside a question, written once for training, evaluation and serving."""

# LLaVA-1.5's wording (arXiv:2310.03744, section 3.2): answers of a word or two are asked for as such, so that
# they do not shorten those of conversations.
SHORT_ANSWER_INSTRUCTION = "Answer the question using a single word or phrase."
# What VizWiz calls a question that its picture does not answer.
UNANSWERABLE = "unanswerable"


def short_answer_question(question: str) -> str:
    """The question with the instruction on a line of its own below it."""
    return f"{question.strip()}\n{SHORT_ANSWER_INSTRUCTION}"
