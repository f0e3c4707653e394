"""The things the default model can name: emoji, shapes, colours, numbers and corners.

Every answer the model is trained to give is one of these strings, "yes" or "no".
"""

from __future__ import annotations

# Our one-word name -> short name in emoji-datasource. Chosen to be unambiguous and to look alike in most art styles.
EMOJI = {
    "airplane": "airplane",
    "alien": "alien",
    "ambulance": "ambulance",
    "anchor": "anchor",
    "apple": "apple",
    "avocado": "avocado",
    "balloon": "balloon",
    "banana": "banana",
    "basketball": "basketball",
    "battery": "battery",
    "bear": "bear",
    "bee": "bee",
    "bell": "bell",
    "bicycle": "bike",
    "bomb": "bomb",
    "book": "closed_book",
    "bread": "bread",
    "broccoli": "broccoli",
    "bus": "bus",
    "butterfly": "butterfly",
    "cactus": "cactus",
    "cake": "birthday",
    "camera": "camera",
    "candle": "candle",
    "car": "car",
    "carrot": "carrot",
    "castle": "european_castle",
    "cat": "cat",
    "chair": "chair",
    "cheese": "cheese_wedge",
    "cherries": "cherries",
    "clock": "alarm_clock",
    "cloud": "cloud",
    "clover": "four_leaf_clover",
    "cookie": "cookie",
    "corn": "corn",
    "cow": "cow",
    "crab": "crab",
    "crown": "crown",
    "dog": "dog",
    "donut": "doughnut",
    "door": "door",
    "dress": "dress",
    "drum": "drum_with_drumsticks",
    "eggplant": "eggplant",
    "elephant": "elephant",
    "envelope": "email",
    "fire": "fire",
    "fish": "tropical_fish",
    "fox": "fox_face",
    "frog": "frog",
    "ghost": "ghost",
    "gift": "gift",
    "giraffe": "giraffe_face",
    "glasses": "eyeglasses",
    "grapes": "grapes",
    "guitar": "guitar",
    "hamburger": "hamburger",
    "hammer": "hammer",
    "hat": "tophat",
    "helicopter": "helicopter",
    "house": "house",
    "key": "key",
    "kite": "kite",
    "koala": "koala",
    "ladder": "ladder",
    "ladybug": "ladybug",
    "lemon": "lemon",
    "lion": "lion_face",
    "lock": "lock",
    "lollipop": "lollipop",
    "magnet": "magnet",
    "monkey": "monkey_face",
    "moon": "crescent_moon",
    "mushroom": "mushroom",
    "octopus": "octopus",
    "owl": "owl",
    "panda": "panda_face",
    "parachute": "parachute",
    "pear": "pear",
    "pencil": "pencil2",
    "penguin": "penguin",
    "pig": "pig",
    "pineapple": "pineapple",
    "pizza": "pizza",
    "popcorn": "popcorn",
    "pretzel": "pretzel",
    "pumpkin": "jack_o_lantern",
    "rabbit": "rabbit",
    "rainbow": "rainbow",
    "robot": "robot_face",
    "rocket": "rocket",
    "rose": "rose",
    "sailboat": "boat",
    "scissors": "scissors",
    "shark": "shark",
    "shoe": "athletic_shoe",
    "skull": "skull",
    "smiley": "smiley",
    "snail": "snail",
    "snake": "snake",
    "snowflake": "snowflake",
    "snowman": "snowman_without_snow",
    "spider": "spider",
    "strawberry": "strawberry",
    "sun": "sunny",
    "sunflower": "sunflower",
    "telephone": "phone",
    "television": "tv",
    "tent": "tent",
    "tiger": "tiger",
    "tractor": "tractor",
    "train": "train2",
    "tree": "evergreen_tree",
    "trophy": "trophy",
    "trumpet": "trumpet",
    "tulip": "tulip",
    "turtle": "turtle",
    "umbrella": "umbrella_with_rain_drops",
    "unicorn": "unicorn_face",
    "watermelon": "watermelon",
    "whale": "whale",
}

SHAPES = ("circle", "rectangle", "triangle", "square", "star", "heart", "diamond", "cross")

# Each colour with the anchors it is drawn around, sRGB 0-255. The first is easy-VQA's where it has that colour.
COLOURS = {
    "red": ((255, 0, 0), (220, 30, 40), (190, 20, 20)),
    "green": ((0, 255, 0), (0, 128, 0), (40, 170, 60)),
    "blue": ((0, 0, 255), (30, 80, 220), (20, 40, 160)),
    "yellow": ((255, 255, 0), (250, 215, 30)),
    "black": ((0, 0, 0), (20, 20, 24)),
    "gray": ((128, 128, 128), (150, 150, 154), (105, 105, 105)),
    "brown": ((165, 42, 42), (139, 69, 19), (120, 72, 40)),
    "teal": ((0, 128, 128), (20, 150, 145)),
    "orange": ((255, 140, 0), (245, 120, 20)),
    "purple": ((128, 0, 128), (130, 50, 200)),
    "pink": ((255, 150, 190), (255, 105, 180)),
    "white": ((255, 255, 255),),
}

EASY_VQA_SHAPES = ("circle", "rectangle", "triangle")
EASY_VQA_COLOURS = ("red", "green", "blue", "yellow", "black", "gray", "brown", "teal")

CORNERS = ("top left", "top right", "bottom left", "bottom right")
PLACES = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}
"""The ninths of a picture, row by row, and how each is said in a sentence."""

IRREGULAR_PLURALS = {
    "bread": "breads",
    "broccoli": "broccoli",
    "cherries": "cherries",
    "cross": "crosses",
    "fish": "fish",
    "glasses": "glasses",
    "grapes": "grapes",
    "octopus": "octopuses",
    "scissors": "scissors",
}
"""Plurals that are not the singular followed by "s" (or "es", "ies")."""

PLURAL_NAMES = ("cherries", "glasses", "grapes", "scissors")
"""Names that are already plural and take no article."""


def plural(name: str) -> str:
    """`name` in the plural: "a cat" -> "cats", "a box" -> "boxes", "a berry" -> "berries"."""
    if name in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name + "s"


def with_article(name: str) -> str:
    """`name` after "a" or "an"; unchanged where it is plural."""
    if name in PLURAL_NAMES:
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith('uni') else 'a'} {name}"
