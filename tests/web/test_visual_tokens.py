"""The slider: how many visual tokens a picture becomes, from the next question on."""

import json

import pytest

from tests.web.page import Page
from tests.web.test_page import EXAMPLES, FOX, QUESTIONS, ZOO, forget

# Sure answers with each number: the browser rounds otherwise, which a narrow choice would not bear.
TURNS = [
    ("What is this?", FOX),
    ("Where is the panda?", ZOO),
    ("What color is the triangle?", EXAMPLES / "shapes.png"),
]


def test_by_keyboard_it_says_each_number(page):
    from selenium.webdriver import Keys

    slider = page.browser.find_element("css selector", "#visual-tokens input")
    assert slider.accessible_name == "Visual tokens a picture" and slider.aria_role == "slider"
    assert page.text("#visual-tokens") == "16 visual tokens a picture"  # the model's own
    said = []
    for key in (Keys.HOME, *[Keys.ARROW_RIGHT] * 5):
        slider.send_keys(key)
        said.append((page.text("#visual-tokens"), slider.get_attribute("aria-valuetext")))
    assert said[0] == ("1 visual token a picture", "1")
    assert said[1:] == [(f"{number} visual tokens a picture", str(number)) for number in (4, 9, 16, 36, 36)]


@pytest.mark.parametrize("number", [36, 4, 1])
def test_answers_are_pythons_with_each_number(page, told, number):
    page.take_tokens(number)
    assert [page.ask(*turn) for turn in TURNS] == told(*TURNS, visual_tokens=number)
    assert page.text("summary").count(f"({number} visual token") == len(TURNS)
    for row in QUESTIONS[:5]:
        page.anew()  # the slider stays
        turn = (row["question"], EXAMPLES / row["image"])
        assert page.ask(*turn) == told(turn, visual_tokens=number)[0]


def test_a_number_counts_from_the_next_question_on_for_all_pictures(page, told):
    """As if the earlier turns had been of as many tokens; each answer says its number."""
    given = []
    for turn, number in zip(TURNS, (16, 1, 36), strict=True):
        page.take_tokens(number)
        answer = page.ask(*turn)
        assert answer == told(*TURNS[: len(given) + 1], visual_tokens=number, given=tuple(given))[-1]
        given.append(answer)
    assert page.text("summary").split("\n") == [
        "What did it look at? (16 visual tokens a picture)",
        "What did it look at? (1 visual token a picture)",
        "What did it look at? (36 visual tokens a picture)",
    ]


def test_the_drawing_is_of_the_number_that_was_asked_with(page):
    """Pooling to one token leaves one window, which no line of 4 x 4 windows cuts."""
    drawn = []
    for number in (1, 16):
        page.take_tokens(number)
        page.ask("Where is the panda?", ZOO)
        page.take_tokens(36)  # after the answer
        page.click("summary")
        page.wait(lambda: page.all(".maps canvas"))
        drawn.append(page.browser.execute_script("return document.querySelector('.maps canvas').toDataURL()"))
        page.anew()
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("change", ["one window", "an older export"])
def test_there_is_none_without_a_choice(browser, server, site, told, change):
    page, path = Page(browser, server), site / "exported/export.json"
    forget(page)
    before = path.read_text(encoding="utf-8")
    manifest = json.loads(before) | {"version": 1}
    manifest["windows"] = manifest["windows"][:1]
    if change == "an older export":
        del manifest["windows"]
    try:
        path.write_text(json.dumps(manifest), encoding="utf-8")
        assert page.open() == "ready"
        assert not page.browser.find_element("css selector", "#visual-tokens").is_displayed()
        assert page.ask(*TURNS[0]) == told(TURNS[0])[0]
        assert page.text("summary") == "What did it look at?"
    finally:
        path.write_text(before, encoding="utf-8")
        forget(page)
