"""Answers of the second demo model under transformers, read from its files as a runtime reads them.

Nothing here is shared with training but the parts of the model: tiles are cut from the picture itself, the prompt is
encoded chunk by chunk, and the towers run as transformers' own classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from demo_hd import GLOBAL, ROW_END, cut, hd_transform, merge, overview, token_order
from demo_phi3v_model import load_hub
from demo_phi3v_tokenizer import encode_prompt, user_prompt

MAX_NEW_TOKENS = 80


@dataclass
class Answer:
    text: str
    token_ids: list[int]
    min_margin: float
    prompt_tokens: int


class Reference:
    """A checkpoint folder as float32, or another dtype."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32):
        self.model = load_hub(folder).to(device, dtype)
        self.device, self.dtype = device, dtype
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.num_crops = preprocessor["num_crops"]
        self.mean, self.std = (
            torch.tensor(preprocessor[name]).view(3, 1, 1) for name in ("image_mean", "image_std")
        )
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        self.stops = set(generation["eos_token_id"])

    def picture_rows(self, picture: Image.Image) -> torch.Tensor:
        """A picture's rows of the sequence, [tokens, hidden]."""
        vision = self.model.clip.config
        canvas = hd_transform(picture.convert("RGB"), vision.image_size, self.num_crops)
        pixels = torch.from_numpy(np.asarray(canvas.picture).transpose(2, 0, 1).copy()).float() / 255
        pixels = ((pixels - self.mean) / self.std)[None]
        tiles = torch.cat([overview(pixels, vision.image_size), cut(pixels, vision.image_size)[0]])
        hidden = self.model.clip(tiles.to(self.device, self.dtype), output_hidden_states=True).hidden_states[-2]
        features = merge(hidden[:, 1:]).flatten(0, 1)
        rows = self.model.rows(features)
        cells = vision.image_size // vision.patch_size // 2
        separators = {ROW_END: len(features), GLOBAL: len(features) + 1}
        order = token_order(canvas.rows, canvas.columns, cells, canvas.columns)
        return rows[[separators.get(row, row) for row in order]]

    @torch.no_grad()
    def answer(self, pictures: list[Image.Image], question: str) -> Answer:
        """The greedy answer; `token_ids` ends with the stop token."""
        rows = [self.picture_rows(picture) for picture in pictures]
        prompt = encode_prompt(self.tokenizer, user_prompt(question, len(pictures)), [len(row) for row in rows])
        ids = torch.tensor(prompt, device=self.device)
        embed = self.model.phi.model.embed_tokens
        sequence = embed(ids.clamp(min=0))
        if rows:
            sequence[ids < 0] = torch.cat(rows)
        new, margin = [], float("inf")
        while len(new) < MAX_NEW_TOKENS and not (new and new[-1] in self.stops):
            out = self.model.phi(inputs_embeds=sequence[None], use_cache=False, logits_to_keep=1)
            top = out.logits[0, -1].float().topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            new.append(top.indices[0].item())
            sequence = torch.cat([sequence, embed(top.indices[:1])])
        return Answer(self.tokenizer.decode(new, skip_special_tokens=True), new, margin, len(prompt))
