"""A tokenizer of words, without a package: what `fairkern.hf` asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Words:
    """Ids by the order in which words come; 0 begins a text, 1 ends one."""

    def __init__(self, pad: int | None = 2, template: str | None = None, side: str = "right") -> None:
        self.eos_token_id, self.pad_token_id, self.chat_template, self.padding_side = 1, pad, template, side
        self.known: dict[str, int] = {}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [self.known.setdefault(word, len(self.known) + 3) for word in text.split()]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}

    def apply_chat_template(
        self, messages: Sequence[Any], tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        if any(message["role"] == "nobody" for message in messages):
            raise ValueError("nobody may not speak")
        said = [f"<{message['role']}> {message['content']} <end>" for message in messages]
        return " ".join([*said, *(["<assistant>"] if add_generation_prompt else [])])
