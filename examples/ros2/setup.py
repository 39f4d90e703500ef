"""An ament_python package: `colcon build` installs it."""

from setuptools import setup

setup(
    name="vde_ros",
    version="0.1.0",
    packages=["vde_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/vde_ros"]),
        ("share/vde_ros", ["package.xml"]),
    ],
    install_requires=["setuptools", "video_distilled_encoder"],
    zip_safe=True,
    entry_points={"console_scripts": ["encoder = vde_ros.node:main"]},
)
