"""What a test does on the page."""

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

BLANK = "blank.html"
PATIENCE_SECONDS = 60
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers have none
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics processor
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1000,900",
)


def find_chromium() -> str | None:
    """The program, by the names that it has where it comes from."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def chromium(*arguments: str) -> Iterator:
    """A driver of Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = find_chromium()
    for argument in (*OPTIONS, *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        yield driver
    finally:
        driver.quit()


class Page:
    """The page in a browser."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server

    def open(self, query: str = "") -> str:
        """Loads the page, waits until it can be asked or gave up, and returns which."""
        self.console_errors()  # of the test before
        self.browser.get(f"{self.server.url}{query}")
        return self.wait(lambda: self.browser.execute_script("return document.body.dataset.state"))

    def wait(self, look):
        """What `look` finds, once it finds something."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := look()):
            assert time.monotonic() < end, f"nothing came: {self.text('body')}"
            time.sleep(0.02)
        return found

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return "\n".join(element.text for element in self.all(selector))

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def choose(self, *paths: Path) -> None:
        """Picks files as in the dialog of the browser."""
        self.browser.find_element("css selector", "#files").send_keys("\n".join(map(str, paths)))

    def ask(self, question: str, *paths: Path) -> str:
        """Asks, and returns the answer or the refusal."""
        if paths:
            self.choose(*paths)
        count = len(self.all(".answer[aria-busy=false]"))
        self.browser.execute_script("document.getElementById('question').value = arguments[0]", question)
        self.browser.find_element("css selector", "#question").send_keys("\n")
        return self.said(count)

    def said(self, count: int) -> str:
        """The answer behind `count` others, or the refusal."""

        def look():
            answers = self.all(".answer[aria-busy=false] > p:first-child")
            return answers[count].text if len(answers) > count else self.text(".refusal")

        return self.wait(look)

    def take_tokens(self, number: int) -> None:
        """Moves the slider to a number of visual tokens by its keys."""
        from selenium.webdriver import Keys

        slider = self.browser.find_element("css selector", "#visual-tokens input")
        slider.send_keys(Keys.HOME)
        while int(slider.get_attribute("aria-valuetext")) < number:
            slider.send_keys(Keys.ARROW_RIGHT)
        assert int(slider.get_attribute("aria-valuetext")) == number

    def anew(self) -> None:
        self.click("#anew")

    def run(self, script: str, *arguments):
        """What the body of an asynchronous function of JavaScript returns; `args` are its arguments."""
        wrapped = (
            "const done = arguments[arguments.length - 1], args = [...arguments].slice(0, -1);"
            f"const run = async () => {{ {script} }};"
            "run().then((value) => done({value}), (error) => done({error: String(error)}));"
        )
        result = self.browser.execute_async_script(wrapped, *arguments)
        assert "error" not in result, result["error"]
        return result["value"]

    def console_errors(self) -> list[str]:
        """What the console says that is worse than a remark, since this was last asked."""
        return [line["message"] for line in self.browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


# Bytes to JavaScript and back.
TO_BYTES = "const toBytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));"
TO_TEXT = (
    "const toText = (array) => { const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);"
    "let text = ''; for (let at = 0; at < bytes.length; at += 8192) "
    "text += String.fromCharCode(...bytes.subarray(at, at + 8192)); return btoa(text); };"
)


def to_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def from_text(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)
