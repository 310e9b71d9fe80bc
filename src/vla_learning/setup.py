from setuptools import find_packages, setup

package_name = "vla_learning"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    install_requires=["setuptools", "matplotlib", "numpy", "rich", "safetensors", "scipy", "torch"],
    entry_points={"console_scripts": ["train = vla_learning.train:main"]},
    zip_safe=True,
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="How the shipped policy is made: demonstrations, training, corrections, evaluation. No ROS.",
    license="Apache-2.0",
)
