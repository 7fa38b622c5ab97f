"""Packaging of t2i_gcpo: two packages (`t2i_gcpo`, `rewards`), one command (`t2i-gcpo`)."""

from pathlib import Path

from setuptools import find_packages, setup

#: What the `ocr` reward reads with.
REWARDS = ["rapidocr>=3.0", "onnxruntime>=1.17", "rapidfuzz>=3.0"]

#: What `make docs` builds the site with.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "latex2mathml>=3.77,<4"]
#: What notebooks/ are opened and executed with.
NOTEBOOKS = ["jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6.29"]

#: What language models are trained with (`t2i-gcpo text`).
TEXT = ["trl>=1.16,<2", "accelerate>=1.10.1", "datasets>=4.7", "math-verify>=0.7"]

EXTRAS = {
    "rewards": REWARDS,
    "notebooks": NOTEBOOKS,
    "text": TEXT,
    "tracking": ["wandb>=0.18", "trackio>=0.2"],
    "docs": DOCS,
    "dev": [
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.8",
        "mypy>=1.13",
        "types-PyYAML",
        "playwright>=1.40",
        "markdown-it-py>=3.0",
        *DOCS,
        *REWARDS,
        *NOTEBOOKS,
        *TEXT,
    ],
}
EXTRAS["all"] = sorted({package for packages in EXTRAS.values() for package in packages})

setup(
    name="t2i-gcpo",
    version="0.1.0",
    description="Reinforcement learning with token-level credit (GRPO, DAPO, GCPO) for discrete-token text-to-image "
    "models",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["t2i_gcpo*", "rewards*"]),
    package_data={
        "t2i_gcpo": ["assets/**/*", "py.typed"],
        "rewards": ["assets/**/*", "vlm/templates/*.yaml", "py.typed"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "transformers>=5.0",
        "diffusers>=0.35",
        "open_clip_torch>=3.0",
        "peft>=0.17",
        "einops>=0.8",
        "pillow>=10.0",
        "numpy>=1.26",
        "scipy>=1.11",
        "safetensors>=0.4",
        "tyro>=0.9",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "rich>=13.0",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "gradio>=6.0",
        "altair>=5.5,<6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["t2i-gcpo = t2i_gcpo.cli:main"]},
)
