"""The chat page's sidebar: the server, the model, the settings, the conversation."""

from pathlib import Path

import streamlit as st

from qwen_vqa.serving.chat.export import as_json, as_markdown
from qwen_vqa.serving.chat.server import ListedModel
from qwen_vqa.serving.chat.session import ChatSession
from qwen_vqa.serving.chat.text import count

ICON = Path(__file__).with_name("icon.svg")


def sidebar(session: ChatSession) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="brand"):
        st.image(str(ICON), width=36, alt="")
        st.markdown("qwen-vqa", width="content")
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
    if len(bases) > 1:
        _compared(session, bases)


def _compared(session: ChatSession, bases: dict[str, ListedModel]) -> None:
    def choose() -> None:
        session.settings.compared = st.session_state.compared or ""

    others = [name for name in bases if name != session.settings.model]
    st.session_state.compared = session.settings.compared if session.settings.compared in others else None
    st.selectbox(
        "Compare with",
        others,
        key="compared",
        format_func=lambda name: _model_label(bases[name]),
        on_change=choose,
        placeholder="none",
        help="Both get the next questions, and their answers stand side by side. Each is told its own earlier answers.",
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
    with st.container(horizontal=True, gap="small"):
        _export(session)
    st.caption(
        f"{count(sum(turn.remembered for turn in turns), 'earlier turn')} with {count(len(pictures), 'image')} "
        "will be sent along with the next question."
    )
    used, context = turns[-1].reply.prompt_tokens + turns[-1].reply.answer_tokens, session.context()
    if used and context:
        st.progress(min(1.0, used / context), f":small[{used:,} of {context:,} tokens]")


def _export(session: ChatSession) -> None:
    conversation, system_prompt = session.conversation, session.settings.system_prompt
    for label, name, media_type, made in (
        ("Markdown", "conversation.md", "text/markdown", lambda: as_markdown(conversation)),
        ("JSON", "conversation.json", "application/json", lambda: as_json(conversation, system_prompt)),
    ):
        st.download_button(
            label, made, name, media_type, icon=":material/download:", on_click="ignore", help=f"Save as {name}"
        )
