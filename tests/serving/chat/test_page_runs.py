"""Streamlit runs the page anew at each click, and a part of it every few seconds: it stays whole all the same."""

from playwright.sync_api import Browser, expect

from tests.browser import Wire
from tests.chat import visit
from tests.server import Server

CLICKS = 16
# Before it was mended, 118 of 200 such clicks broke the page: those that came when a look was nearly done.
CLICK_AT_ANY_MOMENT = """
async ([clicks, longest]) => {
  const broken = [];
  for (let click = 0; click < clicks; click++) {
    const moment = longest * click / clicks;
    look();
    await pause(moment);
    document.querySelector("[data-testid=stNumberInputStepUp]").click();
    await idle();
    if (document.querySelector("[data-testid=stException]")) broken.push(moment);
  }
  return broken;
}
"""
LONGEST_LOOK_MS = 50


def test_a_click_at_any_moment_of_a_look_for_the_server_leaves_the_page_whole(
    browser: Browser, page_url: str, laid: Wire, demo_server: Server
):
    laid.lay(demo_server.url)
    with visit(browser, page_url) as chat:
        chat.page.get_by_text("Settings").click()
        expect(chat.page.get_by_test_id("stNumberInputStepUp")).to_be_visible()
        assert chat.page.evaluate(CLICK_AT_ANY_MOMENT, [CLICKS, LONGEST_LOOK_MS]) == []
        expect(chat.page.get_by_role("main").get_by_role("heading", name="Ask about a picture")).to_be_visible()
