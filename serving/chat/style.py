"""How the chat page looks, and what it tells those who do not see it."""

import streamlit as st

STYLE = """
<style>
  .block-container { padding-top: 3rem; }
  [data-testid="stSidebarHeader"] { height: 2.5rem; margin-bottom: 0; }
  .st-key-brand p { font-size: 1.25rem; font-weight: 600; }
  [data-testid="stImage"] img { border-radius: 0.6rem; }
  [data-testid="stChatMessage"] { padding: 0.75rem 1rem; }
  /* Streamlit's small print has a contrast of 3.9 and 2.9, and what is pointed at in the dark less; 4.5 is needed. */
  body [data-testid="stCaptionContainer"] { color: inherit; opacity: 0.8; }
  body [data-testid="stCaptionContainer"] code { color: inherit; }
  body button[kind="tertiary"]:is(:hover, :focus, :active, [aria-expanded="true"]) { color: inherit; }
  /* Streamlit says in a refused file's chip why it was refused, but to screen readers alone. */
  .stFileChip [role="alert"] {
    position: static; width: auto; height: auto; margin: 0 1.5rem 0 0.5rem; clip: auto; clip-path: none;
    white-space: normal; font-size: 0.875rem;
  }
  /* A picture's cross lies on its corner; what it does is still read out. */
  [class*="st-key-picture"] { position: relative; }
  [class*="st-key-picture"] [class*="st-key-remove"] { position: absolute; top: 0.3rem; left: 0.3rem; width: auto; }
  [class*="st-key-picture"] button {
    min-height: 0; width: 1.5rem; height: 1.5rem; padding: 0; border: 0; border-radius: 50%;
    background: rgb(0 0 0 / 75%); color: white;
  }
  [class*="st-key-picture"] button:hover { background: black; color: white; }
  [class*="st-key-picture"] button * { gap: 0; margin: 0; justify-content: center; }
  [class*="st-key-picture"] button p, .st-key-announced, .unseen {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  }
</style>
"""
# The element stays while its text changes: only so do screen readers read the change. Streamlit has no such element.
LIVE = '<script>document.querySelector(".st-key-announced").setAttribute("role", "status")</script>'


def unseen_heading(text: str) -> None:
    """The page's main heading where it would only take room."""
    st.html(f'<h1 class="unseen">{text}</h1>')


def announced(text: str) -> None:
    """Read out by screen readers whenever it changes, and not seen."""
    with st.container(key="announced"):
        st.html(LIVE, unsafe_allow_javascript=True)
        st.text(text)
