"""The demo model's own tokenizer and the small JSON files beside its weights.

The tokenizer has the form of LLaVA's: a BPE with byte fallback behind SentencePiece's rule that a space is "▁" and
every text segment starts with one. Ids: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3..258 the bytes, then printable ASCII and "▁",
then one piece per merge, at the end `<image>` and `<pad>`. Any UTF-8 text can be encoded.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from demo_questions import vocabulary_text

UNK, BOS, EOS, IMAGE, PAD = "<unk>", "<s>", "</s>", "<image>", "<pad>"
SPACE = "▁"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
# LLaVA-1.5's rule: "USER: ", one "<image>\n" per picture, the text and a space; no end mark after an answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def byte_fallback_bpe(lines: list[str]) -> Tokenizer:
    """Learns the merges from `lines`; the same on every run. The tokens that are no text are still to be added."""
    alphabet = [chr(code) for code in range(33, 127)] + [SPACE]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    learner.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=4096, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # A merge never reaches over a word's border, so applying them without a pre-tokenizer gives the same pieces.
    assert not any(SPACE in right for _, right in merges)
    pieces = [UNK, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    pieces += [piece for piece in dict.fromkeys(left + right for left, right in merges) if piece not in pieces]

    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def build_tokenizer() -> Tokenizer:
    """LLaVA's added tokens behind the merges of `vocabulary_text`."""
    tokenizer = byte_fallback_bpe(vocabulary_text())
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS, IMAGE, PAD)]
    )
    return tokenizer


def save_processor(folder: Path, tokenizer: Tokenizer, image_size: int, patch_size: int) -> None:
    """Writes everything beside config.json and the weights that AutoProcessor reads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in (UNK, BOS, EOS, IMAGE, PAD)}
    added = {
        str(number): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": True,
        }
        for token, number in sorted(ids.items(), key=lambda pair: pair[1])
    }
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        **special,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {"image_token": IMAGE},
        "image_token": IMAGE,
        "legacy": False,
        "model_max_length": 1024,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "LlamaTokenizer",
    })
    # Processors read the template here, tokenizers there.
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "special_tokens_map.json", {**special, "image_token": IMAGE})
    write_json(folder / "preprocessor_config.json", {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": image_size},
    })
    write_json(folder / "processor_config.json", {
        "image_token": IMAGE,
        "num_additional_image_tokens": 1,
        "patch_size": patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    })
    write_json(folder / "generation_config.json", {
        "_from_model_config": True,
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
        "transformers_version": "5.17.0",
    })


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
