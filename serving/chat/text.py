"""How the chat page looks, and how text of others stands in Streamlit's Markdown."""

import re

STYLE = """
<style>
  .block-container { padding-top: 3rem; }
  [data-testid="stSidebarHeader"] { height: 2.5rem; margin-bottom: 0; }
  [data-testid="stImage"] img { border-radius: 0.6rem; }
  [data-testid="stChatMessage"] { padding: 0.75rem 1rem; }
  /* A picture's cross lies on its corner; what it does is still read out. */
  [class*="st-key-picture"] { position: relative; }
  [class*="st-key-picture"] [class*="st-key-remove"] { position: absolute; top: 0.3rem; left: 0.3rem; width: auto; }
  [class*="st-key-picture"] button {
    min-height: 0; width: 1.5rem; height: 1.5rem; padding: 0; border: 0; border-radius: 50%;
    background: rgb(0 0 0 / 55%); color: white; opacity: 0.75;
  }
  [class*="st-key-picture"] button:hover { opacity: 1; color: white; }
  [class*="st-key-picture"] button * { gap: 0; margin: 0; justify-content: center; }
  [class*="st-key-picture"] button p { position: absolute; width: 1px; height: 1px; overflow: hidden; opacity: 0; }
</style>
"""


def plain(text: str) -> str:
    """Shown as it stands: no character of it means anything to Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:])", r"\\\1", text)


def answer(text: str) -> str:
    """A model's Markdown, without formulas, so that prices stay prices, and without images from elsewhere.

    An image would be fetched as soon as it is shown, and its address could carry off what was said.
    """
    return text.replace("$", r"\$").replace("![", "!\u200b[")


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
