"""Generalized category discovery: which of the known classes is it, or which of those that nobody has named yet?

discovery = GeneralizedCategoryDiscovery(encoder, n_old=5).fit((x, y), pool)
discovery.predict(pool)  # 0 to 4 are the old classes
discovery.score(others)  # low for what is neither old nor in the pool
"""

from unseen.discovery.clustering import Clusters, k_means, semi_supervised_k_means
from unseen.discovery.estimator import GeneralizedCategoryDiscovery, PrototypeClassifier
from unseen.discovery.evaluation import ClusteringAccuracy, clustering_accuracy
from unseen.discovery.number_of_classes import NumberOfClasses, estimate_num_classes, prototype_score
from unseen.objectives.protogcd import ProtoGCDLoss, marginal_entropy, simgcd_loss
from unseen.objectives.pseudo_labels import AdaptivePseudoLabels, Ramp

__all__ = [
    "AdaptivePseudoLabels",
    "ClusteringAccuracy",
    "Clusters",
    "GeneralizedCategoryDiscovery",
    "NumberOfClasses",
    "ProtoGCDLoss",
    "PrototypeClassifier",
    "Ramp",
    "clustering_accuracy",
    "estimate_num_classes",
    "k_means",
    "marginal_entropy",
    "prototype_score",
    "semi_supervised_k_means",
    "simgcd_loss",
]
