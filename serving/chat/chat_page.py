"""The chat page itself, which Streamlit runs from top to bottom after each click: `qwen-vqa chat` starts it."""

import streamlit as st
from streamlit.runtime.scriptrunner import StopException

from qwen_vqa.serving import DEMO_NAME
from qwen_vqa.serving.chat.conversation import ChatTurn
from qwen_vqa.serving.chat.examples import Example, examples
from qwen_vqa.serving.chat.pictures import SUFFIXES, ChatPicture
from qwen_vqa.serving.chat.server import StreamedReply, chat_server
from qwen_vqa.serving.chat.session import LOOK_SECONDS, ChatSession
from qwen_vqa.serving.chat.sidebar import ICON, sidebar
from qwen_vqa.serving.chat.text import STYLE, answer, plain

FOLLOW_SECONDS = 0.08
THUMBNAIL_WIDTH = 168
WAITING_WIDTH = 72
MAX_UPLOAD_MB = 20


def main() -> None:
    """One run of the page."""
    st.set_page_config(page_title="qwen-vqa chat", page_icon=str(ICON), layout="centered")
    st.html(STYLE)
    session = _session()
    _watch(session)
    with st.sidebar:
        sidebar(session)
    if not session.conversation.turns:
        _welcome(session)
    for number, turn in enumerate(session.conversation.turns, 1):
        _turn(session, number, turn)
    _bottom(session)
    if session.running:
        _follow(session)


# Outside all containers, as every fragment here has to be (a dialog is one, too): Streamlit 1.67 leaves the container
# that a fragment stands in as the current one, and where a click comes while the fragment ends, the same thread draws
# the page into it. In the sidebar `st.bottom` raised then.
@st.fragment(run_every=LOOK_SECONDS)
def _watch(session: ChatSession) -> None:
    """Look for the server, and draw the page anew when something changed."""
    if session.look():
        st.rerun()


def _session() -> ChatSession:
    if "session" not in st.session_state:
        session = ChatSession(chat_server())
        session.look()
        st.session_state.session = session
    return st.session_state.session


# The conversation.


def _welcome(session: ChatSession) -> None:
    st.title("Ask about a picture")
    if not session.models:
        st.error(plain(session.served.problem or "The server offers no model."), icon=":material/cloud_off:")
        st.caption("This page looks for it every few seconds.")
        return
    st.markdown(
        "Drop, paste or attach pictures below, or give the address of one on the web, and ask. "
        "Follow-up questions remember what was said and shown."
    )
    shown = examples() if any(model.name == DEMO_NAME for model in session.models) else []
    if not shown:
        return
    st.caption("Or begin with one of these:")
    for column, example in zip(st.columns(len(shown)), shown, strict=True):
        with column:
            _example(session, example)


def _example(session: ChatSession, example: Example) -> None:
    st.image(example.picture.shown, width="stretch", alt=example.picture.name)
    question = example.questions[0]
    st.button(
        question,
        key=f"example-{example.picture.name}",
        width="stretch",
        wrap=True,
        on_click=session.ask,
        args=(question, [example.picture]),
    )


def _turn(session: ChatSession, number: int, turn: ChatTurn) -> None:
    with st.chat_message("user", avatar=":material/person:"):
        _pictures(session, turn.pictures, THUMBNAIL_WIDTH, f"{number}")
        if turn.question:
            st.text(turn.question)
    if session.running and session.running.reply is turn.reply:
        return  # `_follow` writes it
    with st.chat_message("assistant", avatar=":material/visibility:"):
        _reply(turn.reply, turn.model)
        is_last = turn is session.conversation.turns[-1]
        if turn.reply.problem:
            _problem(session, number, turn)
        elif is_last:
            _follow_ups(session)


def _pictures(session: ChatSession, pictures: list[ChatPicture], width: int, key: str) -> None:
    if not pictures:
        return
    with st.container(horizontal=True, width="content", gap="small"):
        for index, picture in enumerate(pictures):
            with st.container(width=width, key=f"picture-{key}-{index}"):
                st.image(picture.shown, width="stretch", alt=picture.name)
                st.button(
                    "Remove",
                    key=f"remove-{key}-{index}",
                    help=plain(" · ".join(filter(None, (picture.name, picture.scaled)))),
                    type="tertiary",
                    icon=":material/close:",
                    on_click=session.remove,
                    args=(picture,),
                    disabled=_busy(session),
                )


def _reply(reply: StreamedReply, model: str) -> None:
    if reply.text:
        st.markdown(answer(reply.text))
    small = [model, f"{reply.seconds:.2f} s"]
    if reply.prompt_tokens:
        of_images = f" ({reply.image_tokens:,} of images)" if reply.image_tokens else ""
        small.append(f"{reply.prompt_tokens:,} prompt tokens{of_images}")
        small.append(f"{reply.answer_tokens:,} answer tokens")
    if reply.stopped:
        small.append("stopped")
    if reply.cut:
        small.append("cut off at the longest answer that the settings allow")
    if not reply.problem:
        st.caption(plain(" · ".join(small)))


def _problem(session: ChatSession, number: int, turn: ChatTurn) -> None:
    place = ""
    if turn is session.conversation.turns[-1]:
        place = session.conversation.place(turn.reply.place, session.settings.system_prompt)
    where = f" That is {place}." if place else ""
    st.error(plain(turn.reply.problem + where), icon=":material/error:")
    st.button(
        "Ask again",
        key=f"again-{number}",
        icon=":material/refresh:",
        on_click=session.ask_again,
        args=(turn,),
        disabled=_busy(session),
    )


def _follow_ups(session: ChatSession) -> None:
    """What the demo's own pictures can be asked next."""
    turns = session.conversation.turns
    asked = {turn.question for turn in turns}
    for example in examples():
        left = [question for question in example.questions if question not in asked]
        if left and any(example.picture in turn.pictures for turn in turns):
            with st.container(horizontal=True):
                for question in left:
                    st.button(
                        question, key=f"next-{question}", on_click=session.ask, args=(question, []), type="secondary"
                    )
            return


def _follow(session: ChatSession) -> None:
    """Show the answer while it is written. Clicks elsewhere run the page anew, and it is followed from there."""
    running = session.running
    assert running is not None
    with st.chat_message("assistant", avatar=":material/visibility:"):
        written = st.empty()
        st.button("Stop", icon=":material/stop_circle:", key="stop", on_click=session.stop)
    try:
        while not running.wait(FOLLOW_SECONDS):
            written.markdown(f"{answer(running.reply.text)} ▍" if running.reply.text else "▍")
    except StopException:  # the visitor closed the page
        session.stop()
        raise
    session.running = None
    st.rerun()


# Below: what is asked.


def _bottom(session: ChatSession) -> None:
    with st.bottom:
        for notice in session.notices:
            st.warning(plain(notice), icon=":material/warning:")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            _pictures(session, session.waiting, WAITING_WIDTH, "waiting")
            with st.popover("Picture from the web", icon=":material/add_link:", type="tertiary"):
                _address(session)
    _input(session)  # not in `st.bottom`, where it goes by itself: only so does Streamlit scroll to new answers


def _address(session: ChatSession) -> None:
    def attach() -> None:
        if url := st.session_state.address.strip():
            session.notices.clear()
            session.attach_url(url)

    with st.form("web", clear_on_submit=True, border=False):  # so that one address is attached once
        st.text_input(
            "Address of an image on the web",
            key="address",
            placeholder="https://example.org/picture.jpg",
            help="The server fetches it when the question is sent.",
        )
        st.form_submit_button("Attach", on_click=attach)


def _input(session: ChatSession) -> None:
    def submit() -> None:
        said = st.session_state.question
        session.notices.clear()
        if session.attach_files(said.files):
            pictures, session.waiting = session.waiting, []
            session.ask(said.text.strip(), pictures)
        else:
            st.session_state.question = said.text

    st.chat_input(
        "Ask about the pictures" if session.models else "Waiting for the server",
        key="question",
        accept_file="multiple",
        file_type=list(SUFFIXES),
        max_upload_size=MAX_UPLOAD_MB,
        disabled=_busy(session) or not session.models,
        on_submit=submit,
    )


def _busy(session: ChatSession) -> bool:
    return session.running is not None


main()
