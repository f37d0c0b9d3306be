"""The chat page's sidebar: the server, the model, the settings, the conversation."""

from pathlib import Path

import streamlit as st

from qwen_vqa.serving.chat.server import ListedModel
from qwen_vqa.serving.chat.session import ChatSession
from qwen_vqa.serving.chat.text import count

ICON = Path(__file__).with_name("icon.svg")


def sidebar(session: ChatSession) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.image(str(ICON), width=36, alt="")
        st.markdown("#### qwen-vqa", width="content")
    _status(session)
    _model(session)
    with st.expander("Settings", icon=":material/tune:"):
        _settings(session)
    if session.conversation.turns:
        _memory(session)


def _status(session: ChatSession) -> None:
    if session.served.problem:
        st.badge("not available", icon=":material/cloud_off:", color="red")
    else:
        st.badge("ready", icon=":material/check_circle:", color="green")
    st.caption(f"`{session.server.url}`")


def _model(session: ChatSession) -> None:
    def choose() -> None:
        session.settings.model = st.session_state.model

    # The list may have lost the chosen one since the last run.
    st.session_state.model = session.settings.model or None
    bases = {model.name: model for model in session.models}
    st.selectbox(
        "Model",
        list(bases),
        key="model",
        format_func=lambda name: _model_label(bases[name]),
        on_change=choose,
        disabled=not bases,
        placeholder="none",
    )


def _model_label(model: ListedModel) -> str:
    return f"{model.name} (adapter)" if model.base else model.name


def _settings(session: ChatSession) -> None:
    settings = session.settings
    settings.temperature = st.slider(
        "Temperature", 0.0, 1.5, 0.0, 0.1, help="0: always the likeliest word. More: other words, too."
    )
    longest = session.context() or 32768
    settings.max_tokens = int(
        st.number_input(
            "Longest answer, in tokens", 1, longest, min(settings.max_tokens, longest), key=f"max_tokens-{longest}"
        )
    )
    settings.system_prompt = st.text_area(
        "System prompt", placeholder="none", help="Sent before the conversation, with every question."
    ).strip()


def _memory(session: ChatSession) -> None:
    turns, pictures = session.conversation.turns, session.conversation.pictures
    st.divider()
    st.button("New conversation", icon=":material/add_comment:", width="stretch", on_click=session.restart)
    st.caption(
        f"{count(sum(turn.remembered for turn in turns), 'earlier turn')} with {count(len(pictures), 'image')} "
        "will be sent along with the next question."
    )
    used, context = turns[-1].reply.prompt_tokens + turns[-1].reply.answer_tokens, session.context()
    if used and context:
        st.progress(min(1.0, used / context), f":small[{used:,} of {context:,} tokens]")
