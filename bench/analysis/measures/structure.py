"""Structural knowledge: how alike student and teacher see images, classes and errors.

Linear CKA: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.
Procrustes distance: Ding et al., "Grounding Representation Similarity Through Statistical Testing",
NeurIPS 2021. Agreement of errors: Geirhos et al., "Beyond accuracy: quantifying trial-by-trial
behaviour of CNNs and humans by measuring error consistency", NeurIPS 2020.
"""

from __future__ import annotations

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from bench.analysis.measures.examples import view_images
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import (
    Outputs,
    check_labels,
    check_same_classes,
    collect_outputs,
    pair_layers,
    varies,
)
from bench.analysis.measures.subject import Subject
from leaderboards.schema.analysis import CORRELATION, PENULTIMATE

GROUP = "structure"


def measure(subject: Subject) -> Findings:
    """Compare logits, features, predictions and errors of student and teacher, in both views."""
    findings = Findings()
    if subject.teacher is None:
        findings.gaps[GROUP] = "no teacher to compare with"
    for view, images in view_images(subject, findings, GROUP).items():
        student = collect_outputs(subject.student, images)
        add_matrix(findings, "student", view, student.logits)
        if subject.teacher is None:
            continue
        try:
            teacher = collect_outputs(subject.teacher, images)
        except GapError as error:
            findings.gaps[f"{GROUP}/{view}"] = f"teacher: {error}"
            continue
        add_matrix(findings, "teacher", view, teacher.logits)
        compare_outputs(findings, view, student, teacher, subject.y.cpu())
    return findings


def add_matrix(findings: Findings, network: str, view: str, logits: Tensor) -> None:
    """Add the class-correlation matrix of a network's logits: (N, C)."""
    name = f"{CORRELATION}/{network}/{view}"
    try:
        matrix = class_correlation(logits)
    except GapError as error:
        findings.gaps[name] = str(error)
    else:
        findings.matrices[name] = matrix.tolist()


def compare_outputs(
    findings: Findings, view: str, student: Outputs, teacher: Outputs, y: Tensor
) -> None:
    """Add all measures of the outputs of both networks for the same images."""
    logits = student.logits, teacher.logits
    findings.add_measured((GROUP, "correlation_gap", view), correlation_gap, *logits)
    findings.add_measured((GROUP, "prediction_agreement", view), prediction_agreement, *logits)
    findings.add_measured((GROUP, "error_agreement", view), error_agreement, *logits, y)
    pairs = pair_layers(student, teacher)
    for layer in (*student.resolutions, PENULTIMATE):
        for name, function in (("cka", linear_cka), ("procrustes", procrustes_distance)):
            if layer in pairs:
                features = student.features[layer], teacher.features[pairs[layer]]
                findings.add_measured((GROUP, name, layer, view), function, *features)
            else:
                findings.gaps[f"{GROUP}/{name}/{layer}"] = missing_layer(student, layer)
    if not student.resolutions:
        findings.gaps[f"{GROUP}/stages"] = "the student has no convolutional stages"


def missing_layer(student: Outputs, layer: str) -> str:
    """Return why a layer has no partner in the teacher."""
    if layer in student.resolutions:
        height, width = student.resolutions[layer]
        return f"the teacher has no stage of {height}x{width}"
    return "student or teacher has no features before a classifier"


def class_correlation(logits: Tensor) -> Tensor:
    """Return the correlations over images between classes' logits: (N, C) -> (C, C)."""
    if logits.shape[1] < 2:
        raise GapError("a single class")
    if not varies(logits, dim=0).all():
        raise GapError("logits of no variance")
    return torch.corrcoef(logits.T)


def correlation_gap(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the mean absolute difference of both class correlations, off the diagonal."""
    check_same_classes(student_logits, teacher_logits)
    difference = class_correlation(student_logits) - class_correlation(teacher_logits)
    classes = len(difference)
    off_diagonal = ~torch.eye(classes, dtype=torch.bool)
    return float(difference[off_diagonal].abs().mean())


def linear_cka(student: Tensor, teacher: Tensor) -> float:
    """Return the linear CKA of features (N, p) and (N, q) of the same images, in [0, 1].

    ||B'A||^2 / (||A'A|| ||B'B||) in Frobenius norms, with A and B centred over images.
    """
    a, b = unit_features(student), unit_features(teacher)
    return float((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))


def procrustes_distance(student: Tensor, teacher: Tensor) -> float:
    """Return half of min ||A - B R||^2 over orthogonal R, in [0, 1].

    A and B are features (N, p) and (N, q), centred and of unit Frobenius norm; the narrower has
    zeros added. That is 1 - ||A'B|| in the nuclear norm, which the zeros do not change.
    """
    a, b = unit_features(student), unit_features(teacher)
    return max(0.0, 1 - float(torch.linalg.matrix_norm(a.T @ b, ord="nuc")))


def unit_features(features: Tensor) -> Tensor:
    """Return features (N, width) centred over images and of unit Frobenius norm."""
    if not varies(features):
        raise GapError("features of no variance")
    centred = features - features.mean(dim=0)
    unit: Tensor = centred / centred.norm()
    return unit


def prediction_agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return Cohen's kappa of both predictions."""
    check_same_classes(student_logits, teacher_logits)
    return kappa(student_logits.argmax(dim=1), teacher_logits.argmax(dim=1))


def error_agreement(student_logits: Tensor, teacher_logits: Tensor, y: Tensor) -> float:
    """Return Cohen's kappa of where both are right."""
    check_same_classes(student_logits, teacher_logits)
    check_labels(student_logits, y)
    return kappa(student_logits.argmax(dim=1) == y, teacher_logits.argmax(dim=1) == y)


def kappa(first: Tensor, second: Tensor) -> float:
    """Return Cohen's kappa of two ratings of the same images, (N,) each."""
    if (torch.cat([first, second]) == first[0]).all():
        raise GapError("one answer on all images from both networks, as by chance")
    return float(cohen_kappa_score(first.numpy(), second.numpy()))
