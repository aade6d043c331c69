"""What transformers' tokenizer and chat template make of text and of ids, for the tokenizer that all folders share."""

import numpy

import golden_cases
import golden_models


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}

# Content is always a list of parts: the LLaVA-1.5 template renders nothing of a plain string.
CONVERSATIONS = {
    "one_turn": [{"role": "user", "content": [text("what is the moon?")]}],
    "one_picture": [{"role": "user", "content": [IMAGE, text("what is in this picture?")]}],
    "picture_after_text": [{"role": "user", "content": [text("what is in this picture?"), IMAGE]}],
    "two_pictures": [{"role": "user", "content": [IMAGE, text("compare"), IMAGE, text("the two")]}],
    "system": [
        {"role": "system", "content": [text("the answers are short.")]},
        {"role": "user", "content": [IMAGE, text("how many stars are there?")]},
    ],
    "multi_turn": [
        {"role": "user", "content": [IMAGE, text("what colour is the sky?")]},
        {"role": "assistant", "content": [text("the sky is blue.")]},
        {"role": "user", "content": [IMAGE, text("is this one red?")]},
    ],
    "ends_with_assistant": [
        {"role": "user", "content": [text("is it red?")]},
        {"role": "assistant", "content": [text("it is")]},
    ],
    "empty_text": [{"role": "user", "content": [text("")]}],
    "not_ascii": [{"role": "user", "content": [text("caf\u00e9 \u4e2d\u6587 \U0001f642\n\ttab  two spaces ")]}],
}

ENCODE = [
    "",
    " ",
    "the moon",
    " the moon",
    "  the  moon  ",
    "the\nmoon\r\n\tsea",
    "caf\u00e9",
    "\u4e2d\u6587 \U0001f642",
    "e\u0301 is not \u00e9",  # no Unicode normalisation
    "\u2581the",  # a literal word marker cannot be told from a space
    "\u0000\u007f",
    "0123456789",
    "USER: <image>\nwhat is in this picture? ASSISTANT:",
    "a<image><image>b",
    " <image> ",
    "<image>",
    "<s>the</s>moon<pad>",
    "<unk><0x41>",  # a byte token is not an added token: its name is spelt out
    "<imag><image<image>>",
]

# Ids of the tokenizer in golden_tokenizer.py: 0 <unk>, 1 <s>, 2 </s>, 3 + byte, then pieces.
DECODE_BYTES = {
    "empty": b"",
    "newlines": b"\n\n",
    "two_bytes": "\u00e9".encode(),
    "four_bytes": "\U0001f642".encode(),
    "characters_in_a_row": "\u4e2d\u6587\u00e9\U0001f642".encode(),
    "cut_short": "\U0001f642".encode()[:3],
    "continuation_first": b"\x82\xc3",
    "valid_then_cut": "\u00e9".encode() + b"\xf0\x9f",  # one bad byte spoils the whole run
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "never_valid": b"\xff\xfe",
    "nul": b"\x00",
    "space_bytes": b"  a",
}


def decode_lists(tokenizer):
    """name -> ids. Byte runs alone and between words, leading spaces, special ids, ids without a token, random ids."""
    word = tokenizer.convert_tokens_to_ids
    the, marker = word("\u2581the"), word("\u2581")
    lists = {name: [3 + byte for byte in run] for name, run in DECODE_BYTES.items()}
    lists |= {f"{name}_between_words": [the, *ids, the] for name, ids in lists.items()}
    lists |= {
        "leading_space_is_stripped": [the, the],
        "only_one_leading_space_is_stripped": [marker, the],
        "lone_marker": [marker],
        "special_first": [1, the, 2],
        "special_splits_nothing": [3 + 0xC3, 2, 3 + 0xA9],
        "image_between": [the, word("<image>"), the],
        "all_special": [1, 0, word("<image>"), word("<pad>"), 2],
        "without_token_first": [golden_models.TOKENIZER_SIZE, the],
        "without_token_between": [the, golden_models.VOCAB_SIZE - 1, the],
        "without_token_splits_nothing": [3 + 0xC3, golden_models.TOKENIZER_SIZE, 3 + 0xA9],
    }
    random = numpy.random.default_rng(0)
    for i in range(24):
        lists[f"random_{i}"] = random.integers(0, golden_models.VOCAB_SIZE, size=1 + i).tolist()
    return lists


def record(folder):
    """The content of text.json, made with the processor of `folder`."""
    proc = golden_cases.processor(folder)
    tokenizer = proc.tokenizer
    chat = []
    for name, messages in CONVERSATIONS.items():
        for generation in (True, False):
            rendered = proc.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            chat.append({
                "name": name,
                "messages": messages,
                "add_generation_prompt": generation,
                "rendered": rendered,
                "ids": tokenizer(rendered).input_ids,
            })
    decode = [
        {
            "name": name,
            "ids": ids,
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            "text_with_special": tokenizer.decode(ids, skip_special_tokens=False),
        }
        for name, ids in decode_lists(tokenizer).items()
    ]
    return {
        "chat": chat,
        "encode": [{"text": value, "ids": tokenizer(value).input_ids} for value in ENCODE],
        "decode": decode,
    }
