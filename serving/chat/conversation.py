"""A chat's memory: its turns with their images, and the messages that carry them to the server."""

from dataclasses import dataclass, field
from typing import Any

from qwen_vqa.plugin.images.message_parts import user_message
from qwen_vqa.serving.chat.pictures import ChatPicture
from qwen_vqa.serving.chat.server import StreamedReply


@dataclass
class ModelReply:
    """What one model or adapter answered."""

    model: str
    reply: StreamedReply


@dataclass(eq=False)
class ChatTurn:
    """A question with its images, who was asked, and what came back.

    `compared` is the answer of a second model to the same question. `places` says what the user calls the parts of the
    request (`messages[2].content[0]`), as they were when it was sent.
    """

    question: str
    pictures: list[ChatPicture]
    model: str
    reply: StreamedReply = field(default_factory=StreamedReply)
    compared: ModelReply | None = None
    places: dict[str, str] = field(default_factory=dict)

    @property
    def replies(self) -> list[ModelReply]:
        """One, or two where models are compared."""
        return [ModelReply(self.model, self.reply), *([self.compared] if self.compared else [])]

    @property
    def asks(self) -> bool:
        """Whether anything is left to send; an image may have been removed."""
        return bool(self.question or self.pictures)

    @property
    def remembered(self) -> bool:
        """Whether later questions are sent with it: it was answered, if only in part because the user stopped it."""
        return self.asks and _usable(self.reply)

    def answer_for(self, model: str) -> str:
        """What this model is told that it answered: its own answer, or the first model's where it gave none."""
        own = next((one.reply for one in self.replies if one.model == model and _usable(one.reply)), self.reply)
        return own.text


@dataclass
class ChatConversation:
    """The turns so far. A question goes to the server with every earlier turn that was answered, images included."""

    turns: list[ChatTurn] = field(default_factory=list)

    def messages(self, system_prompt: str = "", model: str = "") -> list[dict[str, Any]]:
        """The last turn as a question to this model, the remembered ones before it, in OpenAI's form."""
        return [*self._messages(self.turns[:-1], system_prompt, model), _user(self.turns[-1])]

    def answered(self, system_prompt: str = "") -> list[dict[str, Any]]:
        """All remembered turns in OpenAI's form, the first model's answers."""
        return self._messages(self.turns, system_prompt)

    def places(self, system_prompt: str = "") -> dict[str, str]:
        """What the user calls each place in `messages()`: `messages[2].content[0]` is an image of a question."""
        *earlier, asked = self.turns
        index = int(bool(system_prompt))
        places = {"messages[0]": "the system prompt"} if system_prompt else {}
        for turn in [*(turn for turn in earlier if turn.remembered), asked]:
            question = f"question {self.turns.index(turn) + 1}"
            places[f"messages[{index}]"] = places[f"messages[{index}].content[{len(turn.pictures)}]"] = question
            for part, picture in enumerate(turn.pictures):
                places[f"messages[{index}].content[{part}]"] = f"image {part + 1} of {question} ({picture.name})"
            places[f"messages[{index + 1}]"] = f"the answer to {question}"
            index += 2
        return places

    def remove(self, picture: ChatPicture) -> None:
        """Forget an image: it is no longer shown, nor sent. A turn that was nothing else goes with it."""
        for turn in self.turns:
            turn.pictures = [other for other in turn.pictures if other is not picture]
        self.turns = [turn for turn in self.turns if turn.asks]

    @property
    def pictures(self) -> list[ChatPicture]:
        """Those that the next question will be sent with."""
        return [picture for turn in self.turns if turn.remembered for picture in turn.pictures]

    def _messages(self, turns: list[ChatTurn], system_prompt: str, model: str = "") -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system_prompt}] if system_prompt else []
        for turn in turns:
            if turn.remembered:
                messages += [_user(turn), {"role": "assistant", "content": turn.answer_for(model)}]
        return messages


def _usable(reply: StreamedReply) -> bool:
    return bool(reply.text) and not reply.problem


def _user(turn: ChatTurn) -> dict[str, Any]:
    return user_message(turn.question, (picture.url for picture in turn.pictures))
