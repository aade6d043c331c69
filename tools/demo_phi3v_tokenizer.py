"""The second demo's tokenizer, in the form of Phi-3-vision's, and the small JSON files beside its weights.

The pieces are learned as the first demo's are. The added tokens and their flags are Phi's: `</s>`, `<|assistant|>` and
`<|image|>` swallow the white space behind them, `</s>` is not special. `<|image_1|>` is no token: a prompt is cut at
its picture tags, and every chunk between them is encoded by itself, with `<s>` in front.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from demo_pairs import pair_vocabulary_text
from demo_tokenizer import BOS, CLIP_MEAN, CLIP_STD, EOS, UNK, byte_fallback_bpe, write_json

END_OF_TEXT, ASSISTANT, SYSTEM = "<|endoftext|>", "<|assistant|>", "<|system|>"
END, USER, IMAGE = "<|end|>", "<|user|>", "<|image|>"
RSTRIP = (EOS, ASSISTANT, IMAGE)
ADDED = (UNK, BOS, EOS, END_OF_TEXT, ASSISTANT, SYSTEM, END, USER, IMAGE)
NUM_CROPS = 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
)


def build_tokenizer() -> Tokenizer:
    """Phi's added tokens behind the merges of `pair_vocabulary_text`."""
    tokenizer = byte_fallback_bpe(pair_vocabulary_text())
    for token in ADDED:
        added = AddedToken(token, rstrip=token in RSTRIP, normalized=False, special=token != EOS)
        (tokenizer.add_tokens if token == EOS else tokenizer.add_special_tokens)([added])
    return tokenizer


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer."""
    return [tokenizer.token_to_id(token) for token in (EOS, END_OF_TEXT, END)]


def user_prompt(question: str, pictures: int) -> str:
    """The chat template's text for one user message: picture tags, each on its own line, and the question."""
    tags = "".join(f"<|image_{number}|>\n" for number in range(1, pictures + 1))
    return f"{USER}\n{tags}{question}{END}\n{ASSISTANT}\n"


def encode_prompt(tokenizer: Tokenizer, prompt: str, picture_tokens: list[int]) -> list[int]:
    """Chunk-wise ids; picture m (from 1) is `picture_tokens[m - 1]` times the id -m."""
    chunks = re.split(r"<\|image_(\d+)\|>", prompt)
    ids = tokenizer.encode(chunks[0]).ids
    for number, chunk in zip(map(int, chunks[1::2]), chunks[2::2]):
        ids += [-number] * picture_tokens[number - 1] + tokenizer.encode(chunk).ids
    return ids


def save_processor(folder: Path, tokenizer: Tokenizer, tile_tokens: int, positions: int) -> None:
    """Writes everything beside config.json and the weights."""
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in ADDED}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(ids[token]): {"content": token, **plain, "rstrip": token in RSTRIP, "special": token != EOS}
        for token in ADDED
    }
    special = {"bos_token": BOS, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": UNK}
    extra = [SYSTEM, END, USER]
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": extra,
        **special,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": positions,
        "padding_side": "right",
        "processor_class": "Phi3VProcessor",
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    })
    write_json(folder / "special_tokens_map.json", {
        "additional_special_tokens": extra,
        **{role: {"content": token, **plain} for role, token in special.items()},
    })
    write_json(folder / "preprocessor_config.json", {
        "do_convert_rgb": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "Phi3VImageProcessor",
        "image_std": CLIP_STD,
        "num_crops": NUM_CROPS,
        "num_img_tokens": tile_tokens,
        "processor_class": "Phi3VProcessor",
    })
    write_json(folder / "processor_config.json", {"processor_class": "Phi3VProcessor"})
    write_json(folder / "generation_config.json", {
        "_from_model_config": True,
        "bos_token_id": ids[BOS],
        "eos_token_id": stop_ids(tokenizer),
        "pad_token_id": ids[END_OF_TEXT],
        "transformers_version": "5.17.0",
    })
