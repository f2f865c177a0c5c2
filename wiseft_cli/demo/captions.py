"""Put synthetic pictures into words: captions that are true of their attributes.

A caption names the character, a digit as a word or as a numeral with equal chance, and now and
then a few of its attributes. It never names an attribute that its picture does not have.
"""

from __future__ import annotations

import random

from wiseft_cli.demo import attributes as look
from wiseft_cli.demo.attributes import COLOR_NAMES, STROKE_NAMES, TEXTURE_NAMES, Attributes
from wiseft_cli.demo.glyphs import CHARACTERS

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPENINGS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "a sign with", "a scan of", "", "",
)  # fmt: skip


def write_captions(attributes: Attributes, rng: random.Random, *, bare_share: float) -> list[str]:
    """Write one caption a picture.

    Args:
        attributes: Of B pictures.
        rng: Chooses words and what to mention.
        bare_share: Fraction of captions that name the character and nothing else.
    Returns:
        B captions, such as "a photo of a bold orange 4.".
    """
    captions = []
    for row, character in enumerate(attributes.characters.tolist()):
        if rng.random() < bare_share:
            captions.append(_bare_caption(character, rng))
        else:
            captions.append(_full_caption(attributes, row, character, rng))
    return captions


def _bare_caption(character: int, rng: random.Random) -> str:
    nouns = ("digit", "number", "") if character < 10 else ("letter", "")
    words = (rng.choice(("", "the", "a")), rng.choice(nouns), _name(character, rng))
    return " ".join(filter(None, words))


def _full_caption(attributes: Attributes, row: int, character: int, rng: random.Random) -> str:
    adjectives = [word for word in _adjectives(attributes, row, rng) if rng.random() < 0.4][:2]
    is_colored = not bool(attributes.is_gray[row])
    if is_colored and rng.random() < 0.35:
        adjectives.append(COLOR_NAMES[attributes.foreground[row]])
    if character < 10:
        noun = rng.choice(("digit", "number", "numeral", ""))
    else:
        noun = rng.choice(("letter", "capital letter", "character"))
    described = " ".join(filter(None, (*adjectives, noun, _name(character, rng))))
    article = "an" if described[0] in "aeiou8" else "a"
    if not adjectives and rng.random() < 0.6:
        article = "the"
    caption = " ".join(filter(None, (rng.choice(OPENINGS), article, described)))
    if is_colored and rng.random() < 0.25:
        caption += f" on a {_background_words(attributes, row)} background"
    return caption + rng.choice((".", ""))


def _adjectives(attributes: Attributes, row: int, rng: random.Random) -> list[str]:
    """Every adjective that is true of picture `row`."""
    scale = float(attributes.scale[row])
    stroke = int(attributes.stroke[row])
    candidates = (
        (stroke != look.PLAIN, STROKE_NAMES[stroke]),
        (bool(attributes.is_pixelated[row]), "pixelated"),
        (bool(attributes.is_blurred[row]), "blurry"),
        (bool(attributes.is_noisy[row]), "noisy"),
        (abs(float(attributes.rotation[row])) > 0.35, "tilted"),
        (float(attributes.warp[row]) > 0.07, rng.choice(("handwritten", "wobbly"))),
        (scale < 0.62, "small"),
        (scale > 0.93, "large"),
    )
    return [word for is_true, word in candidates if is_true]


def _background_words(attributes: Attributes, row: int) -> str:
    texture = int(attributes.texture[row])
    color = COLOR_NAMES[attributes.background[row]]
    return color if texture in (look.SOLID, look.GRADIENT) else f"{TEXTURE_NAMES[texture]} {color}"


def _name(character: int, rng: random.Random) -> str:
    """The character itself, or for a digit its word."""
    if character < 10 and rng.random() < 0.5:
        return DIGIT_NAMES[character]
    return CHARACTERS[character]
