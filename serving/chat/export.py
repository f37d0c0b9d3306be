"""A conversation as a file to keep: Markdown to read, or OpenAI's messages to send again."""

import json

from qwen_vqa.serving.chat.conversation import ChatConversation


def as_markdown(conversation: ChatConversation) -> str:
    """All turns with everybody's answers, the images by name."""
    parts = ["# Conversation"]
    for turn in conversation.turns:
        parts += ["## You", *(f"*image: {picture.name}*" for picture in turn.pictures)]
        parts += [turn.question] if turn.question else []
        for one in turn.replies:
            parts += [f"## {one.model}", one.reply.text or f"*no answer: {one.reply.problem or 'stopped'}*"]
    return "\n\n".join(parts) + "\n"


def as_json(conversation: ChatConversation, system_prompt: str) -> str:
    """The answered turns as `{"messages": [...]}`, images included: a chat request's own form."""
    return json.dumps({"messages": conversation.answered(system_prompt)}, ensure_ascii=False, indent=2)
