"""The chat page itself, which Streamlit runs from top to bottom after each click: `qwen-vqa chat` starts it."""

import streamlit as st

from qwen_vqa.serving.chat.question import question
from qwen_vqa.serving.chat.server import chat_server
from qwen_vqa.serving.chat.session import LOOK_SECONDS, ChatSession
from qwen_vqa.serving.chat.sidebar import ICON, sidebar
from qwen_vqa.serving.chat.style import STYLE, announced, unseen_heading
from qwen_vqa.serving.chat.turns import follow, last_answer, turn_view, welcome


def main() -> None:
    """One run of the page."""
    st.set_page_config(page_title="qwen-vqa chat", page_icon=str(ICON), layout="centered")
    st.html(STYLE)
    session = _session()
    _watch(session)
    with st.sidebar:
        sidebar(session)
    announced(last_answer(session))
    if session.conversation.turns:
        unseen_heading("Conversation")
    else:
        welcome(session)
    for number, turn in enumerate(session.conversation.turns, 1):
        turn_view(session, number, turn)
    question(session)
    if session.busy:
        follow(session)


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


main()
