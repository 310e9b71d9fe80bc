"""Options of the policy file, for the backends that run in this process.

Nothing here needs torch: preflight reads them in the ROS process, and the backends when they are loaded, by the same
words. Clients of policy servers bring theirs themselves: see `remote.RemoteOptions`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vla_contract.errors import ConfigError, unknown
from vla_contract.robot import Robot, describe_errors
from vla_policy_node.core.action_spaces import ActionLayout
from vla_policy_node.core.action_tokens import BINS

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"

Options = TypeVar("Options", bound=BaseModel)


def read_options(kind: type[Options], backend: str, options: Mapping[str, Any]) -> Options:
    """Options of a policy file.

    Raises:
        ConfigError: with every key that is missing, unknown or wrong, and those that exist.
    """
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        told = describe_errors(Path(f"options of the {backend} backend"), error)
        if set(options) - set(kind.model_fields):
            told += f"; known options: {', '.join(sorted(kind.model_fields))}"
        raise ConfigError(told) from error


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# What moves without a model


class PlayedOptions(_Strict):
    """Of a backend that follows a file.

    Attributes:
        cameras: that an observation must hold, although nobody looks.
        horizon, dt: points of a chunk, and s between them.
    """

    cameras: tuple[str, ...] = ()
    horizon: int = Field(default=16, ge=2, le=1000)
    dt: float = Field(default=0.1, gt=0, le=10)

    def check(self, backend: str, robot: Robot) -> None:
        """Raises ConfigError when the robot lacks a camera."""
        for camera in self.cameras:
            if camera not in robot.cameras:
                raise ConfigError(f"options of the {backend} backend: {unknown('camera', camera, robot.cameras)}")


class ReplayOptions(PlayedOptions):
    """See PlayedOptions.

    Attributes:
        lead_in: rad/s or m/s, fastest on the way to the first point.
        at_end: stay at the last point, or begin again.
    """

    lead_in: float = Field(default=0.3, gt=0, le=3)
    at_end: Literal["stay", "again"] = "stay"


class ScriptedOptions(PlayedOptions):
    """See PlayedOptions."""


# The policy that ships


class FlowOptions(_Strict):
    """Of the shipped policy. Numbers only as they are meant: 3.0, "3" or yes are no integers.

    Attributes:
        threads: of torch.
        steps: of the flow.
        seed: of its noise.
        guidance: beta of real-time chunking, the largest weight of the pull toward the motion under way; 0: off.
    """

    model_config = ConfigDict(strict=True)

    threads: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 5
    seed: Annotated[int, Field(ge=0)] = 0
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 5.0


# Published models


class LocalOptions(_Strict):
    """Of every published model in this process.

    Attributes:
        inputs: what the model sees and is told, in its order: see `core.model_inputs`; one level deep.
        action: what its numbers mean: see `core.action_spaces.ActionLayout`.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        dtype: of the weights; auto: bfloat16 on a GPU, float32 on the CPU.
        quantise: weights as int8 or int4, by torchao; the computation stays in `dtype`. On the CPU int4 is kept in
            bytes: the accuracy of int4, the memory of int8.
        threads: of torch on the CPU.
        seed: of what is random; the same seed and observations give the same chunks.
    """

    inputs: dict[str, Any]
    action: ActionLayout
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantise: Literal["none", "int8", "int4"] = "none"
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    seed: Annotated[int, Field(ge=0)] = 0


class CompiledOptions(LocalOptions):
    """Of a model that torch.compile can take.

    Attributes:
        compile: the mode; loading takes minutes then. `reduce-overhead` uses CUDA graphs, and wants a GPU.
    """

    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"


class Pi0Options(CompiledOptions):
    """See CompiledOptions; a step of the flow is what is compiled.

    Attributes:
        num_steps: of the flow; None: as the checkpoint says.
        guidance: beta of real-time chunking; 0: chunks are not drawn toward the motion under way.
        prompt_tokens: that every prompt is padded to; a longer one is refused.
        batch: robots in one pass at most, with `compile`: passes for 1, 2, 4 … robots are compiled while loading.
    """

    num_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 5.0
    prompt_tokens: Annotated[int, Field(ge=2, le=1024)] = 48
    batch: Annotated[int, Field(ge=1, le=64)] = 1


class OpenVlaOptions(CompiledOptions):
    """See CompiledOptions (`compile` is for OpenVLA's own checkpoints); `inputs` is one camera as it delivers
    (`height: null, width: null`) and the instruction.

    Attributes:
        name: of the policy, for people and records.
        unnorm_key: the data set whose range the actions have; empty: the only one that the checkpoint knows.
        prompt: of the model's training; `{instruction}` is the sentence in lower case.
        horizon: actions in an answer; dt: s between them.
        hold: s after the observation until which the last target is kept, so that the plan outlasts the next inference.
        crop: share of the image's area that the model sees; 0.9 for models that were trained with random crops.
        vocabulary: its size for action tokens; None: as the checkpoint says.
        trust_remote_code: cannot be true.
    """

    name: str = "openvla"
    unnorm_key: str = ""
    prompt: str = PROMPT
    horizon: Annotated[int, Field(ge=1, le=100)] = 1
    dt: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
    hold: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 1.0
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    vocabulary: Annotated[int, Field(ge=BINS)] | None = None
    trust_remote_code: Literal[False] = False

    @field_validator("prompt")
    @classmethod
    def _with_instruction(cls, value: str) -> str:
        if value.count("{instruction}") != 1:
            raise ValueError("expected the place of the sentence, {instruction}, once")
        return value


class LerobotOptions(CompiledOptions):
    """See CompiledOptions; `inputs` under LeRobot's own keys, `observation.images.<name>`, `observation.state`, `task`.
    `dtype` is what is computed in, where that does no harm (torch.autocast, as LeRobot's own `use_amp`): the weights
    stay as they are. auto: as the checkpoint says. What is compiled is the way from a batch to a chunk.

    Attributes:
        dt: s between two actions: 1 / fps of the data set.
        name: of the policy, for people and records; empty: its type.
        backbone: folder with configuration and tokenizer of the language model that the checkpoint names (SmolVLA's
            `vlm_model_name`); empty: where the checkpoint says, which for a name of the hub is transformers' cache.
    """

    dt: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
    name: str = ""
    backbone: str = ""


OPTIONS: Mapping[str, type[BaseModel]] = {
    "flow": FlowOptions,
    "replay": ReplayOptions,
    "scripted": ScriptedOptions,
    "pi0": Pi0Options,
    "openvla": OpenVlaOptions,
    "lerobot": LerobotOptions,
}
