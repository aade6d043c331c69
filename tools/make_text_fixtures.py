#!/usr/bin/env python3
"""Makes tests/fixtures/text: four small tokenizers, and what transformers and tokenizers say about texts and ids.

Run it from the repository with transformers 5.17 installed; the output depends on nothing else:

    python tools/make_text_fixtures.py
"""

import collections
import itertools
import json
import pathlib
import random
import re

import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).parent.parent
OUT = ROOT / "tests" / "fixtures" / "text"
# The crate's own templates, which transformers must render alike.
BUILTIN = ROOT / "src" / "text" / "templates"
SPACE = "\u2581"
PIECES = 320

CORPUS = """
The lighthouse keeper counted seven boats before breakfast, and wrote the number on the wall.
What is in this picture? A small brown dog sleeps under the table next to a pair of old shoes.
How many windows does the house have? There are five windows and one green door.
USER: Which of the two bridges is longer? ASSISTANT: The second bridge is longer by about forty metres.
Please read the sign on the left. It says: closed on Mondays, open again at nine.
An image of a market: apples, pears, plums, onions; a woman in a yellow coat points at the cheese.
Is it raining? Yes, the street is wet and the people carry umbrellas. \u00e9t\u00e9 na\u00efve \u4e2d
Compare the images. The first shows the harbour at dawn, the last one shows the same harbour at night.
"""

FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"]


def train():
    """Byte-pair merges of the corpus; pieces in the order of the vocabulary, and the merges."""
    words = collections.Counter(SPACE + word for word in CORPUS.split())
    characters = sorted({char for word in words for char in word})
    splits = {word: list(word) for word in words}
    merged, merges = [], []
    while len(characters) + len(merged) < PIECES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(splits[word], splits[word][1:]):
                pairs[pair] += count
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append([left, right])
        merged.append(left + right)
        for word, split in splits.items():
            out = []
            for piece in split:
                if out and out[-1] == left and piece == right:
                    out[-1] = left + right
                else:
                    out.append(piece)
            splits[word] = out
    return merged + characters, merges


def added(index, content, **flags):
    return {"id": index, "content": content, **dict.fromkeys(FLAGS, False), "special": True, **flags}


def tokenizer_json(added_tokens, metaspace=False):
    """A Llama-style tokenizer.json: byte-fallback BPE that puts U+2581 in front of each piece between added tokens.

    With `metaspace` it is written as newer conversions do, and only the first piece of a text gets the prefix.
    """
    pieces, merges = train()
    base = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: index for index, piece in enumerate(base + pieces)}
    for token in added_tokens:
        token["id"] = vocab.get(token["content"], token["id"] + len(vocab))
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    normalizers = [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    return {
        "version": "1.0",
        # Neither may act on a prompt.
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<unk>",
        },
        "added_tokens": added_tokens,
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}
        if metaspace else None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, text[0]], "pair": [bos, *text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [" ".join(pair) for pair in merges],
        },
    }


def byte_level_json(added_tokens):
    """A GPT-2-style tokenizer.json: each byte is a printable character, and words are split before merging."""
    # Printable bytes stand for themselves, the others for characters from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(len(hidden))]
    merges = [["t", "h"], ["th", "e"], ["\u0120", "the"], ["i", "n"], ["\u00f0", "\u0141"]]
    vocab = {piece: index for index, piece in enumerate(alphabet + [left + right for left, right in merges])}
    for token in added_tokens:
        token["id"] = len(vocab) + added_tokens.index(token)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
    }


LLAMA = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(0, "<image>"), added(1, "<pad>")]
PHI = [
    added(0, "<unk>"), added(1, "<s>"), added(2, "</s>", rstrip=True, special=False), added(0, "<|endoftext|>"),
    added(1, "<|assistant|>", rstrip=True), added(2, "<|image|>", rstrip=True), added(3, "<|system|>"),
    added(4, "<|end|>"), added(5, "<|user|>"),
]
CONFIGS = {
    "llama": {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "add_bos_token": True,
    },
    # The flags stand in the objects that older files have instead of strings.
    "metaspace": {"bos_token": {"content": "<s>", "special": True}, "eos_token": "</s>", "add_eos_token": False},
    "bytelevel": {"eos_token": "</s>"},
    "phi": {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
}

TEXTS = [
    "", " ", "   ", "hello", " hello", "hello ", "What is in this picture?", "two  spaces\n\nand lines\r\n\ttab",
    "na\u00efve caf\u00e9 e\u0301 \u4e2d\u6587 \u0e01\u0e33",
    "\U0001f642\U0001f469\u200d\U0001f4bb\U0001f3fd", "\x00 nul \ufffe \ufffd",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd", f"literal {SPACE} mark", "<0x0A> <0xf0>",
    "{{ braces }} {% tags %}",
    "a" * 300, "USER: <image>\nWhat's this? ASSISTANT:", "a<image><image>b", "<image>", "<s>twice<s></s>",
    "<unk><pad> < image > <IMAGE>", "<|user|>\nhi<|end|>\n<|assistant|>\n", "<|assistant|>\n\n x",
    "</s>  y", "<|image_1|>\nhi",
]
# Numbered picture tags, which are text: what is between two of them is encoded by itself.
TAG = re.compile(r"<\|image_\d+\|>")
NUMBERED = [
    "", "hi", "<|image_1|>", "<|image_1|>hi", "<|image_1|><|image_2|>", " <|image_1|> <|image_2|> ",
    "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n",
    "<|user|>\n<|image_1|>\n<|image_2|>\nCompare.<|end|>\n<|assistant|>\n",
    "<|assistant|>\n <|image_1|>\n<|image|> x</s>  <|image_2|>\n", "\u4e2d<|image_1|>\u00e9",
    "<|image_|><|image_1 |><|image_x|><|image_1", "<|image_<|image_1|>2|>", "<s><|image_01|><s>",
]

VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'].strip() + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] | trim + eos_token + '\\n' }}"
    "{% else %}{{ bos_token + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
BLOCKS = """{# comments, blocks on lines of their own, a macro, a namespace, loop controls, generation marks #}
{% macro show(content) %}
    {% if content is string %}{{ content }}{% else %}
        {% for part in content %}
            {% if part['type'] == 'image' %}<image>
{% elif part.type == 'text' %}{{ part['text'] | trim }}{% endif %}
        {% endfor %}
    {% endif %}
{% endmacro %}
{% set ns = namespace(turns=0) %}
{% for message in messages %}
    {% if message.role not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' ~ message.role) }}
    {% endif %}
    {% if loop.first and message.role != 'system' %}
Be brief.
    {% endif %}
    {% if message.role == 'assistant' %}
        {% generation %}
{{ show(message.content) }}</s>
        {% endgeneration %}
        {% continue %}
    {% endif %}
    {% set ns.turns = ns.turns + 1 %}
{{ ns.turns }}. {{ message.role.title() }}: {{ show(message['content']) }}

{% endfor %}
{%- if add_generation_prompt %}
Answer:{% endif %}
{%- if tools %} with tools{% endif %}
"""
TURNS = """{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<|image|>' }}{% endfor %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}
{{- '<|end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


def text(role, *texts, images=0):
    return {"role": role, "parts": ["image"] * images + [{"text": text} for text in texts]}


CONVERSATIONS = [
    [text("user", "What is in this picture?", images=1)],
    [text("user", "  How many windows?\n", images=2), text("assistant", " There are five. "), text("user", "Sure?")],
    [text("system", "You are brief."), text("user", "Is it raining? \U0001f642"),
     text("assistant", "Yes, \u4e2d\u6587.")],
    [text("user", "Compare", "the two.", images=2)],
    [text("user", "a\n\n  b\t\u00e9 'quoted' \"and\" \\ {{ x }} {% y %} & > \u2581")],
]


def content(parts, style, placeholders):
    """A message's content as the template wants it: a list, or one string with the next placeholders first."""
    images = [part for part in parts if part == "image"]
    texts = [part["text"] for part in parts if part != "image"]
    if style == "text":
        return "\n".join([next(placeholders) for _ in images] + texts)
    return [{"type": "image"} if part == "image" else {"type": "text", "text": part["text"]} for part in parts]


def templates(name):
    """Those tried with a tokenizer: name, source, and the style of content that they want."""
    builtin = lambda title, style: (title, (BUILTIN / f"{title}.jinja").read_text(), style)
    if name == "bytelevel":
        return []
    if name == "phi":
        return [("turns", TURNS, "parts"), builtin("phi-3-vision", "text")]
    own = [("vicuna", VICUNA, "text"), ("blocks", BLOCKS, "parts")]
    return own + ([builtin("llava-1.5", "parts"), builtin("llava-1.6-mistral", "parts")] if name == "llama" else [])


def chats(name, tokenizer):
    variables = {key: value if isinstance(value, str) else value["content"] for key, value in CONFIGS[name].items()
                 if key.endswith("_token") and not key.startswith("add_")}
    for title, source, style in templates(name):
        for conversation in CONVERSATIONS:
            numbered = title == "phi-3-vision"
            placeholders = map("<|image_{}|>".format, itertools.count(1)) if numbered else itertools.repeat("<image>")
            messages = [{"role": m["role"], "content": content(m["parts"], style, placeholders)} for m in conversation]
            for prompt in [True, False]:
                [rendered], _ = render_jinja_template(
                    [messages], chat_template=source, add_generation_prompt=prompt, **variables
                )
                encode = lambda text: tokenizer.encode(text, add_special_tokens=not text.startswith("<s>"))
                ids = {"chunks": [encode(chunk) for chunk in TAG.split(rendered)]} if numbered \
                    else {"ids": encode(rendered)}
                yield {"tokenizer": name, "template": title, "messages": conversation, "generation_prompt": prompt,
                       "text": rendered, **ids}


def decodes(name, tokenizer, size):
    """Random ids: words, byte tokens valid and not, special tokens, ids beyond the vocabulary."""
    chance = random.Random(f"{name} ids")
    for case in range(60):
        ids = []
        while len(ids) < 24:
            kind = chance.randrange(8)
            if name == "bytelevel":
                # Pieces of characters, whole or not, and what lies beyond the vocabulary.
                piece = chance.choice(["\u00e9", "\u4e2d", "\U0001f642", " the", "a"])
                ids.extend(tokenizer.encode(piece, add_special_tokens=False)[: chance.randrange(1, 5)])
                ids.append(chance.randrange(size + 4) if case % 2 else 0)
            elif kind < 3:
                ids.append(chance.randrange(259, size + 4))
            elif kind == 3:
                ids.extend(3 + byte for byte in chance.choice("\u00e9\u4e2d\U0001f642\n ").encode())
            elif kind == 4 and case % 2:
                ids.append(3 + chance.randrange(256))
            elif kind == 5:
                ids.append(chance.choice([0, 1, 2]))
            elif kind == 6:
                ids.extend(tokenizer.encode(" the images.", add_special_tokens=False)[1:])
        for skip in [True, False]:
            yield {"tokenizer": name, "ids": ids, "skip_special": skip,
                   "text": tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def main():
    cases = {"made_with": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
             "templates": {"vicuna": VICUNA, "blocks": BLOCKS, "turns": TURNS},
             "encode": [], "numbered": [], "as_text": [], "chat": [], "decode": []}
    for name, tokens in [("llama", LLAMA), ("metaspace", LLAMA), ("phi", PHI), ("bytelevel", LLAMA)]:
        tokens = [dict(token) for token in tokens]
        file = byte_level_json(tokens) if name == "bytelevel" else tokenizer_json(tokens, metaspace=name == "metaspace")
        write(OUT / name / "tokenizer.json", file)
        write(OUT / name / "tokenizer_config.json", CONFIGS[name])
        path = str(OUT / name / "tokenizer.json")
        raw = tokenizers.Tokenizer.from_file(path)
        raw.no_truncation()
        raw.no_padding()
        wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False)
        for item in TEXTS:
            cases["encode"].append({"tokenizer": name, "text": item, "ids": raw.encode(item).ids})
        for item in NUMBERED if name in ["phi", "bytelevel"] else []:
            chunks = [raw.encode(chunk).ids for chunk in TAG.split(item)]
            cases["numbered"].append({"tokenizer": name, "text": item, "chunks": chunks})
        if name != "phi":  # all added tokens are special, so the library's own switch covers them
            raw.encode_special_tokens = True
            for item in TEXTS:
                cases["as_text"].append({"tokenizer": name, "text": item, "ids": raw.encode(item).ids})
            raw.encode_special_tokens = False
        cases["chat"].extend(chats(name, wrapped))
        cases["decode"].extend(decodes(name, wrapped, raw.get_vocab_size()))
    write(OUT / "cases.json", cases)
    total = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{OUT}: {total / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
