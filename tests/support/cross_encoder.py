"""A cross-encoder as small as can be, with weights by chance: its scores mean nothing, and are always the same.

    python -m tests.support.cross_encoder FOLDER QUESTION TEXT…

Saves it in the folder, and prints as JSON what sentence-transformers itself says of the texts. A program of its own,
because what it imports takes seconds and memory that the tests' process then keeps.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing

TRANSFORMERS: Any = transformers  # which has hardly any types

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def main(folder: Path, question: str, texts: list[str]) -> None:
    """Make it, and print its scores."""
    words = MARKS + sorted(set(" ".join([question, *texts]).split()))
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    marks = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), MARKS, strict=True))
    TRANSFORMERS.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    torch.manual_seed(1)
    small = TRANSFORMERS.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=1.0,  # so that texts differ by more than rounding
    )
    TRANSFORMERS.BertForSequenceClassification(small).save_pretrained(folder)
    model = CrossEncoder(str(folder), local_files_only=True, device="cpu")
    scores = model.predict([(question, text) for text in texts], show_progress_bar=False)
    sys.stdout.write(json.dumps([float(score) for score in scores]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
