"""The lower end of the chat page: images for the next question, and the question itself."""

import contextlib

import streamlit as st

from qwen_vqa.serving.chat.pictures import SUFFIXES
from qwen_vqa.serving.chat.session import ChatSession
from qwen_vqa.serving.chat.text import plain
from qwen_vqa.serving.chat.turns import pictures

WAITING_WIDTH = 72
MAX_UPLOAD_MB = 20


def question(session: ChatSession) -> None:
    """Notices, images that wait, more images, and the box to ask in."""
    with st.bottom:
        for notice in session.notices:
            st.warning(plain(notice), icon=":material/warning:")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            with st.container(width="content"):  # also when empty: what is open beside it stays where it is, and open
                pictures(session, session.waiting, WAITING_WIDTH, "waiting")
            with st.popover("Picture from the web", icon=":material/add_link:", type="tertiary"):
                _address(session)
            with st.popover("Take a picture", icon=":material/photo_camera:", type="tertiary"):
                _camera(session)
    # In a conversation not in `st.bottom`, where the box goes by itself: only so does Streamlit scroll to new answers.
    # Before there is one the page begins at its top, on a phone, too.
    with contextlib.nullcontext() if session.conversation.turns else st.bottom:
        _input(session)


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


def _camera(session: ChatSession) -> None:
    key = f"camera-{session.photos}"  # a new one for each photo, so that the next can be taken at once

    def attach() -> None:
        if photo := st.session_state[key]:
            session.notices.clear()
            session.attach_photo(photo.getvalue())

    st.camera_input("Take a picture", key=key, on_change=attach, label_visibility="collapsed")
    st.caption("Browsers lend the camera only to pages on this machine or behind https.")


def _input(session: ChatSession) -> None:
    def submit() -> None:
        said = st.session_state.question
        session.notices.clear()
        if session.attach_files(said.files):
            waiting, session.waiting = session.waiting, []
            session.ask(said.text.strip(), waiting)
        else:
            st.session_state.question = said.text

    st.chat_input(
        "Ask about the pictures" if session.models else "Waiting for the server",
        key="question",
        accept_file="multiple",
        file_type=list(SUFFIXES),
        max_upload_size=MAX_UPLOAD_MB,
        disabled=session.busy or not session.models,
        on_submit=submit,
    )
