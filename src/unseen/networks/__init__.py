"""What is trained: small networks, pretrained backbones, adapters."""

from unseen.networks.bank import Bank
from unseen.networks.base import Network, build_network

__all__ = ["Bank", "Network", "build_network"]
