"""What a worker process gets of the node's surroundings: little, so that ROS never meets a model's environment."""

import importlib.util
import os
from pathlib import Path

# Everything else of the node's environment, ROS's above all, stays out of the worker.
_PASSED = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "XDG_CACHE_HOME", "AMENT_PREFIX_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM",
    "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "SSL_CERT_FILE", "COVERAGE_PROCESS_START",
)  # fmt: skip
_PACKAGES = ("vla_contract", "vla_kinematics", "vla_policy_node")


def worker_environment(own_interpreter: bool) -> dict[str, str]:
    """Environment variables. `own_interpreter`: the worker runs the node's Python."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    if own_interpreter:
        # It may use what is on our path, e.g. a user's package with a backend.
        environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    # The ROS wheels' start-up hook would start the interpreter a second time, with their libraries on its path.
    environment["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"
    return environment | {"PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1", "PYTHONFAULTHANDLER": "1"}


def package_folders() -> dict[str, str]:
    """Where this process would import the suite's ROS-free packages from."""
    folders = {}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders[name] = str(Path(spec.origin).parent)
    return folders
