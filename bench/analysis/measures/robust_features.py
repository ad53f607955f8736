"""Robust features: what an attack on the student does to its features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE as SklearnTSNE
from torch import Tensor

from bench.analysis.measures.examples import PGD20, subject_examples
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import collect_outputs, varies
from bench.analysis.measures.subject import Subject
from leaderboards.schema.analysis import (
    ADVERSARIAL,
    CLEAN,
    FEATURE_ATTACKS,
    PENULTIMATE,
    TSNE,
)

GROUP = "features"
# The figure shows the first test images; more take longer and hide each other.
TSNE_IMAGES = 200
TSNE_STEPS = 500
MIN_TSNE_IMAGES = 5
MAX_PERPLEXITY = 30


def measure(subject: Subject) -> Findings:
    """Compare the student's features of images and of their adversarial examples."""
    findings = Findings()
    clean = penultimate_features(subject, subject.x)
    views = {CLEAN: clean}
    for attack in FEATURE_ATTACKS:
        try:
            attacked = penultimate_features(subject, subject_examples(subject, name=attack))
        except GapError as error:
            findings.gaps[f"{GROUP}/{attack}"] = str(error)
            continue
        findings.add_measured((GROUP, "cosine", attack), mean_cosine, clean, attacked)
        findings.add_measured((GROUP, "distance", attack), mean_distance, clean, attacked)
        if attack == PGD20:
            views[ADVERSARIAL] = attacked
    y, train_y = subject.y.cpu(), subject.train_y.cpu()
    train = penultimate_features(subject, subject.train_x) if len(train_y) else clean[:0]
    for view, features in views.items():
        findings.add_measured((GROUP, "scatter", view), scatter_ratio, features, y)
        name = GROUP, "class_mean", view
        findings.add_measured(name, class_mean_accuracy, train, train_y, features, y)
    try:
        findings.points |= embed_features(views, y)
    except GapError as error:
        findings.gaps[TSNE] = str(error)
    return findings


def penultimate_features(subject: Subject, x: Tensor) -> Tensor:
    """Return the student's features of images: (N, width). Raise GapError if it has none."""
    features = collect_outputs(subject.student, x).features
    if PENULTIMATE not in features:
        raise GapError("the student has no features before a classifier")
    return features[PENULTIMATE]


def mean_cosine(clean: Tensor, attacked: Tensor) -> float:
    """Return the mean cosine of the rows of two (N, width), without rows of no length."""
    rows = rows_of_length(clean)
    return float(F.cosine_similarity(clean[rows], attacked[rows], dim=1, eps=0).nan_to_num().mean())


def mean_distance(clean: Tensor, attacked: Tensor) -> float:
    """Return the mean distance of the rows of two (N, width), relative to the first's length."""
    rows = rows_of_length(clean)
    distances = (attacked[rows] - clean[rows]).norm(dim=1)
    return float((distances / clean[rows].norm(dim=1)).mean())


def rows_of_length(features: Tensor) -> Tensor:
    """Return which rows of (N, width) are not zero. Raise GapError if none is."""
    rows: Tensor = features.norm(dim=1) > 0
    if not rows.any():
        raise GapError("the features are zero for every image")
    return rows


def scatter_ratio(features: Tensor, y: Tensor) -> float:
    """Return the scatter of features (N, width) between classes over that within classes.

    Both are sums over images of squared distances: of the class's mean from the mean of all, and of
    the image from its class's mean.
    """
    classes, means = class_means(features, y)
    if len(classes) < 2:
        raise GapError("images of one class only")
    if not varies(features):
        raise GapError("features of no variance")
    own_mean = means[torch.searchsorted(classes, y)]
    within, between = features - own_mean, own_mean - features.mean(dim=0)
    if within.norm() <= 1e-6 * between.norm():
        raise GapError("no variance within classes, as with one image a class")
    return float(between.norm() ** 2 / within.norm() ** 2)


def class_mean_accuracy(train: Tensor, train_y: Tensor, features: Tensor, y: Tensor) -> float:
    """Return the accuracy of the nearest mean of a class's training features (Euclidean)."""
    missing = sorted(set(y.tolist()) - set(train_y.tolist()))
    if missing:
        raise GapError(f"no training image of class {missing[0]}")
    if len(set(train_y.tolist())) < 2:
        raise GapError("training images of one class only")
    if not varies(train):
        raise GapError("features of no variance")
    classes, means = class_means(train, train_y)
    nearest = classes[torch.cdist(features, means).argmin(dim=1)]
    return float((nearest == y).double().mean())


def class_means(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes of labels y (N,), in order, and the mean features of each."""
    classes = torch.unique(y)
    return classes, torch.stack([features[y == label].mean(dim=0) for label in classes])


def embed_features(
    views: dict[str, Tensor], y: Tensor
) -> dict[str, list[tuple[float, float, int]]]:
    """Return t-SNE points (x, y, class) of the first images by name, all views in one embedding."""
    labels = y[:TSNE_IMAGES].tolist()
    if len(labels) < MIN_TSNE_IMAGES:
        raise GapError(f"t-SNE needs {MIN_TSNE_IMAGES} images, there are {len(labels)}")
    features = torch.cat([view[:TSNE_IMAGES] for view in views.values()])
    if features.shape[1] < 2 or not varies(features):
        raise GapError("features of no variance, or of one dimension")
    perplexity = min(MAX_PERPLEXITY, (len(features) - 1) / 3)
    tsne = SklearnTSNE(
        perplexity=perplexity, max_iter=TSNE_STEPS, init="pca", random_state=0, n_jobs=1
    )
    embedded = tsne.fit_transform(features.numpy()).tolist()
    points = {}
    for position, view in enumerate(views):
        rows = embedded[position * len(labels) : (position + 1) * len(labels)]
        points[f"{TSNE}/{view}"] = [(a, b, c) for (a, b), c in zip(rows, labels, strict=True)]
    return points
