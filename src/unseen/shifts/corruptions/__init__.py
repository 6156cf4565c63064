"""The 15 + 4 common corruptions of ImageNet-C and CIFAR-10-C, batched, seeded, for images of any size.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019 (https://arxiv.org/abs/1903.12261). `corrupt` damages a batch of images, `CORRUPTIONS` lists what
there is with its strengths, `corruption_shift` turns an image shift into one with a domain per corruption.
"""

from unseen.shifts.corruptions.apply import corrupt
from unseen.shifts.corruptions.catalogue import CORRUPTIONS, Corruption
from unseen.shifts.corruptions.shift import CorruptedImages, corruption_shift

__all__ = ["CORRUPTIONS", "CorruptedImages", "Corruption", "corrupt", "corruption_shift"]
