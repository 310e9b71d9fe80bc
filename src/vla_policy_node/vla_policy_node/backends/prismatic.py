"""The network of OpenVLA and its relatives (Prismatic VLMs: one or two image encoders, a projector, a language model).

Written for their published weights, whose names the modules bear, so that none of the code that lies beside those
weights is needed. The encoders are vision transformers as timm builds them (DINOv2 with registers, SigLIP).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_contract.errors import ConfigError
from vla_contract.policy import INDEX_FILE, WEIGHTS_FILE
from vla_policy_node.backends.interface import read_json

_HEADS = 16  # of all encoders that are in use: ViT-L and SO400M
_EPSILON = 1e-6
_ROOM = 64  # words; sizes of caches are multiples, so that most sentences share one


class VisionTransformer(nn.Module):
    """Patches of an image, up to the last block but one, as Prismatic models use it. Sizes come from the weights."""

    def __init__(self, shapes: Mapping[str, torch.Size]):
        super().__init__()
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.pos_embed = nn.Parameter(torch.empty(shapes["pos_embed"]))
        for name in ("cls_token", "reg_token"):
            if name in shapes:
                self.register_parameter(name, nn.Parameter(torch.empty(shapes[name])))
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        hidden, scaled = shapes["blocks.0.mlp.fc1.weight"][0], "blocks.0.ls1.scale_factor" in shapes
        self.blocks = nn.ModuleList(_Block(width, hidden, scaled) for _ in range(depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, width)."""
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2) + self.pos_embed
        names = [name for name in ("cls_token", "reg_token") if hasattr(self, name)]
        extra = [getattr(self, name).expand(len(x), -1, -1) for name in names]
        x = torch.cat([*extra, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, sum(part.shape[1] for part in extra) :]


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, scaled: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.ls1, self.ls2 = (_Scale(width), _Scale(width)) if scaled else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.ls1(self.attn["proj"](mixed))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class _Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Prismatic(nn.Module):
    """Images and text -> the words that follow."""

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, torch.Size]):
        super().__init__()
        from transformers import AutoConfig, AutoModelForCausalLM

        text = dict(config["text_config"])
        self.text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        names = ("featurizer", "fused_featurizer")[: 1 + bool(config["use_fused_vision_backbone"])]
        self.vision_backbone = nn.ModuleDict(
            {name: VisionTransformer(_under(shapes, f"vision_backbone.{name}.")) for name in names}
        )
        linear = {k: v for k, v in _under(shapes, "projector.").items() if k.endswith(".weight")}
        self.projector = nn.ModuleDict(
            {name.removesuffix(".weight"): nn.Linear(linear[name][1], linear[name][0]) for name in sorted(linear)}
        )
        self.language_model = AutoModelForCausalLM.from_config(self.text_config)
        self._look: Callable[..., Tensor] = self._see
        self._write: Callable[..., Tensor] = self._next_word
        self._caches: dict[int, Any] | None = None

    def compile_with(self, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """From now on images are read and words after the first are found by what `compiled` makes of these functions.

        Keys and values are kept in tensors of a fixed size then: compiled code, CUDA graphs above all, wants the same
        shapes and places again and again.
        """
        self._look, self._write = compiled(self._see), compiled(self._next_word)
        self._caches = {}

    @torch.no_grad()
    def answer(self, pixels: tuple[Tensor, ...], tokens: Tensor, count: int) -> Tensor:
        """The likeliest next `count` ids (count,), one after the other.

        Args:
            pixels: for each encoder (1, 3, H, W), normalised.
            tokens: (1, T), the first of which begins every sentence; the image comes after it.
        """
        seen = self._look(*pixels)
        words = self.language_model.get_input_embeddings()(tokens)
        begin = torch.cat([words[:, :1], seen, words[:, 1:]], dim=1)
        cache = self._cache(begin.shape[1] + count)
        output = self.language_model(inputs_embeds=begin, past_key_values=cache, use_cache=True, logits_to_keep=1)
        answered = [output.logits[:, -1].argmax(-1)]
        while len(answered) < count:
            torch.compiler.cudagraph_mark_step_begin()  # what the last word left in its graph's memory is done with
            answered.append(self._write(answered[-1], output.past_key_values).clone())
        return torch.cat(answered)

    def _see(self, *pixels: Tensor) -> Tensor:
        """Images as the language model reads them (1, patches, width)."""
        towers = self.vision_backbone.values()
        seen = torch.cat([tower(image) for tower, image in zip(towers, pixels, strict=True)], dim=-1)
        for i, layer in enumerate(self.projector.values()):
            seen = layer(F.gelu(seen) if i else seen)
        return seen

    def _next_word(self, word: Tensor, cache: Any) -> Tensor:
        """The likeliest id (1,) after `word` (1,)."""
        output = self.language_model(input_ids=word[:, None], past_key_values=cache, use_cache=True)
        return output.logits[:, -1].argmax(-1)

    def _cache(self, length: int) -> Any | None:
        """An empty one with room for `length` words; None: one that grows."""
        if self._caches is None:
            return None
        from transformers import StaticCache

        size = -(-length // _ROOM) * _ROOM
        if size not in self._caches:
            self._caches[size] = StaticCache(self.text_config, max_cache_len=size)
        self._caches[size].reset()
        return self._caches[size]


def load_prismatic(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Prismatic:
    """The network on the CPU with its weights.

    Raises:
        ConfigError: when files are missing or malformed, or weights are missing, too many or of wrong shapes.
    """
    shapes: dict[str, torch.Size] = {}
    weights: dict[str, Tensor] = {}
    try:
        for path in _files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, no mapping
                    tensor = file.get_tensor(name)
                    shapes[name], weights[name] = tensor.shape, tensor.to(dtype)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"the weights of checkpoint '{folder}' cannot be read: {error}") from error
    try:
        with torch.device("meta"):  # else the language model would first be filled with random numbers, for minutes
            model = Prismatic(config, shapes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"checkpoint '{folder}' is no Prismatic model: {type(error).__name__}: {error}") from error
    wanted = model.state_dict()
    for name in [name for name in weights if name not in wanted and _unused(name, shapes)]:
        del weights[name]
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    wrong = [f"{n} {tuple(shapes[n])}" for n in wanted if n in shapes and shapes[n] != wanted[n].shape]
    if missing or extra or wrong:
        raise ConfigError(
            f"checkpoint '{folder}': {len(missing)} weights are missing {missing[:3]}, {len(extra)} have no place "
            f"{extra[:3]}, {len(wrong)} have the wrong shape {wrong[:3]}; they do not belong to its config.json"
        )
    model.load_state_dict(weights, assign=True)
    rotary = model.language_model.model.rotary_emb  # computed from the config, not part of the weights
    model.language_model.model.rotary_emb = type(rotary)(config=model.text_config)
    return model


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    return [folder / name for name in sorted(set(read_json(folder / INDEX_FILE)["weight_map"].values()))]


def _unused(name: str, shapes: Mapping[str, torch.Size]) -> bool:
    """The encoders' last block and what comes after it is in the files, but no Prismatic model looks at it."""
    if not name.startswith("vision_backbone."):
        return False
    tower, part = name.removeprefix("vision_backbone.").split(".", 1)
    blocks = {int(n.split(".")[1]) for n in _under(shapes, f"vision_backbone.{tower}.") if n.startswith("blocks.")}
    return part.startswith((f"blocks.{max(blocks)}.", "norm.", "fc_norm.", "attn_pool.", "head."))


def _under(shapes: Mapping[str, torch.Size], prefix: str) -> dict[str, torch.Size]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


class Pixels:
    """Images as each encoder takes them, by `preprocessor_config.json`.

    Args:
        crop: share of the image's area that is kept, in its middle.

    Raises:
        ConfigError: when the file is missing, or asks for a way of resizing that is not known here.
    """

    def __init__(self, folder: Path, crop: float = 1.0):
        path = folder / "preprocessor_config.json"
        config = read_json(path)
        strategy = config.get("image_resize_strategy")
        if strategy != "resize-naive" or set(config.get("interpolations", [])) != {"bicubic"}:
            raise ConfigError(
                f"{path}: image_resize_strategy '{strategy}', interpolations {config.get('interpolations')}; "
                "only 'resize-naive' with 'bicubic' is known here"
            )
        try:
            self._sizes = [(int(height), int(width)) for _, height, width in config["input_sizes"]]
            self._moments = [
                [torch.tensor(values, dtype=torch.float32)[:, None, None] for values in pair]
                for pair in zip(config["means"], config["stds"], strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} lacks sizes, means or deviations: {type(error).__name__}: {error}") from error
        self._crop = crop**0.5

    def __call__(self, image: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """(H, W, 3) RGB -> for each encoder (1, 3, h, w), normalised."""
        picture = Image.fromarray(image)
        if self._crop < 1:
            width, height = picture.width * self._crop, picture.height * self._crop
            left, top = (picture.width - width) / 2, (picture.height - height) / 2
            picture = picture.crop((round(left), round(top), round(left + width), round(top + height)))
        answer = []
        for (height, width), (mean, std) in zip(self._sizes, self._moments, strict=True):
            resized = np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
            pixels = torch.from_numpy(resized).permute(2, 0, 1).float() / 255
            answer.append(((pixels - mean) / std)[None])
        return tuple(answer)
