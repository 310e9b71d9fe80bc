from setuptools import find_packages, setup

package_name = "vla_safety"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    install_requires=["setuptools", "numpy", "pydantic", "scipy"],
    zip_safe=True,
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="The safety filter: verifies every motion, and a stop after it, before the controller gets it.",
    license="Apache-2.0",
    entry_points={"console_scripts": ["vla_safety = vla_safety.node:main"]},
)
