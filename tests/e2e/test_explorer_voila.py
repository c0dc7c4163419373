"""``workbench explore``: the same explorer as an app, on this computer only and with a token."""

from __future__ import annotations

import urllib.error
import urllib.request

from playwright.sync_api import Browser, expect

from e2e import servers


def test_nobody_gets_in_without_the_token(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address.split("?")[0], timeout=10) as reply:
        text = reply.read().decode()
    assert "explore(" not in text
    assert "wb-explorer" not in text
    assert "login" in reply.url


def test_the_app_shows_the_explorer_and_answers(address: str, browser: Browser) -> None:
    with browser.new_page(viewport={"width": 1280, "height": 800}) as page:
        watch = servers.Watch(page)
        page.goto(address)
        expect(page.locator("[data-kind=host] [data-node='7']")).to_be_visible(timeout=120_000)
        assert page.locator(".jp-CodeMirrorEditor:visible, .jp-InputArea:visible").count() == 0
        page.locator(".wb-nodes:visible button[data-node='6']").click()
        expect(page.locator(".wb-status")).to_contain_text("20 % on node 3 and 1 more", timeout=15_000)
        page.locator("[data-tool=in]").click()
        expect(page.locator(".wb-space")).to_have_attribute("data-exact", "true")
        assert page.evaluate("() => document.querySelector('.wb-space').dataset.stop") == str(48 << 30)
        # Everything fits the window at 1280 x 800.
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 1280
        assert watch.problems == []
        assert watch.hosts == {"127.0.0.1"}
