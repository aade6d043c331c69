"""Questions about two synthetic pictures, like demo_questions: full sentences, each with one canonical wording."""

from __future__ import annotations

import numpy as np

from demo_questions import (
    COLOR_ONE, KINDS, NUMBERS, WEIGHTS, Question, article, matching, name_of, pick, plural, summary,
    there_are, vocabulary_text,
)
from demo_scene import COLORS, SHAPES, Scene, Variety, sample_scene

# No printed text: two pictures are compared by their shapes. `smallest` keeps shapes 7 pixels or more in radius after
# the tiling, also where a long picture leaves its short side few pixels.
VARIETY = Variety(text_share=0.0, most_shapes=5, longest=2.8, smallest=0.043)
# Places are named by thirds of the central square, which in a long picture are not what a person would say.
LONGEST_WITH_PLACES = 1.4
PLACES = ("where", "what_at", "detail")

ORDINALS = ("first", "second")
MORE = ("Which picture has more {}?", "Which picture shows more {}?", "Which of the two pictures has more {}?")
BOTH = ("Do both pictures show {}?", "Is there {} in both pictures?", "Can you see {} in both pictures?")
WHICH = ("Which picture shows {}?", "Which picture has {}?", "In which picture is there {}?")
TOTAL = (
    "How many {} are there in both pictures together?", "How many {} are in both pictures together?",
    "How many {} are there in total?",
)
SUMMARY_IN = (
    "What is in the {} picture?", "What is in the {} picture?", "What does the {} picture show?",
    "What do you see in the {} picture?", "Describe the {} picture.",
)
COUNT_IN = (
    "How many {} are in the {} picture?", "How many {} are there in the {} picture?",
    "How many {} does the {} picture show?",
)
WITHOUT_PICTURE = (
    "Hello", "Hello!", "Hi", "Hi!", "What can you do?", "Who are you?", "Help", "What is in this picture?",
    "What do you see?", "Which picture has more circles?", "Describe this picture.",
)
ANSWER_WITHOUT_PICTURE = "Please show me one or two pictures with shapes."

ONE_WEIGHTS = {kind: WEIGHTS[kind] for kind in KINDS if kind != "read"}
PAIR_WEIGHTS = {"more": 4, "both": 3.5, "which": 3, "total": 3, "summary_in": 3, "count_in": 3, "color_in": 2}
PAIR_KINDS = tuple(PAIR_WEIGHTS)
ALL_KINDS = (*ONE_WEIGHTS, *PAIR_KINDS)


def sample_pair_scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split of this data set."""
    return sample_scene(split, index, VARIETY)


def has_places(scene: Scene) -> bool:
    """Whether questions about places are asked of this scene."""
    return max(scene.width, scene.height) <= LONGEST_WITH_PLACES * min(scene.width, scene.height)


def ask_pair(scenes: tuple[Scene, Scene], kind: str, rng: np.random.Generator) -> Question | None:
    """A question of the given kind about two pictures, or None where they have no unambiguous one."""
    asked = _ASKERS[kind](scenes, rng)
    return Question(kind, *asked) if asked else None


def _counts(scenes: tuple[Scene, Scene], kind: str | None, color: str | None) -> tuple[int, int]:
    first, second = (len(matching(scene, kind, color)) for scene in scenes)
    return first, second


def _feature(scenes: tuple[Scene, Scene], rng: np.random.Generator) -> tuple[str | None, str | None]:
    """A (kind, colour) to ask about, at least one given: mostly of a shape in one of the scenes, often in both."""
    if rng.random() < 0.08:
        kind, color = pick(rng, SHAPES), pick(rng, list(COLORS))
    else:
        shape = pick(rng, scenes[rng.integers(2)].shapes)
        kind, color = shape.kind, shape.color
    choices = [(kind, None), (None, color), (kind, color)]
    if rng.random() < 0.4:
        shared = [choice for choice in choices if all(_counts(scenes, *choice))]
        if shared:
            return pick(rng, shared)
    return choices[rng.choice(3, p=(0.55, 0.2, 0.25))]


def _ask_more(scenes, rng):
    kind, color = (None, None) if rng.random() < 0.15 else _feature(scenes, rng)
    first, second = _counts(scenes, kind, color)
    things = plural(name_of(kind, color))
    question = pick(rng, MORE).format(things)
    if first == second:
        return question, f"Both pictures have the same number of {things}."
    return question, f"The {ORDINALS[second > first]} picture has more {things}."


def _ask_both(scenes, rng):
    noun = name_of(*(feature := _feature(scenes, rng)))
    counts, thing = _counts(scenes, *feature), article(noun)
    question = pick(rng, BOTH).format(thing)
    if all(counts):
        return question, f"Yes, both pictures show {thing}."
    if not any(counts):
        return question, f"No, neither picture shows {thing}."
    return question, f"No, only the {ORDINALS[counts[1] > 0]} picture shows {thing}."


def _ask_which(scenes, rng):
    noun = name_of(*(feature := _feature(scenes, rng)))
    counts, thing = _counts(scenes, *feature), article(noun)
    question = pick(rng, WHICH).format(thing)
    if all(counts):
        return question, f"Both pictures show {thing}."
    if not any(counts):
        return question, f"Neither picture shows {thing}."
    return question, f"The {ORDINALS[counts[1] > 0]} picture shows {thing}."


def _ask_total(scenes, rng):
    kind, color = (None, None) if rng.random() < 0.1 else _feature(scenes, rng)
    noun, total = name_of(kind, color), sum(_counts(scenes, kind, color))
    return (pick(rng, TOTAL).format(plural(noun)), there_are(total, noun)) if total < len(NUMBERS) else None


def _ask_summary_in(scenes, rng):
    which = int(rng.integers(2))
    return pick(rng, SUMMARY_IN).format(ORDINALS[which]), summary(scenes[which])


def _ask_count_in(scenes, rng):
    which = int(rng.integers(2))
    kind, color = (None, None) if rng.random() < 0.15 else _feature(scenes, rng)
    noun = name_of(kind, color)
    question = pick(rng, COUNT_IN).format(plural(noun), ORDINALS[which])
    return question, there_are(_counts(scenes, kind, color)[which], noun)


def _ask_color_in(scenes, rng):
    which = int(rng.integers(2))
    kind = pick(rng, scenes[which].shapes).kind
    same = matching(scenes[which], kind, None)
    if len(same) != 1:
        return None
    question = pick(rng, COLOR_ONE).format(f"{kind} in the {ORDINALS[which]} picture")
    return question, f"The {kind} is {same[0].color}."


_ASKERS = {
    "more": _ask_more, "both": _ask_both, "which": _ask_which, "total": _ask_total, "summary_in": _ask_summary_in,
    "count_in": _ask_count_in, "color_in": _ask_color_in,
}


def pair_vocabulary_text() -> list[str]:
    """Sentences that hold every word of every question and answer, about one picture or two."""
    templates = (*MORE, *BOTH, *WHICH, *TOTAL, *SUMMARY_IN, *COUNT_IN, *WITHOUT_PICTURE)
    lines = [template.replace("{}", "it") for template in templates] * 4
    lines += [f"The {ordinal} picture has more. No, only the {ordinal} picture shows a." for ordinal in ORDINALS] * 8
    lines += ["Both pictures have the same number of. Yes, both pictures show an. No, neither picture shows a."] * 8
    lines += ["Neither picture shows a. Both pictures show a."] * 8
    first = sorted({template.split()[0].rstrip("!?.") for template in templates})
    lines += [f'"{spelling}"' for word in first for spelling in (word, word.lower())] * 8
    lines += [ANSWER_WITHOUT_PICTURE] * 4
    return vocabulary_text(words=()) + lines
