"""Captions: sentences of what a picture shows and where, for alignment; and descriptions, which can be read back.

A description names every thing in reading order, in one form:

    A cactus in the top left corner, a red star in the middle and some glasses on the right.
"""

from __future__ import annotations

import re
from collections import Counter
from random import Random

from .scene import Scene
from .vocabulary import PLACES, PLURAL_NAMES, plural, with_article

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPENINGS = (
    "",
    "",
    "There is ",
    "I see ",
    "The picture shows ",
    "This picture shows ",
    "The image shows ",
    "A picture of ",
    "An image of ",
    "In this picture there is ",
    "You can see ",
    "Here is ",
)
_PLACE_OF = {said: place for place, said in PLACES.items()}
_ITEM = re.compile(
    rf"(?:a|an|some) ((?:\w+ )?(?!and )\w+) ({'|'.join(sorted(map(re.escape, _PLACE_OF), key=len, reverse=True))})"
)


def description(scene: Scene) -> str | None:
    """The one description of `scene`; None where a place is not clear, or nobody knows what is shown."""
    places = scene.places()
    if None in places or not places:
        return None
    shown = sorted((tuple(PLACES).index(place), thing.words) for place, thing in zip(places, scene.things, strict=True))
    said = tuple(PLACES.values())
    return _sentence([f"{_a(words)} {said[place]}" for place, words in shown])


def described(text: str) -> Counter[tuple[str, str]]:
    """The (thing, place) pairs that a description names, whatever else it says."""
    return Counter((thing, _PLACE_OF[said]) for thing, said in _ITEM.findall(text.lower()))


def f1(answer: str, truth: str) -> float:
    """F1 of the (thing, place) pairs of a description, 0-1."""
    said, true = described(answer), described(truth)
    return 2 * (said & true).total() / max(1, said.total() + true.total())


def caption(scene: Scene, random: Random) -> str:
    """One of the many captions that `scene` can have: with places or without, in any order, or as numbers."""
    places = scene.places()
    order = list(range(len(places)))
    if random.random() < 0.5:
        random.shuffle(order)
    else:
        order.sort(key=lambda index: tuple(PLACES).index(places[index]) if places[index] else random.randrange(9))
    form = random.random()
    if form < 0.15:
        return _names(scene, order, random)
    if form < 0.3:
        return _numbers(scene, random)
    if form < 0.6 and None not in places:
        return _places_first(scene, places, order, random)
    opening = random.choice(OPENINGS)
    items = [_a(scene.things[index].words) + (f" {PLACES[places[index]]}" if places[index] else "") for index in order]
    return _sentence(items, opening, random.random() < 0.3)


def _a(words: str) -> str:
    return f"some {words}" if words in PLURAL_NAMES else with_article(words)


def _sentence(items: list[str], opening: str = "", plain: bool = False) -> str:
    listed = ", ".join(items) if plain or len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    sentence = f"{opening}{listed}."
    return sentence[0].upper() + sentence[1:]


def _names(scene: Scene, order: list[int], random: Random) -> str:
    if random.random() < 0.5:
        return ", ".join(scene.things[index].words for index in order)
    return _sentence([_a(scene.things[index].words) for index in order], random.choice(OPENINGS))


def _numbers(scene: Scene, random: Random) -> str:
    """How many there are of each: "three cats and a dog", by name alone."""
    counts = Counter(thing.name for thing in scene.things)
    items = []
    for name, count in counts.items():
        number = str(count) if random.random() < 0.5 else NUMBERS[count]
        items.append(f"{number} {plural(name)}" if count > 1 else _a(name))
    if random.random() < 0.3:
        things = "shapes" if scene.things[0].colour else "things"
        total = len(scene.things)
        return _sentence(items, f"{total} {things if total > 1 else things[:-1]}: ")
    return _sentence(items, random.choice(OPENINGS))


def _places_first(scene: Scene, places: list[str], order: list[int], random: Random) -> str:
    if random.random() < 0.5:
        return "; ".join(f"{places[index]}: {scene.things[index].words}" for index in order)
    return _sentence([f"{PLACES[places[index]]} {_a(scene.things[index].words)}" for index in order])
