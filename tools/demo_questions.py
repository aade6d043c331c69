"""Questions about a synthetic scene, in several phrasings, each with its one right answer.

Every answer is a full sentence with one canonical wording, so that an exact comparison is fair: groups of equal
shapes are named in the order of SHAPES, then of COLORS; places in reading order; the printed text comes last in a
summary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from demo_scene import CELLS, COLORS, SHAPES, TEXT_ROWS, WORDS, Scene

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SUMMARY = (
    "What is in this picture?", "What is in this picture?", "What is in this picture?",
    "What is in the picture?", "What's in this picture?", "What is in this image?", "What is in the image?",
    "What do you see?", "What do you see in this picture?", "What can you see in this picture?",
    "What can you see in this image?", "What does this picture show?", "What does the image show?",
    "Describe this picture.", "Describe the picture.", "Describe this image.", "Describe the image.",
    "Tell me what is in this picture.", "What is this?", "What is shown in the picture?",
)
DETAIL = (
    "Describe the picture in detail.", "Describe this picture in detail.", "Describe the image in detail.",
    "Describe this image in detail.", "What is where in this picture?", "Say what is where in the picture.",
)
READ = (
    "What is written in this picture?", "What is written in the picture?", "What is written in the image?",
    "What is written?", "What is written here?", "What does the text say?", "Read the text.", "What text is shown?",
    "What does it say?", "Which text is printed in the picture?",
)
READ_WORD = ("Which word is written in the picture?", "What word is in this picture?", "What word is written here?")
READ_NUMBER = (
    "Which number is written in the picture?", "What number is in this picture?", "What number is written here?",
)
COUNT = (
    "How many {} are there?", "How many {} are in the picture?", "How many {} are in this picture?",
    "How many {} do you see?", "How many {} can you see?", "How many {} are in the image?", "Count the {}.",
)
COLOR_ONE = (
    "What color is the {}?", "Which color is the {}?", "Which color does the {} have?", "What is the color of the {}?",
    "What colour is the {}?", "Which colour is the {}?",
)
COLOR_MANY = ("What color are the {}?", "Which color are the {}?", "What colour are the {}?")
SHAPE_OF = (
    "Which shape is {}?", "What shape is the {} object?", "What is the {} object?", "What is the {} shape?",
    "What shape is {}?",
)
WHERE = ("Where is the {}?", "Where is the {} in the picture?", "Where do you see the {}?", "In which place is the {}?")
WHAT_AT = ("What is {}?", "What is {} of the picture?", "What do you see {}?", "Which shape is {}?")
PRESENCE_ONE = (
    "Is there a {}?", "Is there a {} in the picture?", "Is there a {} in this picture?", "Do you see a {}?",
    "Can you see a {}?",
)
PRESENCE_MANY = ("Are there any {}?", "Are there any {} in the picture?", "Do you see any {}?")
PRESENCE_TEXT = (
    "Is there any text?", "Is there any text in the picture?", "Is anything written in the picture?",
    "Do you see any text?",
)
WITHOUT_PICTURE = (
    "Hello", "Hello!", "Hi", "Hi!", "Good day!", "What can you do?", "Who are you?", "Help", "What are you?",
    "How are you?", "What is in this picture?", "What do you see?", "Describe this picture.",
)
ANSWER_WITHOUT_PICTURE = "Please show me a picture with shapes or a short text."

# How often each kind is asked in training, relative to the others.
WEIGHTS = {
    "summary": 5, "count": 4, "color": 2.5, "where": 3, "read": 3, "presence": 3, "shape": 1.5, "what_at": 2.5,
    "detail": 2,
}
KINDS = tuple(WEIGHTS)


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    answer: str


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of the given kind, or None where the scene has no unambiguous one."""
    pair = _ASKERS[kind](scene, rng)
    return Question(kind, *pair) if pair else None


def summary(scene: Scene) -> str:
    """The sentence that answers "What is in this picture?"."""
    items = [counted(count, noun) for noun, count in _groups(scene)]
    if scene.text:
        items.append(f"the {_text_noun(scene)} {_quoted(scene)}")
    return _sentence(listed(items))


# ------------------------------------------------------------------------------------------------ words


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("cross") else "s")


def counted(count: int, noun: str) -> str:
    return article(noun) if count == 1 else f"{NUMBERS[count]} {plural(noun)}"


def there_are(count: int, noun: str) -> str:
    if count == 1:
        return f"There is one {noun}."
    return f"There are {NUMBERS[count]} {plural(noun)}."


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _groups(scene: Scene) -> list[tuple[str, int]]:
    """("red circle", 2) per group of equal shapes, in canonical order."""
    counts = Counter((shape.kind, shape.color) for shape in scene.shapes)
    colors = list(COLORS)
    order = sorted(counts, key=lambda pair: (SHAPES.index(pair[0]), colors.index(pair[1])))
    return [(f"{color} {kind}", counts[kind, color]) for kind, color in order]


def _text_noun(scene: Scene) -> str:
    return "number" if scene.text.is_number else "word"


def _quoted(scene: Scene) -> str:
    return f'"{scene.text.string}"'


def matching(scene: Scene, kind: str | None, color: str | None):
    return [s for s in scene.shapes if kind in (None, s.kind) and color in (None, s.color)]


def name_of(kind: str | None, color: str | None) -> str:
    return " ".join(word for word in (color, kind or "shape") if word)


def descriptor(scene: Scene, rng: np.random.Generator, near_miss: float) -> tuple[str | None, str | None]:
    """A (kind, colour) to ask about: of a shape in the scene or, with probability `near_miss`, one feature changed."""
    if not scene.shapes or rng.random() < 0.1:
        kind, color = pick(rng, SHAPES), pick(rng, list(COLORS))
    else:
        shape = pick(rng, scene.shapes)
        kind, color = shape.kind, shape.color
        if rng.random() < near_miss:
            # Prefer a feature that another shape or the text has: the likeliest confusion.
            if rng.random() < 0.5:
                kind = pick(rng, [s.kind for s in scene.shapes] + [pick(rng, SHAPES)])
            else:
                inks = [s.color for s in scene.shapes] + ([scene.text.color] if scene.text else [])
                color = pick(rng, inks + [pick(rng, list(COLORS))])
    return (kind, color) if rng.random() < 0.6 else (kind, None)


# ------------------------------------------------------------------------------------------------ askers


def _ask_summary(scene, rng):
    return pick(rng, SUMMARY), summary(scene)


def _ask_detail(scene, rng):
    places = [(s.cell, f"{article(name_of(s.kind, s.color))} {CELLS[s.cell]}") for s in scene.shapes]
    if scene.text:
        row = scene.text.row
        places.append((3 * row, f"the {_text_noun(scene)} {_quoted(scene)} {TEXT_ROWS[row]}"))
    if len(places) > 4:
        return None
    return pick(rng, DETAIL), f"There is {listed([phrase for _, phrase in sorted(places)])}."


def _ask_read(scene, rng):
    if scene.text is None:
        return (pick(rng, READ), "There is no text.") if rng.random() < 0.3 else None
    options = READ + (READ_NUMBER if scene.text.is_number else READ_WORD)
    return pick(rng, options), f"It says {_quoted(scene)}."


def _ask_count(scene, rng):
    if rng.random() < 0.25:
        color = pick(rng, scene.shapes).color if scene.shapes and rng.random() < 0.4 else None
        count, noun = len(matching(scene, None, color)), name_of(None, color)
        asked = plural(noun) if rng.random() < 0.7 else plural(noun.replace("shape", "object"))
        return pick(rng, COUNT).format(asked), there_are(count, noun)
    kind, color = descriptor(scene, rng, near_miss=0.2)
    noun = name_of(kind, color)
    return pick(rng, COUNT).format(plural(noun)), there_are(len(matching(scene, kind, color)), noun)


def _ask_color(scene, rng):
    if scene.text and (not scene.shapes or rng.random() < 0.2):
        noun = _text_noun(scene)
        asked = noun if rng.random() < 0.7 else "text"
        return pick(rng, COLOR_ONE).format(asked), f"The {asked} is {scene.text.color}."
    if not scene.shapes:
        return None
    kind = pick(rng, scene.shapes).kind
    same = matching(scene, kind, None)
    if len({shape.color for shape in same}) != 1:
        return None
    if len(same) == 1:
        return pick(rng, COLOR_ONE).format(kind), f"The {kind} is {same[0].color}."
    return pick(rng, COLOR_MANY).format(plural(kind)), f"The {plural(kind)} are {same[0].color}."


def _ask_shape(scene, rng):
    if not scene.shapes:
        return None
    shape = pick(rng, scene.shapes)
    if len(matching(scene, None, shape.color)) != 1:
        return None
    return pick(rng, SHAPE_OF).format(shape.color), f"The {shape.color} shape is {article(shape.kind)}."


def _ask_where(scene, rng):
    if scene.text and (not scene.shapes or rng.random() < 0.2):
        asked = _text_noun(scene) if rng.random() < 0.6 else "text"
        return pick(rng, WHERE).format(asked), f"The {asked} is {TEXT_ROWS[scene.text.row]}."
    if not scene.shapes:
        return None
    shape = pick(rng, scene.shapes)
    unique = [
        (kind, color)
        for kind, color in ((shape.kind, shape.color), (shape.kind, None))
        if len(matching(scene, kind, color)) == 1
    ]
    if not unique:
        return None
    noun = name_of(*pick(rng, unique))
    return pick(rng, WHERE).format(noun), f"The {noun} is {CELLS[shape.cell]}."


def _ask_what_at(scene, rng):
    cells = [cell for cell in range(9) if scene.text is None or cell // 3 != scene.text.row]
    taken = {shape.cell: shape for shape in scene.shapes}
    cell = pick(rng, sorted(taken)) if taken and rng.random() < 0.75 else pick(rng, cells)
    found = article(name_of(taken[cell].kind, taken[cell].color)) if cell in taken else "nothing"
    return pick(rng, WHAT_AT).format(CELLS[cell]), f"There is {found} {CELLS[cell]}."


def _ask_presence(scene, rng):
    if rng.random() < (0.25 if scene.text else 0.08):
        answer = f"Yes, it says {_quoted(scene)}." if scene.text else "No, there is no text."
        return pick(rng, PRESENCE_TEXT), answer
    kind, color = descriptor(scene, rng, near_miss=0.6)
    count, noun = len(matching(scene, kind, color)), name_of(kind, color)
    question = pick(rng, PRESENCE_MANY).format(plural(noun)) if rng.random() < 0.3 else (
        pick(rng, PRESENCE_ONE).replace("a {}", "{}").format(article(noun))
    )
    if count == 0:
        return question, f"No, there is no {noun}."
    return question, f"Yes, there {'is' if count == 1 else 'are'} {counted(count, noun)}."


_ASKERS = {
    "summary": _ask_summary, "count": _ask_count, "color": _ask_color, "where": _ask_where, "read": _ask_read,
    "presence": _ask_presence, "shape": _ask_shape, "what_at": _ask_what_at, "detail": _ask_detail,
}


def vocabulary_text(words: tuple[str, ...] = WORDS) -> list[str]:
    """Sentences that hold every word of every question and answer, each often enough to become one token.

    `words` are those that pictures have printed on them.
    """
    nouns = [noun for kind in (*SHAPES, "shape", "object") for noun in (kind, plural(kind))]
    templates = (
        SUMMARY + DETAIL + READ + READ_WORD + READ_NUMBER + COUNT + COLOR_ONE + COLOR_MANY + SHAPE_OF + WHERE + WHAT_AT
        + PRESENCE_ONE + PRESENCE_MANY + PRESENCE_TEXT + WITHOUT_PICTURE
    )
    lines = [template.replace("{}", "it") for template in templates] * 4
    lines += [f"USER: {word} ASSISTANT: {word}" for word in (*nouns, *COLORS, *NUMBERS, *CELLS)] * 8
    lines += ["There is one. There are two. The text is. The word is. The number is."] * 8
    lines += ["Yes, there is a. Yes, there are an. No, there is no. No, there are no."] * 8
    lines += ["It says. An A nothing and any"] * 8
    lines += [number.capitalize() for number in NUMBERS] * 8
    lines += [f'"{word}"' for word in words] * 8
    # A question follows a line break, so its first word has no space in front of it; nor does a hasty, lower-case one.
    first = sorted({template.split()[0].rstrip("!?.") for template in templates})
    lines += [f'"{spelling}"' for word in first for spelling in (word, word.lower())] * 8
    lines += [ANSWER_WITHOUT_PICTURE] * 4
    return lines
