"""A byte-fallback BPE tokenizer with Phi-3-vision's added tokens, of which some swallow the spaces behind them."""

import golden_tokenizer
from golden_tokenizer import BASE

PIECES = 64

# (content, rstrip) in the order of Phi-3-vision's ids; it has 39 placeholders.
ADDED = [
    ("<|endoftext|>", False),
    ("<|assistant|>", True),
    ("<|placeholder1|>", True),
    ("<|placeholder2|>", True),
    ("<|placeholder3|>", True),
    ("<|placeholder4|>", True),
    ("<|system|>", False),
    ("<|end|>", False),
    ("<|placeholder5|>", True),
    ("<|placeholder6|>", True),
    ("<|user|>", False),
    ("<|placeholder7|>", True),
    ("<|image|>", True),
]
FIRST_ADDED = len(BASE) + PIECES
SIZE = FIRST_ADDED + len(ADDED)
END_OF_TEXT = FIRST_ADDED
IMAGE = SIZE - 1

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
)


def added_tokens():
    tokens = [golden_tokenizer.added_token(index, content) for index, content in enumerate(BASE[:3])]
    # `</s>` is an ordinary token here: it is printed, and does not end a turn.
    tokens[2] |= {"rstrip": True, "special": False}
    for index, (content, rstrip) in enumerate(ADDED):
        tokens.append(golden_tokenizer.added_token(FIRST_ADDED + index, content) | {"rstrip": rstrip})
    return tokens


def tokenizer_json():
    """tokenizer.json as a dict: Llama's but for the added tokens."""
    whole = golden_tokenizer.tokenizer_json(FIRST_ADDED + len(golden_tokenizer.ADDED))
    return whole | {"added_tokens": added_tokens()}


def tokenizer_config(max_length):
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added_tokens()}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": ["<|system|>", "<|end|>", "<|user|>", "<|end|>"],
        "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "processor_class": "Phi3VProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
