from glob import glob

from setuptools import find_packages, setup

package_name = "vla_policy_node"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/models/flow", glob("models/flow/*")),
    ],
    install_requires=["setuptools", "numpy", "pydantic", "msgpack", "scipy", "pillow", "websockets", "pyzmq", "grpcio"],
    zip_safe=False,  # the worker's interpreter reads the sources from their folder
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="Runs vision-language-action policies: observes, infers in a worker process, schedules chunks.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "vla_policy_node = vla_policy_node.node:main",
            "vla_serve = vla_policy_node.serve:main",
        ],
        "vla_policy_node.backends": [
            "flow = vla_policy_node.backends.flow:load",
            "replay = vla_policy_node.backends.replay:load",
            "scripted = vla_policy_node.backends.scripted:load",
            "openpi = vla_policy_node.backends.openpi:load",
            "gr00t = vla_policy_node.backends.gr00t:load",
            "openvla_rest = vla_policy_node.backends.openvla_rest:load",
            "lerobot_async = vla_policy_node.backends.lerobot_async:load",
            "pi0 = vla_policy_node.backends.pi0:load",
            "openvla = vla_policy_node.backends.openvla:load",
            "lerobot = vla_policy_node.backends.lerobot:load",
        ],
    },
)
