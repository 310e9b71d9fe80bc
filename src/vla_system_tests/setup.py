from setuptools import find_packages, setup

package_name = "vla_system_tests"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["campaign/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="VLA suite maintainers",
    maintainer_email="maintainers@example.com",
    description="Tests that start the real nodes of the VLA suite as real processes.",
    license="Apache-2.0",
)
