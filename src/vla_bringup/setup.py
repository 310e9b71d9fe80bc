from glob import glob
from itertools import groupby
from os.path import dirname

from setuptools import find_packages, setup

package_name = "vla_bringup"


def shared(*patterns):
    """(target folder, files) for everything that is installed as it is, in its own folder."""
    files = sorted(path for pattern in patterns for path in glob(pattern, recursive=True))
    return [(f"share/{package_name}/{folder}", list(group)) for folder, group in groupby(files, dirname)]


setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        *shared("launch/*.launch.py", "config/**/*.yaml", "config/**/*.xml", "urdf/*", "rviz/*.rviz"),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="Starts the VLA suite: node list, launch files, process runner, command line, configuration.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "vla = vla_bringup.cli.app:main",
            "vla_viewer = vla_bringup.viewer:main",
            "vla_wait_for_filter = vla_bringup.gate:main",
        ]
    },
)
