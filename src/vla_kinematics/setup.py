from setuptools import find_packages, setup

package_name = "vla_kinematics"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "pin", "pin-pink"],
    zip_safe=True,
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="Forward and differential inverse kinematics of a robot's tool, without ROS.",
    license="Apache-2.0",
)
