"""The conversation as the chat page draws it: welcome, questions, answers, and what can be done with each."""

import streamlit as st
from streamlit.runtime.scriptrunner import StopException

from qwen_vqa.serving import DEMO_NAME
from qwen_vqa.serving.chat.conversation import ChatTurn, ModelReply
from qwen_vqa.serving.chat.examples import Example, examples
from qwen_vqa.serving.chat.pictures import ChatPicture
from qwen_vqa.serving.chat.problems import in_users_words
from qwen_vqa.serving.chat.session import ChatSession
from qwen_vqa.serving.chat.text import answer, plain

FOLLOW_SECONDS = 0.08
THUMBNAIL_WIDTH = 168
ASSISTANT = ":material/visibility:"


def welcome(session: ChatSession) -> None:
    """What a new visitor can do."""
    st.title("Ask about a picture")
    if not session.models:
        st.error(plain(session.served.problem or "The server offers no model."), icon=":material/cloud_off:")
        st.caption("This page looks for it every few seconds.")
        return
    st.markdown(
        "Drop, paste or attach pictures below, take one, or give the address of one on the web, and ask. "
        "Follow-up questions remember what was said and shown."
    )
    shown = examples() if any(model.name == DEMO_NAME for model in session.models) else []
    if not shown:
        return
    st.caption("Or begin with one of these:")
    for column, example in zip(st.columns(len(shown), wrap=False), shown, strict=True):
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


def turn_view(session: ChatSession, number: int, turn: ChatTurn) -> None:
    """A question and its answers; those that are being written are followed until they are done."""
    with st.chat_message("user", avatar=":material/person:"):
        pictures(session, turn.pictures, THUMBNAIL_WIDTH, f"{number}")
        if turn.question:
            st.text(turn.question)
    is_last = turn is session.conversation.turns[-1]
    if is_last and session.running:
        return  # `follow` writes it
    with st.chat_message("assistant", avatar=ASSISTANT):
        columns = st.columns(len(turn.replies)) if turn.compared else [st.container()]
        for index, (column, one) in enumerate(zip(columns, turn.replies, strict=True)):
            with column:
                _reply(one, turn, f"{number}-{index}")
        if any(one.reply.problem for one in turn.replies):
            st.button(
                "Ask again",
                key=f"again-{number}",
                icon=":material/refresh:",
                on_click=session.ask_again,
                args=(turn,),
                disabled=session.busy,
            )
        elif is_last:
            _follow_ups(session)


def pictures(session: ChatSession, shown: list[ChatPicture], width: int, key: str) -> None:
    """Images in a row, each with a cross that takes it out of the conversation."""
    if not shown:
        return
    with st.container(horizontal=True, width="content", gap="small"):
        for index, picture in enumerate(shown):
            with st.container(width=width, key=f"picture-{key}-{index}"):
                st.image(picture.shown, width="stretch", alt=picture.name)
                st.button(
                    f"Remove {plain(picture.name)}",
                    key=f"remove-{key}-{index}",
                    help=plain(" · ".join(filter(None, (picture.name, picture.scaled)))),
                    type="tertiary",
                    icon=":material/close:",
                    on_click=session.remove,
                    args=(picture,),
                    disabled=session.busy,
                )


def _reply(one: ModelReply, turn: ChatTurn, key: str) -> None:
    reply = one.reply
    if turn.compared:
        st.markdown(f"**{plain(one.model)}**")
    if reply.text:
        with st.container(key=f"answer-{key}"):
            st.markdown(answer(reply.text))
    if reply.problem:
        st.error(plain(in_users_words(reply.problem, reply.place, turn.places)), icon=":material/error:")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(plain(_small_print(one)), width="content")
        if reply.text:
            with st.popover("Copy", icon=":material/content_copy:", type="tertiary", key=f"copy-{key}"):
                st.code(reply.text, language=None, wrap_lines=True)


def _small_print(one: ModelReply) -> str:
    reply = one.reply
    small = [one.model, f"{reply.seconds:.2f} s"]
    if reply.prompt_tokens:
        of_images = f" ({reply.image_tokens:,} of images)" if reply.image_tokens else ""
        small.append(f"{reply.prompt_tokens:,} prompt tokens{of_images}")
        small.append(f"{reply.answer_tokens:,} answer tokens")
    if reply.stopped:
        small.append("stopped")
    if reply.cut:
        small.append("cut off at the longest answer that the settings allow")
    return " · ".join(small)


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


def follow(session: ChatSession) -> None:
    """Show the answers while they are written. Clicks elsewhere run the page anew, and they are followed from there."""
    turn = session.conversation.turns[-1]
    with st.chat_message("assistant", avatar=ASSISTANT):
        columns = st.columns(len(turn.replies)) if turn.compared else [st.container()]
        written = [column.empty() for column in columns]
        st.button("Stop", icon=":material/stop_circle:", key="stop", on_click=session.stop)
    try:
        while not session.finished(FOLLOW_SECONDS):
            for place, one in zip(written, turn.replies, strict=True):
                place.markdown(f"{answer(one.reply.text)} ▍" if one.reply.text else "▍")
    except StopException:  # the visitor closed the page
        session.stop()
        raise
    session.running = []
    st.rerun()


def last_answer(session: ChatSession) -> str:
    """What a screen reader reads out: the newest answer once it is there, and before that, that it is on its way."""
    if not session.conversation.turns:
        return ""
    if session.busy:
        return "The answer is being written."
    turn = session.conversation.turns[-1]
    said = [f"{one.model}: {one.reply.text}" if turn.compared else one.reply.text for one in turn.replies]
    return "\n".join(said)
