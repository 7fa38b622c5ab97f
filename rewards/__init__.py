"""Score images for reinforcement learning: `rewards.load("geneval")(images, prompts, metadata).scores`."""

from rewards.base import Reward, RewardOutput
from rewards.registry import available, load
from rewards.weighted_sum import composite

__all__ = ["Reward", "RewardOutput", "available", "composite", "load"]
