"""Whoever opens the page: asks about images of every kind, makes mistakes, and is alone with their browser."""

import json
import time
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from tests.web.page import Page, chromium
from tests.web.pictures import noise, oriented
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, open_model, open_processor

EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
FOX, ROCKET, ZOO = (EXAMPLES / name for name in ("fox.png", "rocket.png", "zoo.png"))


def test_the_examples_are_answered(page):
    for row in QUESTIONS:
        assert page.ask(row["question"], EXAMPLES / row["image"]) == row["answer"]
        page.anew()


def test_text_alone_two_images_and_later_turns(page, told):
    for turns in (
        [("What is this?",), ("And what is that?",)],
        [("What is in the second image?", FOX, ROCKET)],
        [("What is this?", FOX), ("Where is the panda?", ZOO), ("Is there a fox?",)],
    ):
        assert [page.ask(*turn) for turn in turns] == told(*turns)
        page.anew()


def test_images_of_many_kinds(page, told, tmp_path):
    with Image.open(ZOO) as zoo:
        zoo = zoo.convert("RGB")
    turned = zoo.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.jpg", exif=oriented(6), quality=95)
    see_through = zoo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(zoo.size))
    see_through.save(tmp_path / "alpha.png")
    zoo.quantize(40).save(tmp_path / "palette.gif")
    zoo.resize((1500, 700)).save(tmp_path / "large.webp", lossless=True)
    zoo.convert("L").save(tmp_path / "grey.png")
    for name in ("turned.jpg", "alpha.png", "palette.gif", "large.webp", "grey.png"):
        turn = ("Where is the panda?", tmp_path / name)
        assert page.ask(*turn) == told(turn)[0]
        page.anew()
    assert told(("Where is the panda?", tmp_path / "turned.jpg")) == ["top right"]  # and not where the file has it


def test_mistakes_end_in_a_sentence_and_the_page_goes_on(page, tmp_path):
    noise(90, 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("no image")
    for name, sentence in (
        ("cut.png", "cut.png cannot be used: it is damaged or cut short: save it anew."),
        ("notes.txt", "notes.txt is no image in PNG, JPEG, WebP, GIF or BMP."),
    ):
        page.choose(tmp_path / name)
        assert page.wait(lambda: page.text(".refusal")) == sentence
        assert not page.all("#pending li")
    page.choose(FOX, tmp_path / "cut.png")  # the good one stays
    page.wait(lambda: page.text(".refusal"))
    assert page.ask("") == "Type a question first."
    assert "takes 3" in (refused := page.ask("What is this? " * 800)) and "at most 2047: start a new one." in refused
    assert page.browser.execute_script("return document.getElementById('question').value").startswith("What is this?")
    assert "contains the text of the special token '</s>'" in page.ask("What </s> is this?")
    assert page.ask("What is this?") == "fox"
    assert not page.all(".refusal")


@pytest.mark.parametrize("path", ["/exported/decoder.onnx.gz", "/vendor/ort-wasm-simd-threaded.wasm.gz", "/files.json"])
def test_what_the_server_lacks_is_named(browser, server, path):
    page = Page(browser, server)
    forget(page)
    server.missing.add(path)
    try:
        assert page.open() == "broken"
    finally:
        server.missing.clear()
    name = path.rsplit("/", 1)[1]
    assert page.text(".refusal") == f"{name} is missing on this server (404): lay the page out with assemble.py."


def forget(page) -> None:
    """What the browser has kept of the page."""
    page.browser.get(f"{page.server.url}blank.html")
    page.run(
        "for (const name of await caches.keys()) await caches.delete(name);"
        "for (const one of await navigator.serviceWorker.getRegistrations()) await one.unregister();"
    )
    page.console_errors()


def test_dropped_pasted_and_photographed(page):
    for event, property in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.run(
            """const [event, property, url] = args, transfer = new DataTransfer();
            transfer.items.add(new File([await (await fetch(url)).blob()], "fox.png"));
            const options = { bubbles: true, cancelable: true, [property]: transfer };
            document.body.dispatchEvent(new (event === "drop" ? DragEvent : ClipboardEvent)(event, options));""",
            event, property, "examples/fox.png",
        )  # fmt: skip
        assert page.ask("What is this?") == "fox"
        page.anew()
    page.click("#camera")
    page.wait(lambda: page.all("dialog[open]"))
    page.click(".shutter")
    page.wait(lambda: page.all("#pending canvas"))
    assert not page.all("dialog[open]") and page.ask("What is this?")


def test_what_was_looked_at_is_drawn(page):
    page.ask("Where is the panda?", ZOO)
    page.ask("What is the second image?", FOX)
    assert not page.all(".maps")
    for summary, images in zip(page.all("summary"), (1, 2), strict=True):
        before = len(page.all(".maps"))
        page.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", summary)
        summary.click()
        page.wait(lambda: len(page.all(".maps")) == before + images)  # noqa: B023
    titles = ["pooling", "all queries", *(f"query {number}" for number in range(1, 10))]
    assert page.text(".maps:first-of-type figcaption").split("\n")[:11] == titles
    page.anew()
    page.ask("What is this?")
    assert not page.all("summary")  # nothing to look at


@pytest.mark.parametrize(("visual_tokens", "window"), [(None, 3), (36, 2), (4, 6)])
def test_it_looks_where_the_model_looks(blank, visual_tokens, window):
    found = blank.run(
        """const { Files } = await import("/files/files.js");
        const { FlashSloth } = await import("/model/flashsloth.js");
        const { readImage } = await import("/pixels/read.js");
        const model = await FlashSloth.open(await Files.open(new URL("/", location)));
        const encoded = [];
        for (const name of ["zoo", "fox"]) {
            const blob = await (await fetch(`/examples/${name}.png`)).blob();
            encoded.push(await model.encode(await readImage(blob, name)));
        }
        const content = [{ type: "image" }, { type: "image" }, { type: "text", text: "Where is the panda?" }];
        const asked = [{ role: "user", content }], chosen = args[0] ?? undefined;
        const { looked } = await model.answer(asked, encoded, async () => true, chosen);
        const plain = (maps) => maps.map((map) => [...map]);
        return [looked.grid, plain(looked.pooling), looked.queries.map(plain), looked.tokens];""",
        visual_tokens,
    )
    content = [{"type": "image", "path": str(path)} for path in (ZOO, FOX)]
    content.append({"type": "text", "text": "Where is the panda?"})
    inputs = open_processor(DEFAULT_CHECKPOINT).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"pooling_window": window},
    )
    explanation = open_model(DEFAULT_CHECKPOINT, dtype="float32").explain(**inputs)
    grid, pooling, queries, tokens = found
    assert tokens == (144 / window**2)
    assert tuple(grid) == tuple(explanation.pooling_weights.shape[2:])
    # 8 bits move some weight between the patches of a window: in one of eight of the smallest, in none of the others.
    differences = torch.tensor(pooling) - explanation.pooling_weights.flatten(1)  # (N, P)
    moved = differences.abs().unflatten(1, (12 // window, window, 12 // window, window)).sum((2, 4)) / 2
    assert (moved < 0.1).float().mean() > (0.85 if window == 2 else 0.97)  # of the windows
    attention = explanation.query_attention[:, -1].flatten(2)  # (N, Q, P)
    torch.testing.assert_close(torch.tensor(queries), attention, atol=0.1, rtol=0)
    most = torch.tensor(queries)[0].argmax(-1, keepdim=True)  # (Q, 1); both eyes of the panda may draw alike
    assert (attention[0].gather(-1, most) > attention[0].amax(-1, keepdim=True) - 0.1).all() and attention.max() > 0.5


def test_an_image_can_be_taken_back(page):
    page.choose(ROCKET, FOX)
    page.wait(lambda: len(page.all("#pending canvas")) == 2)
    page.click("[aria-label='Remove rocket.png']")
    assert page.ask("What is this?") == "fox"
    assert len(page.all(".question canvas")) == 1


def test_by_keyboard_alone(page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(page.browser).send_keys(*keys).perform()

    def focused() -> str:
        return page.browser.execute_script("return document.activeElement.textContent")

    page.browser.execute_script("document.activeElement.blur()")
    for _ in range(20):
        press(Keys.TAB)
        if "Where is the panda?" in focused():
            break
    press(Keys.ENTER)
    assert page.said(0) == "top right"
    press("What is")
    ActionChains(page.browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    press("in the bottom left corner?", Keys.ENTER)
    assert page.said(1)
    assert page.all(".question p")[1].text == "What is\nin the bottom left corner?"


@pytest.fixture
def phone(page):
    metrics = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield page
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phones_width_is_enough(phone):
    outside = """return [...document.querySelectorAll("button, textarea, canvas, p, img, input, label, span")]
        .filter((one) => one.checkVisibility())
        .map((one) => [one.outerHTML.slice(0, 60), one.getBoundingClientRect()])
        .filter(([, { left, right }]) => left < 0 || right > innerWidth)"""
    small = """return [...document.querySelectorAll("#ask .line button, #anew, #examples button, #visual-tokens input")]
        .filter((one) => one.checkVisibility()).map((one) => one.getBoundingClientRect())
        .filter(({ width, height }) => width < 44 || height < 44)"""
    for ask in (lambda: None, lambda: phone.ask("What is here? " * 9 + "x" * 90, FOX, ROCKET, ZOO)):
        ask()
        assert phone.browser.execute_script("return innerWidth") == 360
        assert phone.browser.execute_script("return document.documentElement.scrollWidth") == 360
        assert phone.browser.execute_script(outside) == []
        assert phone.browser.execute_script(small) == []


def test_scripts_in_the_page_do_not_run(page):
    policy = page.browser.find_element("css selector", "meta[http-equiv=Content-Security-Policy]")
    assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(policy.get_attribute("content").split())
    ran = page.run(
        """const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        const elsewhere = await fetch("http://127.0.0.1:1/").then(() => true, () => false);
        return [Boolean(window.ran), elsewhere];"""
    )
    assert ran == [False, False]
    assert all("Content Security Policy" in message for message in page.console_errors())


def test_it_works_without_a_server_afterwards(page):
    page.wait(lambda: page.run("return Boolean((await navigator.serviceWorker.getRegistration())?.active)"))
    page.server.is_gone = True
    try:
        assert page.open() == "ready"
        assert page.ask("What is this?", FOX) == "fox"
    finally:
        page.server.is_gone = False
    page.console_errors()  # that there is no server to ask for a newer version


def comes_back(page) -> str:
    """The heading that somebody sees who left and comes back a little later."""
    page.browser.get("about:blank")
    time.sleep(0.5)
    assert page.open() == "ready"
    return page.text("h1")


def test_a_newer_version_comes_with_the_visit_after_next(page, site):
    """The first visit gets it, the one after shows it; never a mix of both."""
    page.wait(lambda: page.run("return Boolean((await navigator.serviceWorker.getRegistration())?.active)"))
    index, html = site / "files.json", site / "index.html"
    before = index.read_text(), html.read_text()
    try:
        index.write_text(before[0].replace('"version": "', '"version": "newer'))
        html.write_text(before[1].replace("<h1>FlashSloth", "<h1>FlashSloth 2"))
        assert page.open() == "ready" and page.text("h1") == "FlashSloth"
        page.wait(lambda: page.run("return Boolean((await navigator.serviceWorker.getRegistration())?.waiting)"))
        page.wait(lambda: comes_back(page) == "FlashSloth 2")
        assert page.ask("What is this?", FOX) == "fox"
    finally:
        index.write_text(before[0])
        html.write_text(before[1])
        forget(page)


def test_servers_that_unpack_by_themselves(blank):
    blank.server.unpacks = True
    try:
        count = blank.run(
            """const { Files } = await import("/files/files.js");
            const files = await Files.open(new URL("/", location));
            for (const name of await caches.keys()) await caches.delete(name);
            return (await files.bytes("exported/image_encoder.onnx")).length;"""
        )
    finally:
        blank.server.unpacks = False
    assert count > 2**20


def test_an_answer_can_be_stopped(blank):
    pieces = blank.run(
        """const { Files } = await import("/files/files.js");
        const { FlashSloth } = await import("/model/flashsloth.js");
        const model = await FlashSloth.open(await Files.open(new URL("/", location)));
        model.limits.endIds = []; // it would end by itself
        const asked = [{ role: "user", content: [{ type: "text", text: "What is this?" }] }];
        const pieces = [];
        await model.answer(asked, [], async (text) => pieces.push(text) < 3);
        const rest = [];
        await model.answer(asked, [], async (text) => rest.push(text) > 0);
        return [pieces.length, rest.length];"""
    )
    assert pieces == [3, GenerationConfig.from_pretrained(DEFAULT_CHECKPOINT).max_new_tokens]


def test_nothing_is_asked_of_other_hosts(browser, server, tmp_path):
    """By Chromium's own log of a first visit, workers and service workers included."""
    log = tmp_path / "log.json"
    with chromium(f"--log-net-log={log}") as other:
        page = Page(other, server)
        assert page.open() == "ready"
        assert page.ask("What is this?", FOX) == "fox"
        page.wait(lambda: page.run("return Boolean((await navigator.serviceWorker.getRegistration())?.active)"))
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    ours = {params["url"] for params in asked if params.get("initiator", "").startswith(server.url.rstrip("/"))}
    for part in ("chat/main.js", "worker.js", "sw.js", "ort-wasm-simd-threaded.wasm.gz", "decoder.onnx.gz"):
        assert any(part in url for url in ours), part
    assert {urlsplit(url).netloc for url in ours if not url.startswith("blob:")} == {urlsplit(server.url).netloc}
