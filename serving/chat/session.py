"""One visitor's chat: what Streamlit keeps between two runs of the page, and what the visitor can do to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.chat.conversation import ChatConversation, ChatTurn, ModelReply
from qwen_vqa.serving.chat.pictures import ChatPicture, picture_from_file, picture_from_url
from qwen_vqa.serving.chat.server import ChatServer, ListedModel, RunningReply, Served, StreamedReply

DEFAULT_MAX_TOKENS = 256
LOOK_SECONDS = 5


@dataclass
class Settings:
    """What the visitor chose; `compared` is a second model or adapter, asked the same, or none."""

    model: str = ""
    compared: str = ""
    temperature: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    system_prompt: str = ""


@dataclass
class ChatSession:
    """Conversation, images that wait for the next question, and the answers that are being written."""

    server: ChatServer
    settings: Settings = field(default_factory=Settings)
    conversation: ChatConversation = field(default_factory=ChatConversation)
    waiting: list[ChatPicture] = field(default_factory=list)
    photos: int = 0
    running: list[RunningReply] = field(default_factory=list)
    served: Served = field(default_factory=Served)
    models: tuple[ListedModel, ...] = ()
    notices: list[str] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return bool(self.running)

    def finished(self, seconds: float) -> bool:
        """Whether all answers are complete, after waiting so long at most for each."""
        return all(one.wait(seconds) for one in self.running)

    def look(self) -> bool:
        """Ask the server for its models; whether anything changed. While it is away, its last list stays."""
        before, self.served = self.served, self.server.served()
        if self.served.models:
            self.models = self.served.models
            self._choose()
        return self.served != before

    def model(self) -> ListedModel | None:
        """The chosen one."""
        return next((model for model in self.models if model.name == self.settings.model), None)

    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; an adapter has its base model's."""
        model = self.model()
        bases = {one.name: one.max_model_len for one in self.models}
        return (model.max_model_len or bases.get(model.base or "")) if model else None

    def attach_files(self, files: list[Any]) -> bool:
        """Read uploads into `waiting`; whether all of them could be used. What could not is in `notices`."""
        used = [self._attach(picture_from_file, file.getvalue(), file.name) for file in files]
        return all(used)

    def attach_url(self, url: str) -> None:
        """A web address into `waiting`."""
        self._attach(picture_from_url, url)

    def attach_photo(self, photo: bytes) -> None:
        """A picture that was taken with the page's camera into `waiting`."""
        self.photos += 1
        self._attach(picture_from_file, photo, f"photo {self.photos}.jpg")

    def ask(self, question: str, pictures: list[ChatPicture]) -> None:
        """Send a question with these images and the conversation so far."""
        self.stop()
        self.notices.clear()
        settings = self.settings
        turn = ChatTurn(question, pictures, settings.model)
        if settings.compared and settings.compared != settings.model:
            turn.compared = ModelReply(settings.compared, StreamedReply())
        self.conversation.turns.append(turn)
        self._send(turn)

    def ask_again(self, turn: ChatTurn) -> None:
        """Send a question once more, as the last one, to the models chosen now."""
        self.conversation.turns.remove(turn)
        self.ask(turn.question, turn.pictures)

    def stop(self) -> None:
        """Stop the answers that are being written, if any; what came so far stays."""
        for one in self.running:
            one.stop()
        self.running = []

    def remove(self, picture: ChatPicture) -> None:
        """Forget an image."""
        self.waiting = [other for other in self.waiting if other is not picture]
        self.conversation.remove(picture)

    def restart(self) -> None:
        """Forget the conversation and all its images; the settings stay."""
        self.stop()
        self.conversation, self.waiting, self.notices = ChatConversation(), [], []

    def _attach(self, read: Callable[..., ChatPicture], *source: Any) -> bool:
        try:
            self.waiting.append(read(*source))
        except UserError as error:
            self.notices.append(str(error))
            return False
        return True

    def _send(self, turn: ChatTurn) -> None:
        turn.places = self.conversation.places(self.settings.system_prompt)
        first = self._asked(turn.model)
        turn.reply, self.running = first.reply, [first]
        if turn.compared:
            second = self._asked(turn.compared.model)
            turn.compared.reply = second.reply
            self.running.append(second)

    def _asked(self, model: str) -> RunningReply:
        settings = self.settings
        return self.server.ask(
            {
                "model": model,
                "messages": self.conversation.messages(settings.system_prompt, model),
                "temperature": settings.temperature,
                "max_tokens": settings.max_tokens,
            }
        )

    def _choose(self) -> None:
        """A model that is served: the first, unless one was chosen; said where a chosen one is gone."""
        if self.model() is None:
            if gone := self.settings.model:
                self.notices.append(f"{gone} is no longer served; questions now go to {self.models[0].name}.")
            self.settings.model = self.models[0].name
        if (gone := self.settings.compared) and all(model.name != gone for model in self.models):
            self.notices.append(f"{gone} is no longer served; questions go to one model alone.")
            self.settings.compared = ""
