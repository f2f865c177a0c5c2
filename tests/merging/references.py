"""The merge methods over whole tensors in float64, written from the papers and nothing else."""

from __future__ import annotations

import numpy as np

Tensors = dict[str, np.ndarray]


def wide(tensors: Tensors) -> Tensors:
    return {name: array.astype(np.float64) for name, array in tensors.items()}


def taus(theta_0: Tensors, finetuned: list[Tensors], name: str) -> list[np.ndarray]:
    return [wide(theta)[name] - wide(theta_0)[name] for theta in finetuned]


def linear(
    theta_0: Tensors, finetuned: list[Tensors], alpha: float, weights: list[float] | None = None
) -> Tensors:
    weights = weights or [1 / len(finetuned)] * len(finetuned)
    return {
        name: x
        + alpha * sum(w * t for w, t in zip(weights, taus(theta_0, finetuned, name), strict=True))
        for name, x in wide(theta_0).items()
    }


def task_arithmetic(theta_0: Tensors, finetuned: list[Tensors], alpha: float) -> Tensors:
    return {
        name: x + alpha * np.sum(taus(theta_0, finetuned, name), axis=0)
        for name, x in wide(theta_0).items()
    }


def slerp(theta_0: Tensors, theta_1: Tensors, alpha: float) -> Tensors:
    merged = {}
    for name, x in wide(theta_0).items():
        y = wide(theta_1)[name]
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        cosine = float(np.vdot(x, y) / norms) if norms else 1.0
        if abs(cosine) > 0.9995:
            merged[name] = (1 - alpha) * x + alpha * y
        else:
            omega = np.arccos(cosine)
            merged[name] = (np.sin((1 - alpha) * omega) * x + np.sin(alpha * omega) * y) / np.sin(
                omega
            )
    return merged


def trim(changes: list[np.ndarray], density: float) -> list[np.ndarray]:
    trimmed = []
    for change in changes:
        k = max(1, int(density * change.size + 1e-9))
        smallest = np.sort(np.abs(change).ravel())[-k] if change.size else 0.0
        trimmed.append(np.where(np.abs(change) >= smallest, change, 0.0))
    return trimmed


def elect(changes: list[np.ndarray], weights: list[float] | None = None) -> np.ndarray:
    stacked = np.stack(changes)
    w = np.array(weights or [1.0] * len(changes)).reshape(-1, *[1] * (stacked.ndim - 1))
    sign = np.sign((w * stacked).sum(axis=0))
    agrees = (np.sign(stacked) == sign) & (stacked != 0)
    total = (w * agrees).sum(axis=0)
    return (w * stacked * agrees).sum(axis=0) / np.where(total > 0, total, 1.0)


def ties(
    theta_0: Tensors,
    finetuned: list[Tensors],
    alpha: float,
    *,
    density: float,
    scope: str,
    weights: list[float] | None = None,
) -> Tensors:
    if scope == "tensor":
        trimmed = {name: trim(taus(theta_0, finetuned, name), density) for name in theta_0}
    else:
        flat = [
            np.concatenate([taus(theta_0, [theta], name)[0].ravel() for name in theta_0])
            for theta in finetuned
        ]
        cut = trim(flat, density)
        trimmed, begin = {}, 0
        for name, x in theta_0.items():
            trimmed[name] = [part[begin : begin + x.size].reshape(x.shape) for part in cut]
            begin += x.size
    return {name: x + alpha * elect(trimmed[name], weights) for name, x in wide(theta_0).items()}


def model_stock(theta_0: Tensors, finetuned: list[Tensors]) -> Tensors:
    merged = {}
    n = len(finetuned)
    for name, x in wide(theta_0).items():
        changes = taus(theta_0, finetuned, name)
        cosines = [
            float(np.vdot(a, b)) / (np.linalg.norm(a) * np.linalg.norm(b))
            if a.any() and b.any()
            else 0.0
            for i, a in enumerate(changes)
            for b in changes[i + 1 :]
        ]
        c = float(np.mean(cosines))
        t = min(1.0, max(0.0, n * c / (1 + (n - 1) * c)))
        mean = np.mean([wide(theta)[name] for theta in finetuned], axis=0)
        merged[name] = t * mean + (1 - t) * x
    return merged


def fisher(
    theta_0: Tensors,
    finetuned: list[Tensors],
    fishers: list[Tensors],
    alpha: float,
    *,
    floor: float,
    weights: list[float] | None = None,
) -> Tensors:
    w = [1 - alpha, *(alpha * u for u in weights or [1 / len(finetuned)] * len(finetuned))]
    merged = {}
    for name in theta_0:
        if name not in fishers[0]:
            merged[name] = linear(
                {name: theta_0[name]}, [{name: t[name]} for t in finetuned], alpha, weights
            )[name]
            continue
        f = [np.maximum(values[name].astype(np.float64), floor) for values in fishers]
        x = [wide(theta)[name] for theta in (theta_0, *finetuned)]
        merged[name] = sum(a * b * c for a, b, c in zip(w, f, x, strict=True)) / sum(
            a * b for a, b in zip(w, f, strict=True)
        )
    return merged
