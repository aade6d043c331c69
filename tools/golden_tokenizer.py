"""A Llama-style byte-fallback BPE tokenizer, trained here on a few sentences, with LLaVA-1.5's added tokens."""

import collections

# Lower-case prose in the words that the golden prompts use; what it lacks exercises the byte fallback.
CORPUS = """
USER: what is in this picture? ASSISTANT: the picture is of a red circle on the left.
USER: what colour is the sky? ASSISTANT: the sky in the second picture is blue.
USER: compare the two pictures. ASSISTANT: the first one is wide, the other one is tall.
USER: how many stars are there? ASSISTANT: there are three stars and a small moon over the sea.
"""

BASE = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
ADDED = ["<image>", "<pad>"]
SPACE = "\u2581"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# images first, then text #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def train(pieces):
    """Byte-pair merges over the corpus until characters and merges together number `pieces`; (symbols, merges)."""
    words = collections.Counter(SPACE + word for word in CORPUS.split())
    characters = sorted({char for word in words for char in word})
    if len(characters) >= pieces:
        raise ValueError(f"the corpus has {len(characters)} characters, more than the {pieces} pieces asked for")
    splits = {word: list(word) for word in words}
    merged, merges = [], []
    while len(characters) + len(merged) < pieces:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(splits[word], splits[word][1:]):
                pairs[pair] += count
        # Ties go to the pair first in code-point order, so the result does not depend on dictionary order.
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        merged.append(left + right)
        splits = {word: merge(split, left, right) for word, split in splits.items()}
    return merged + characters, merges


def merge(split, left, right):
    out = []
    for piece in split:
        if out and out[-1] == left and piece == right:
            out[-1] = left + right
        else:
            out.append(piece)
    return out


def added_token(index, content):
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def tokenizer_json(size):
    """tokenizer.json as a dict with `size` ids: 3 control, 256 byte, learned pieces, then `<image>` and `<pad>`."""
    pieces, merges = train(size - len(BASE) - len(ADDED))
    vocab = {piece: index for index, piece in enumerate(BASE + pieces)}
    added = [added_token(index, content) for index, content in enumerate(BASE[:3] + ADDED)]
    for token in added[3:]:
        token["id"] += len(vocab) - 3
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                begin,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
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
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def tokenizer_config(max_length, template=CHAT_TEMPLATE, processor="LlavaProcessor"):
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "image_token": "<image>",
        "legacy": False,
        "model_max_length": max_length,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": processor,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
