"""The likely cause of differences between two files, for the files of many programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import RunWiseft
from tests.merging.pairs import write_foreign, write_pair
from tests.merging.test_merge import read_all
from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.merging.causes import find_cause

Shapes = Mapping[str, tuple[int, ...]]

OPEN_CLIP: Shapes = {
    "class_embedding": (8,),
    "positional_embedding": (5, 8),
    "proj": (8, 4),
    "conv1.weight": (8, 3, 2, 2),
    **{f"transformer.resblocks.{i}.attn.in_proj_weight": (24, 8) for i in range(2)},
    **{f"transformer.resblocks.{i}.ln_1.weight": (8,) for i in range(2)},
}
TEXT: Shapes = {
    "positional_embedding": (7, 6),
    "token_embedding.weight": (99, 6),
    "text_projection": (6, 4),
    **{f"transformer.resblocks.{i}.attn.in_proj_weight": (18, 6) for i in range(2)},
    **{f"transformer.resblocks.{i}.ln_1.weight": (6,) for i in range(2)},
}
HUGGING_FACE: Shapes = {
    "embeddings.class_embedding": (8,),
    "embeddings.patch_embedding.weight": (8, 3, 2, 2),
    "embeddings.position_embedding.weight": (5, 8),
    **{f"encoder.layers.{i}.self_attn.q_proj.weight": (8, 8) for i in range(2)},
    "post_layernorm.weight": (8,),
}
HUGGING_FACE_TEXT: Shapes = {
    "embeddings.token_embedding.weight": (99, 6),
    "embeddings.position_embedding.weight": (7, 6),
    **{f"encoder.layers.{i}.self_attn.q_proj.weight": (6, 6) for i in range(2)},
}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


VISUAL = prefixed("visual.", OPEN_CLIP)
FULL = {**VISUAL, **TEXT, "logit_scale": ()}
HF_VISION = prefixed("vision_model.", HUGGING_FACE)
HF_FULL = {
    **HF_VISION,
    **prefixed("text_model.", HUGGING_FACE_TEXT),
    "visual_projection.weight": (4, 8),
    "text_projection.weight": (4, 6),
    "logit_scale": (),
}
KEEPS = "--missing copy keeps tensors that only one file has"
TEXT_TOWER = (
    "the second file is a full CLIP model with its text tower, the first only an image encoder; "
    + KEEPS
)


def renamed(shapes: Shapes, change: Callable[[str], str]) -> Shapes:
    return {change(name): shape for name, shape in shapes.items()}


def infos(shapes: Shapes) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, "F32", shape, 0, 4 * int(np.prod(shape)))
        for name, shape in shapes.items()
    }


def wrap_blocks(name: str) -> str:
    name = name.replace("transformer.", "transformer._fsdp_wrapped_module.")
    return name.replace(".ln_1.", "._checkpoint_wrapped_module.ln_1.")


CASES: dict[str, tuple[Shapes, Shapes, str]] = {
    "transformers' names without the wrapper": (
        HUGGING_FACE,
        HF_VISION,
        "the names in the second file start with 'vision_model.'; add the prefix to those in the "
        "first file",
    ),
    "transformers' names without the wrapper, and a text tower": (
        HUGGING_FACE,
        HF_FULL,
        "the names in the second file start with 'vision_model.'; add the prefix to those in the "
        f"first file; {TEXT_TOWER}",
    ),
    "transformers' names, and a text tower": (HF_VISION, HF_FULL, TEXT_TOWER),
    "transformers' names under DDP": (
        HF_FULL,
        prefixed("module.", HF_FULL),
        "the names in the second file start with 'module.'; save it without the prefix",
    ),
    "transformers' and open_clip's names": (
        HF_FULL,
        FULL,
        "the first file has Hugging Face tensor names (vision_model.*); convert it with "
        "`wiseft convert`; --match-names matches such names",
    ),
    "position_ids": (
        HF_VISION,
        {**HF_VISION, "vision_model.embeddings.position_ids": (1, 5)},
        f"only one file has the buffers position_ids, which are not weights; {KEEPS}",
    ),
    "position_ids of another length in both": (
        {**HF_VISION, "vision_model.embeddings.position_ids": (1, 5)},
        {**HF_VISION, "vision_model.embeddings.position_ids": (5,)},
        "the same values are stored in other shapes, so reshape them in one file: "
        "vision_model.embeddings.position_ids has shape (1, 5) in the first file and (5,) in the "
        "second",
    ),
    "a scalar of shape (1,)": (
        FULL,
        {**FULL, "logit_scale": (1,)},
        "the same values are stored in other shapes, so reshape them in one file: logit_scale has "
        "shape () in the first file and (1,) in the second",
    ),
    "ZeRO-3": (
        FULL,
        {**dict.fromkeys(FULL, (0,)), "logit_scale": ()},
        "the second file has empty tensors, as DeepSpeed ZeRO-3 saves them in each process; "
        "gather the weights with its zero_to_fp32.py",
    ),
    "ZeRO-3, some tensors": (
        {**VISUAL, "visual.proj": (0,), "visual.conv1.weight": (0,)},
        VISUAL,
        "the first file has empty tensors, as DeepSpeed ZeRO-3 saves them in each process; "
        "gather the weights with its zero_to_fp32.py",
    ),
    "two prefixes": (
        prefixed("module.module.", VISUAL),
        VISUAL,
        "the names in the first file start with 'module.module.'; save it without the prefix",
    ),
    "torch.compile in a module": (
        VISUAL,
        prefixed("model._orig_mod.", VISUAL),
        "the names in the second file start with 'model._orig_mod.'; save it without the prefix",
    ),
    "an unknown prefix": (
        FULL,
        prefixed("student.clip.", FULL),
        "the names in the second file start with 'student.clip.'; save it without the prefix",
    ),
    "a prefix on both sides": (
        prefixed("module.", VISUAL),
        prefixed("model._orig_mod.", VISUAL),
        "the names in the first file start with 'module.', those in the second with "
        "'model._orig_mod.'; save both without the prefix",
    ),
    "a prefix, and a text tower": (
        VISUAL,
        prefixed("module.", FULL),
        "the names in the second file start with 'module.'; save it without the prefix; "
        + TEXT_TOWER,
    ),
    "a prefix, and a head": (
        prefixed("backbone.", OPEN_CLIP) | {"head.weight": (3, 4), "head.bias": (3,)},
        OPEN_CLIP,
        "the names in the first file start with 'backbone.'; save it without the prefix; the first "
        f"file has a classification head (head.bias, head.weight), the second has none; {KEEPS}",
    ),
    "wrappers inside names": (
        VISUAL,
        renamed(VISUAL, wrap_blocks),
        "the names in the second file contain '_checkpoint_wrapped_module.' and "
        "'_fsdp_wrapped_module.'; save it without them",
    ),
    "wrappers inside names, and a prefix": (
        prefixed("model.", renamed(VISUAL, wrap_blocks)),
        VISUAL,
        "the names in the first file contain '_checkpoint_wrapped_module.' and "
        "'_fsdp_wrapped_module.'; save it without them; the names in the first file start with "
        "'model.'; save it without the prefix",
    ),
    "torch.compile inside": (
        renamed(FULL, lambda name: name.replace("visual.", "visual._orig_mod.")),
        FULL,
        "the names in the first file contain '_orig_mod.'; save it without them",
    ),
    "an image encoder without visual.": (
        VISUAL | {"classification_head.weight": (3, 4), "classification_head.bias": (3,)},
        OPEN_CLIP,
        "the names in the first file start with 'visual.'; add the prefix to those in the second "
        "file; the first file has a classification head (classification_head.bias, "
        f"classification_head.weight), the second has none; {KEEPS}",
    ),
    "a plain tower and a full CLIP": (
        OPEN_CLIP,
        FULL,
        "the names in the second file start with 'visual.'; add the prefix to those in the first "
        f"file; {TEXT_TOWER}",
    ),
    "a head on top": (
        HF_VISION,
        HF_VISION | {"classifier.weight": (3, 8), "classifier.bias": (3,)},
        "the second file has a classification head (classifier.bias, classifier.weight), the first "
        f"has none; {KEEPS}",
    ),
    "heads of other names": (
        OPEN_CLIP | {"head.weight": (3, 4)},
        OPEN_CLIP | {"fc.weight": (3, 4)},
        "the heads have different names (head.weight and fc.weight)",
    ),
    "heads of other sizes": (
        OPEN_CLIP | {"head.weight": (3, 4)},
        OPEN_CLIP | {"head.weight": (5, 4)},
        "the heads are for different numbers of classes: head.weight has shape (3, 4) in the first "
        "file and (5, 4) in the second",
    ),
    "another image size": (
        VISUAL,
        VISUAL | {"visual.positional_embedding": (17, 8)},
        "the models are for different image sizes or text lengths: visual.positional_embedding has "
        "shape (5, 8) in the first file and (17, 8) in the second",
    ),
    "another vocabulary": (
        FULL,
        FULL | {"token_embedding.weight": (120, 6)},
        "the vocabularies differ: token_embedding.weight has shape (99, 6) in the first file and "
        "(120, 6) in the second",
    ),
    "another width": (
        VISUAL,
        {name: tuple(2 * n if n == 8 else n for n in shape) for name, shape in VISUAL.items()},
        "the architectures differ: visual.class_embedding has shape (8,) in the first file and "
        "(16,) in the second",
    ),
    "another depth": (
        VISUAL,
        VISUAL | {"visual.transformer.resblocks.2.ln_1.weight": (8,)},
        "the architectures differ, or a file is incomplete: visual.transformer.resblocks has 2 "
        "blocks in the first file and 3 in the second",
    ),
    "a part": (
        dict(list(FULL.items())[4:]),
        FULL,
        f"the first file has only 12 of the {len(FULL)} tensors of the second; {KEEPS}",
    ),
    "other names of the same shapes": (
        OPEN_CLIP,
        renamed(OPEN_CLIP, lambda name: name.replace(".", "/").upper()),
        "no name is in both files, although most shapes are; convert the names of one file to "
        "those of the other",
    ),
    "other models": (
        OPEN_CLIP,
        {"stem.weight": (3, 3), "stages.0.weight": (9, 9)},
        "no name is in both files, and the shapes differ: they hold different models",
    ),
    "a LoRA adapter": (
        FULL,
        {
            "base_model.model.visual.proj.lora_A.weight": (2, 8),
            "base_model.model.visual.proj.lora_B.weight": (4, 2),
        },
        "the second file has LoRA-like factors (base_model.model.visual.proj.lora_A.weight); "
        "merge each adapter into its base model first, for example with peft's "
        "merge_and_unload(), and merge the full weights",
    ),
}


@pytest.mark.parametrize(("first", "second", "expected"), CASES.values(), ids=CASES.keys())
def test_the_cause_is_named_for_both_orders(first: Shapes, second: Shapes, expected: str) -> None:
    if "the names in the" in expected:
        expected += "; --match-names matches such names"
    assert find_cause(infos(first), infos(second)) == expected
    side = re.match(r"the (?:names in the )?(first|second) file", expected)
    if side and "those in the second with" not in expected:
        other = {"first": "second", "second": "first"}[side[1]]
        turned = find_cause(infos(second), infos(first))
        assert turned.startswith(side[0].replace(side[1], other))


def test_ranks_of_adapters_that_differ_are_not_architectures() -> None:
    one, other = ({"q.lora_A.weight": (rank, 8), "q.lora_B.weight": (6, rank)} for rank in (2, 4))
    cause = find_cause(infos(one), infos(other))
    assert cause.startswith("the first file has LoRA-like factors (q.lora_A.weight); merge each")


def test_quantized_and_plain_weights_are_recognized() -> None:
    plain = infos({"q.weight": (8, 8), "q.bias": (8,)})
    quantized = infos({"q.bias": (8,), "q.scales": (1, 8)})
    quantized["q.qweight"] = TensorInfo("q.qweight", "I32", (1, 8), 0, 32)
    cause = find_cause(plain, quantized)
    assert cause.startswith("the second file has quantized weight with scales (q.qweight); dequant")


def test_missing_copy_does_not_copy_around_a_prefix(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    zeros = {name: np.zeros(shape, np.float32) for name, shape in HUGGING_FACE.items()}
    write_foreign(tmp_path / "a", {**zeros, "logit_scale": np.float32(1)})
    names = {f"vision_model.{name}": array for name, array in zeros.items()}
    write_foreign(tmp_path / "b", {**names, "logit_scale": np.float32(1)})
    done = run_wiseft("merge", "a", "b", "-o", "out", "--missing", "copy")
    assert done.returncode == 1
    assert "start with 'vision_model.'; add the prefix to those in the first" in done.stderr


def test_diff_names_the_shapes_and_not_itself(tmp_path: Path, run_wiseft: RunWiseft) -> None:
    write_foreign(tmp_path / "a", {"visual.proj": np.zeros((4, 4))})
    write_foreign(tmp_path / "b", {"visual.proj": np.zeros((8, 4))})
    assert run_wiseft("diff", "a", "b").stdout.splitlines()[2] == (
        "likely cause: the architectures differ: visual.proj has shape (4, 4) in the first file "
        "and (8, 4) in the second"
    )


def test_a_tower_of_our_own_checkpoint_is_not_to_be_stripped(
    tmp_path: Path, run_wiseft: RunWiseft
) -> None:
    zeroshot, _ = write_pair(tmp_path)
    tower = {
        name.removeprefix("visual."): array
        for name, array in read_all(zeroshot).items()
        if name.startswith("visual.")
    }
    write_foreign(tmp_path / "tower", tower)
    done = run_wiseft("merge", zeroshot, "tower", "-o", "out")
    assert "start with 'visual.'; add the prefix to those in the second file" in done.stderr
    assert "without the prefix" not in done.stderr
