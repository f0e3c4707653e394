"""The wordings of each family of questions; words in braces are filled in."""

from __future__ import annotations

NAME = (
    "What is this?",
    "What is it?",
    "What is that?",
    "What's this?",
    "What is in the picture?",
    "What is in the image?",
    "What is in this picture?",
    "What is shown?",
    "What is shown in the picture?",
    "What does the picture show?",
    "What does this image show?",
    "What do you see?",
    "What can you see?",
    "What object is this?",
    "What thing is this?",
    "What is the name of this?",
)
NAME_EMOJI = (
    "Name the emoji.",
    "Name this emoji.",
    "Which emoji is this?",
    "What emoji is this?",
    "Which icon is this?",
    "What icon is this?",
    "What is this emoji?",
    "What is this icon?",
    "What does the emoji show?",
    "What does this emoji mean?",
    "Name the object.",
    "Name this.",
)
NAME_SHAPE = (
    "What shape is this?",
    "Which shape is this?",
    "What shape is it?",
    "Name the shape.",
    "What is the shape?",
)
CORNER = (
    "What is in the {corner} corner?",
    "What is in the {corner}?",
    "What is at the {corner}?",
    "What do you see in the {corner} corner?",
    "What is shown in the {corner} corner?",
    "What is in the {corner} of the picture?",
    "What is in the {corner} corner of the image?",
    "Name the thing in the {corner} corner.",
    "Which thing is in the {corner} corner?",
    "What's in the {corner} corner?",
)
CORNER_EMOJI = (
    "Which emoji is in the {corner} corner?",
    "What emoji is in the {corner}?",
    "Name the emoji in the {corner} corner.",
)
CORNER_COLOUR = (
    "What {color} is the shape in the {corner} corner?",
    "What {color} is the thing in the {corner}?",
    "Which {color} is in the {corner} corner?",
)
WHERE = (
    "Where is the {thing}?",
    "Which corner is the {thing} in?",
    "In which corner is the {thing}?",
    "What corner is the {thing} in?",
    "Where do you see the {thing}?",
)
PLACE = (
    "What is {place}?",
    "What do you see {place}?",
    "What is shown {place}?",
    "What is {place} of the picture?",
    "Name the thing {place}.",
)
WHERE_PLACE = (
    "Where is the {thing}?",
    "Where in the picture is the {thing}?",
    "Where do you see the {thing}?",
    "In which part of the picture is the {thing}?",
)
DESCRIBE = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this picture.",
    "Describe what you see.",
    "What is in the picture, and where?",
    "Tell me what is in the picture and where.",
    "Give a description of the picture.",
    "List all things and their places.",
)
COUNT = (
    "How many {things} are there?",
    "How many {things} are there in the picture?",
    "How many {things} are in the picture?",
    "How many {things} are in the image?",
    "How many {things} do you see?",
    "How many {things} can you see?",
    "How many {things} are shown?",
    "How many {things}?",
    "Count the {things}.",
    "What is the number of {things}?",
)
ANY_SHAPES, ANY_THINGS = ("shapes", "things", "objects"), ("things", "objects", "emojis", "icons")
PRESENT = (
    "Is there {a_thing}?",
    "Is there {a_thing} in the picture?",
    "Is there {a_thing} in the image?",
    "Is there {a_thing} here?",
    "Do you see {a_thing}?",
    "Can you see {a_thing}?",
    "Does the picture show {a_thing}?",
    "Does the image contain {a_thing}?",
    "Is {a_thing} in the picture?",
    "Is {a_thing} present?",
)
PRESENT_MANY = ("Are there any {things}?", "Are there {things} in the picture?", "Do you see any {things}?")
IS_THIS = ("Is this {a_thing}?", "Is it {a_thing}?", "Does this look like {a_thing}?")
COLOUR = (
    "What {color} is the {shape}?",
    "What is the {color} of the {shape}?",
    "Which {color} is the {shape}?",
    "Which {color} does the {shape} have?",
    "What {color} does the {shape} have?",
    "Name the {color} of the {shape}.",
    "The {shape} has what {color}?",
    "Tell me the {color} of the {shape}.",
)
COLOUR_LONE = (
    "What {color} is this?",
    "What {color} is it?",
    "Which {color} is this?",
    "What is the {color}?",
    "Name the {color}.",
)
SHAPE = (
    "What is the {colour} shape?",
    "What shape is the {colour} thing?",
    "What shape is the {colour} one?",
    "What shape is the {colour} object?",
    "Which shape is {colour}?",
    "What shape is {colour}?",
    "What is the shape of the {colour} thing?",
    "What is the {colour} thing?",
    "Name the {colour} shape.",
)
# easy-VQA's own wordings, about its one shape.
EASY_VQA_SHAPE = ("what shape is in the image?", "what shape does the image contain?", "what shape is present?")
EASY_VQA_COLOUR = ("what color is the {shape}?", "what is the color of the {shape}?")
EASY_VQA_PRESENT = (
    "is there a {thing}?",
    "is there a {thing} in the image?",
    "does the image contain a {thing}?",
    "is a {thing} present?",
)
EASY_VQA_ABSENT = (
    "is there not a {thing}?",
    "is there not a {thing} in the image?",
    "does the image not contain a {thing}?",
    "is no {thing} present?",
)
