"""The embedded model's tokenizer: byte-level BPE learnt from the corpus, and its chat template.

Every byte has a token, so any UTF-8 text survives the way there and back. Knows nothing about
the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.embedded.corpus import Document

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
#: The special tokens take the first ids, in this order.
SPECIAL: Final = (BEGIN, END, *ROLES.values())
ID: Final = {token: place for place, token in enumerate(SPECIAL)}
VOCABULARY: Final = 2048

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% elif message['role'] in ['system', 'developer'] %}<|system|>"
    "{% else %}<|user|>{% endif %}"
    "{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def learn(documents: Iterable[Document]) -> Tokenizer:
    """Train byte-level BPE (Sennrich et al., arXiv 1508.07909) on the documents' text."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, so that sums are made of digits and not of learnt numbers.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, ID[BEGIN])]
    )
    return tokenizer


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    return (turn.content for document in documents for turn in document)


def settings(context_length: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[bool]]:
    """A document as token ids, and which of them the model is to learn to say.

    The ids are what the chat template gives. What a user or a system prompt says is read, not
    learnt: it takes capacity and is never asked for.
    """
    ids, learnt = [ID[BEGIN]], [False]
    for turn in document:
        if turn.role in ROLES:
            ids.append(ID[ROLES[turn.role]])
            learnt.append(False)
        said = tokenizer.encode(turn.content, add_special_tokens=False).ids
        ids += [*said, ID[END]]
        learnt += [turn.role in {"assistant", "text"}] * (len(said) + 1)
    return ids, learnt
