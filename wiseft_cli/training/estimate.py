"""About how much memory and disk a run will need, from one pass over two black images.

It trains nothing; the run it looks at is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wiseft_cli.training.batches import largest_pass
from wiseft_cli.training.modes import set_training_modes
from wiseft_cli.training.placement import Placement
from wiseft_cli.training.plan import FinetunePlan
from wiseft_cli.training.state import Run, state_bytes
from wiseft_cli.training.state_folder import KEPT_STATES

_N_TRIED = 2  # BatchNorm has no statistics of one


@dataclass(frozen=True)
class Estimate:
    """Bytes that one process of a run needs beside torch itself.

    Attributes:
        weights: Of the whole classifier.
        gradients: Of what is trained.
        moments: AdamW's two.
        n_images: Images of one forward pass.
        activations: What the backward pass of that many images needs.
        features: Of a frozen encoder, for all images; 0 elsewhere.
        state: Of one state on disk.
        output: Of the checkpoint.
    """

    weights: int
    gradients: int
    moments: int
    n_images: int
    activations: int
    features: int
    state: int
    output: int

    @property
    def memory(self) -> int:
        """Bytes in memory, beside torch itself."""
        parts = (self.weights, self.gradients, self.moments, self.activations, self.features)
        return sum(parts)

    @property
    def disk(self) -> int:
        """Bytes on disk while a state is written."""
        return self.output + (KEPT_STATES + 1) * self.state


def estimate(run: Run, plan: FinetunePlan, place: Placement, *, example: torch.Tensor) -> Estimate:
    """Estimate what a run needs.

    Args:
        run: Fresh; its BatchNorm statistics are spoilt by this.
        place: Where it would compute.
        example: An image (1, 3, H, W).
    """
    recipe = plan.recipe
    n_images = largest_pass(recipe, place.processes.world_size)
    trained = sum(parameter.nbytes for parameter in run.trained.values())
    is_probe = recipe.freeze == "encoder"
    with torch.random.fork_rng(devices=[]):
        set_training_modes(run.classifier, freeze=recipe.freeze, batch_norm=recipe.batch_norm)
        inputs = example.expand(_N_TRIED, -1, -1, -1).to(place.device)
        with torch.set_grad_enabled(not is_probe):
            kept = _bytes_kept(run, recipe.precision, inputs)
    weights = sum(tensor.nbytes for tensor in run.classifier.state_dict().values())
    width = run.classifier.classification_head.in_features
    return Estimate(
        weights=weights,
        gradients=trained,
        moments=2 * trained,
        n_images=n_images,
        activations=0 if is_probe else kept * n_images // _N_TRIED,
        features=4 * width * len(plan.train.images.records) if is_probe else 0,
        state=state_bytes(run),
        output=weights,
    )


def _bytes_kept(run: Run, precision: str, inputs: torch.Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in run.classifier.state_dict().values()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its memory, and so its address, is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.classifier(inputs, precision=precision)
    return sum(kept.values())
