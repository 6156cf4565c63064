"""What is trained: small networks, pretrained backbones, adapters."""

from unseen.networks.bank import Bank
from unseen.networks.base import Network, build_network
from unseen.networks.frozen import FrozenBackbone

__all__ = ["Bank", "FrozenBackbone", "Network", "build_network"]
