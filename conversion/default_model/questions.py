"""Questions about a scene, in many wordings, with their one true answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

from . import wordings
from .captions import description
from .scene import Scene, Thing
from .vocabulary import (
    COLOURS,
    CORNERS,
    EASY_VQA_COLOURS,
    EASY_VQA_SHAPES,
    EMOJI,
    PLACES,
    SHAPES,
    plural,
    with_article,
)


@dataclass(frozen=True)
class Turn:
    """A question, its true answer, and the family that the evaluation counts it under."""

    question: str
    answer: str
    family: str
    about: tuple[int, ...] = ()
    """Indices of the scene's things that the answer is read from; none where nothing is to be seen."""


def questions_about(scene: Scene, random: Random) -> list[Turn]:
    """Every question that can be asked about `scene`, in random wordings and a random order."""
    if scene.questions:
        turns = [Turn(_official_case(question, random), answer, "easy-vqa") for question, answer in scene.questions]
    else:
        turns = [turn for ask in FAMILIES for turn in ask(scene, random)]
    random.shuffle(turns)
    return turns


def restyled(question: str, random: Random) -> str:
    """`question` as people type it: now and then in lower or upper case or without its question mark."""
    style = random.random()
    if style < 0.12:
        return question.lower().rstrip("?.")
    if style < 0.2:
        return question.lower()
    if style < 0.24:
        return question.upper()
    if style < 0.28:
        return question.rstrip("?.")
    return question


def _official_case(question: str, random: Random) -> str:
    return question.capitalize() if random.random() < 0.15 else question


def _ask(
    family: str, choices: tuple[str, ...], answer: str, random: Random, about: Iterable[int] = (), **words: str
) -> Turn:
    if "{color}" in (wording := random.choice(choices)):
        words["color"] = random.choice(("color", "colour"))
    return Turn(restyled(wording.format(**words), random), answer, family, tuple(about))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _lone(scene: Scene) -> Thing | None:
    """The only thing in the scene, if there is only one."""
    return scene.things[0] if len(scene.things) == 1 else None


def _name(scene: Scene, random: Random) -> Iterator[Turn]:
    thing = _lone(scene)
    if thing and thing.colour is None:
        yield _ask("name", wordings.NAME + wordings.NAME_EMOJI, thing.name, random, [0])
    elif thing:
        yield _ask("shape", wordings.NAME_SHAPE + wordings.NAME[:4], thing.name, random, [0])


def _corner(scene: Scene, random: Random) -> Iterator[Turn]:
    in_corner = {thing.corner: index for index, thing in enumerate(scene.things) if thing.corner}
    if not in_corner:
        return
    empty = [corner for corner in CORNERS if corner not in in_corner]
    for corner in random.sample(tuple(in_corner), 2):
        index = in_corner[corner]
        thing = scene.things[index]
        if thing.colour and random.random() < 0.4:
            yield _ask("corner", wordings.CORNER_COLOUR, thing.colour, random, [index], corner=corner)
        else:
            choices = wordings.CORNER if thing.colour else wordings.CORNER + wordings.CORNER_EMOJI
            yield _ask("corner", choices, thing.name, random, [index], corner=corner)
    if empty and random.random() < 0.3:
        yield _ask("corner", wordings.CORNER, "nothing", random, corner=random.choice(empty))


def _where(scene: Scene, random: Random) -> Iterator[Turn]:
    index = random.randrange(len(scene.things))
    thing = scene.things[index]
    if thing.corner:
        words = f"{thing.colour} {thing.name}" if thing.colour and random.random() < 0.3 else thing.name
        yield _ask("where", wordings.WHERE, thing.corner, random, [index], thing=words)


def _place(scene: Scene, random: Random) -> Iterator[Turn]:
    """What lies in a ninth of the picture and in which ninth something lies, where things have no corner."""
    if scene.kind not in ("several", "shapes", "clutter", "touching"):
        return
    places, names = scene.places(), [thing.words for thing in scene.things]
    alone = [index for index, place in enumerate(places) if place and None not in places and places.count(place) == 1]
    if alone:
        index = random.choice(alone)
        said = random.choice((places[index], PLACES[places[index]]))
        yield _ask("corner", wordings.PLACE, scene.things[index].name, random, [index], place=said)
    once = [index for index, place in enumerate(places) if place and names.count(names[index]) == 1]
    if once:
        index = random.choice(once)
        yield _ask("where", wordings.WHERE_PLACE, places[index], random, [index], thing=names[index])


def _describe(scene: Scene, random: Random) -> Iterator[Turn]:
    if scene.kind not in ("counting", "easy-vqa") and (answer := description(scene)):
        yield _ask("describe", wordings.DESCRIBE, answer, random, range(len(scene.things)))


def _count(scene: Scene, random: Random) -> Iterator[Turn]:
    names = [thing.name for thing in scene.things]
    asked = names[0] if scene.kind == "counting" else random.choice(names)
    if scene.kind in ("counting", "several", "single", "clutter", "touching"):
        yield _count_of(asked, plural(asked), names, random)
    if random.random() < 0.12:
        absent = random.choice(tuple(SHAPES if scene.things[0].colour else EMOJI))
        yield _count_of(absent, plural(absent), names, random)
    if scene.things[0].colour and (scene.kind != "easy-vqa" or random.random() < 0.2):
        yield _count_of(None, random.choice(wordings.ANY_SHAPES), names, random)
    elif scene.kind in ("several", "counting", "clutter", "touching") and random.random() < 0.25:
        yield _count_of(None, random.choice(wordings.ANY_THINGS), names, random)


def _count_of(name: str | None, things: str, names: list[str], random: Random) -> Turn:
    """How many of `names` are `name`, or how many there are of all, called `things`."""
    counted = [index for index, other in enumerate(names) if name in (None, other)]
    return _ask("count", wordings.COUNT, str(len(counted)), random, counted, things=things)


def _present(scene: Scene, random: Random) -> Iterator[Turn]:
    names = [thing.name for thing in scene.things]
    has_shapes = scene.things[0].colour is not None
    pool = SHAPES if has_shapes else tuple(EMOJI)
    for _ in range(2 if scene.kind in ("several", "corners", "clutter", "touching") else 1):
        asked = random.choice(tuple(dict.fromkeys(names)) if random.random() < 0.5 else pool)
        seen = [index for index, name in enumerate(names) if name == asked]
        if len(scene.things) == 1 and random.random() < 0.3:
            yield _ask("present", wordings.IS_THIS, _yes(bool(seen)), random, [0], a_thing=with_article(asked))
        elif random.random() < 0.2:
            yield _ask("present", wordings.PRESENT_MANY, _yes(bool(seen)), random, seen, things=plural(asked))
        else:
            yield _ask("present", wordings.PRESENT, _yes(bool(seen)), random, seen, a_thing=with_article(asked))
    if has_shapes:
        yield _coloured_present(scene, random)


def _coloured_present(scene: Scene, random: Random) -> Turn:
    """Is there a red circle, or a red shape: often one whose colour and shape are there, but not on one thing."""
    colour, name = random.choice(scene.things).colour, random.choice(scene.things).name
    if random.random() < 0.35:
        colour = random.choice(tuple(COLOURS))
    if random.random() < 0.35:
        name = "shape"
    seen = [i for i, thing in enumerate(scene.things) if thing.colour == colour and name in (thing.name, "shape")]
    return _ask("present", wordings.PRESENT, _yes(bool(seen)), random, seen, a_thing=with_article(f"{colour} {name}"))


def _colour(scene: Scene, random: Random) -> Iterator[Turn]:
    names = [thing.name for thing in scene.things]
    unique = [i for i, thing in enumerate(scene.things) if thing.colour and names.count(thing.name) == 1]
    for index in random.sample(unique, min(2, len(unique))):
        thing = scene.things[index]
        choices = wordings.COLOUR + wordings.COLOUR_LONE if len(names) == 1 else wordings.COLOUR
        asked = "shape" if len(names) == 1 and random.random() < 0.3 else thing.name
        yield _ask("colour", choices, thing.colour, random, [index], shape=asked)


def _shape(scene: Scene, random: Random) -> Iterator[Turn]:
    colours = [thing.colour for thing in scene.things]
    unique = [index for index, colour in enumerate(colours) if colour and colours.count(colour) == 1]
    for index in random.sample(unique, min(2, len(unique))):
        thing = scene.things[index]
        yield _ask("shape", wordings.SHAPE, thing.name, random, [index], colour=thing.colour)


def _easy_vqa(scene: Scene, random: Random) -> Iterator[Turn]:
    """easy-VQA's questions about a scene like its own, yes and no equally often."""
    thing = _lone(scene)
    if thing is None or thing.name not in EASY_VQA_SHAPES or thing.colour not in EASY_VQA_COLOURS:
        return
    yield Turn(random.choice(wordings.EASY_VQA_SHAPE), thing.name, "easy-vqa", (0,))
    asked = random.choice(("shape", thing.name))
    yield Turn(random.choice(wordings.EASY_VQA_COLOUR).format(shape=asked), thing.colour, "easy-vqa", (0,))
    for pool, true in ((EASY_VQA_SHAPES, thing.name), (EASY_VQA_COLOURS, thing.colour)):
        asked = true if random.random() < 0.5 else random.choice(pool)
        words = f"{asked} shape" if asked in EASY_VQA_COLOURS else asked
        negated = random.random() < 0.5
        wording = random.choice(wordings.EASY_VQA_ABSENT if negated else wordings.EASY_VQA_PRESENT)
        yield Turn(wording.format(thing=words), _yes((asked == true) != negated), "easy-vqa", (0,))


FAMILIES: tuple[Callable[[Scene, Random], Iterator[Turn]], ...] = (
    _name,
    _corner,
    _where,
    _place,
    _count,
    _present,
    _colour,
    _shape,
    _easy_vqa,
    _describe,
)
