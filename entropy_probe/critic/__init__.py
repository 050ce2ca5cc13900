"""The critic: an image and a text encoder for the domain of the reference, in the place of Inception and CLIP."""

from entropy_probe.critic.network import Critic, load

__all__ = ["Critic", "load"]
