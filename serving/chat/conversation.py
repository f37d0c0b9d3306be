"""A chat's memory: its turns with their images, and the messages that carry them to the server."""

import re
from dataclasses import dataclass, field
from typing import Any

from qwen_vqa.serving.chat.pictures import ChatPicture
from qwen_vqa.serving.chat.server import StreamedReply

PLACE = re.compile(r"messages\[(\d+)\](?:\.content\[(\d+)\])?")


@dataclass(eq=False)
class ChatTurn:
    """A question with its images, who was asked, and what came back."""

    question: str
    pictures: list[ChatPicture]
    model: str
    reply: StreamedReply = field(default_factory=StreamedReply)

    @property
    def asks(self) -> bool:
        """Whether anything is left to send; an image may have been removed."""
        return bool(self.question or self.pictures)

    @property
    def remembered(self) -> bool:
        """Whether later questions are sent with it: it was answered, if only in part because the user stopped it."""
        return self.asks and bool(self.reply.text) and not self.reply.problem


@dataclass
class ChatConversation:
    """The turns so far. A question goes to the server with every earlier turn that was answered, images included."""

    turns: list[ChatTurn] = field(default_factory=list)

    def messages(self, system_prompt: str = "") -> list[dict[str, Any]]:
        """The last turn as a question, the remembered ones before it, in OpenAI's form."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        *earlier, asked = self._sent()
        for turn in earlier:
            messages += [_user(turn), {"role": "assistant", "content": turn.reply.text}]
        return [*messages, _user(asked)]

    def place(self, param: str, system_prompt: str = "") -> str:
        """What the user calls the place that the server calls `messages[2].content[0]`, or nothing."""
        found = PLACE.match(param)
        index = int(found[1]) - bool(system_prompt) if found else -1
        if found is None or index < 0 or index % 2:
            return ""
        turn = self._sent()[index // 2]
        question = f"question {self.turns.index(turn) + 1}"
        part = int(found[2]) if found[2] else len(turn.pictures)
        if part >= len(turn.pictures):
            return question
        return f"image {part + 1} of {question} ({turn.pictures[part].name})"

    def remove(self, picture: ChatPicture) -> None:
        """Forget an image: it is no longer shown, nor sent. A turn that was nothing else goes with it."""
        for turn in self.turns:
            turn.pictures = [other for other in turn.pictures if other is not picture]
        self.turns = [turn for turn in self.turns if turn.asks]

    @property
    def pictures(self) -> list[ChatPicture]:
        """Those that the next question will be sent with."""
        return [picture for turn in self.turns if turn.remembered for picture in turn.pictures]

    def _sent(self) -> list[ChatTurn]:
        *earlier, asked = self.turns
        return [*(turn for turn in earlier if turn.remembered), asked]


def _user(turn: ChatTurn) -> dict[str, Any]:
    if not turn.pictures:
        return {"role": "user", "content": turn.question}
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": picture.url}} for picture in turn.pictures
    ]
    if turn.question:
        parts.append({"type": "text", "text": turn.question})
    return {"role": "user", "content": parts}
