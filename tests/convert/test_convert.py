"""Conversions between libraries are exact, complete and reversible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.tiny import (
    CONTEXT,
    PATCH,
    SIDE,
    images,
    open_clip_model,
    raw_tensors,
    save,
    timm_model,
    tokens,
    transformers_model,
)
from wiseft_cli.checkpoint.format import read_header
from wiseft_cli.convert.convert import convert_checkpoint
from wiseft_cli.errors import CheckpointError, OutputError

KINDS = ("clip", "clip-vision", "clip-projection", "siglip", "siglip-vision", "siglip2")


def there_and_back(source: Path, to: str, folder: Path) -> tuple[Path, Path]:
    there, back = folder / "there.safetensors", folder / "back.safetensors"
    convert_checkpoint(source, there)
    convert_checkpoint(there, back, to=to)  # type: ignore[arg-type]
    return there, back


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_names_survive_a_round_trip_to_the_byte(kind: str, tmp_path: Path) -> None:
    source = save(transformers_model(kind), tmp_path / "source.safetensors")
    there, back = there_and_back(source, "transformers", tmp_path)
    assert raw_tensors(back) == raw_tensors(source)
    assert raw_tensors(there).keys() != raw_tensors(source).keys()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_timm_names_survive_a_round_trip_to_the_byte(kind: str, tmp_path: Path) -> None:
    source = save(timm_model(kind), tmp_path / "source.safetensors")
    _, back = there_and_back(source, "timm", tmp_path)
    assert raw_tensors(back) == raw_tensors(source)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_open_clip_names_survive_a_round_trip_to_the_byte(family: str, tmp_path: Path) -> None:
    source = save(open_clip_model(family), tmp_path / "source.safetensors")
    convert_checkpoint(source, tmp_path / "hf.safetensors", to="transformers")
    convert_checkpoint(tmp_path / "hf.safetensors", tmp_path / "back.safetensors")
    assert raw_tensors(tmp_path / "back.safetensors") == raw_tensors(source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_bit_pattern_survives_in_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 256, (*tensor.shape, dtype.itemsize), generator=generator)
        .to(torch.uint8)
        .view(dtype)
        .reshape(tensor.shape)
        for name, tensor in transformers_model("clip").state_dict().items()
    }  # NaN with payloads and infinities among them
    save_file(tensors, tmp_path / "source.safetensors")
    _, back = there_and_back(tmp_path / "source.safetensors", "transformers", tmp_path)
    assert raw_tensors(back) == raw_tensors(tmp_path / "source.safetensors")


def test_features_of_clip_equal_those_of_transformers(tmp_path: Path) -> None:
    model = transformers_model("clip")
    convert_checkpoint(save(model, tmp_path / "hf.safetensors"), tmp_path / "oc.safetensors")
    converted = open_clip_model("clip", tmp_path / "oc.safetensors")
    with torch.no_grad():
        expected = model(input_ids=tokens(), pixel_values=images())
        image, text, scale = converted(images(), tokens())
    assert_close(image, expected.image_embeds)
    assert_close(text, expected.text_embeds)
    assert_close(scale * image @ text.T, expected.logits_per_image)


def test_features_of_siglip_equal_those_of_transformers(tmp_path: Path) -> None:
    model = transformers_model("siglip")
    convert_checkpoint(save(model, tmp_path / "hf.safetensors"), tmp_path / "oc.safetensors")
    converted = open_clip_model("siglip", tmp_path / "oc.safetensors")
    with torch.no_grad():
        expected = model(input_ids=tokens(), pixel_values=images())
        image, text, scale, bias = converted(images(), tokens())
    assert_close(image, expected.image_embeds)
    assert_close(text, expected.text_embeds)
    assert_close(scale * image @ text.T + bias, expected.logits_per_image)


def test_features_of_siglip2_on_its_full_grid_equal_those_of_transformers(tmp_path: Path) -> None:
    model = transformers_model("siglip2")
    convert_checkpoint(save(model, tmp_path / "hf.safetensors"), tmp_path / "oc.safetensors")
    converted = open_clip_model("siglip", tmp_path / "oc.safetensors")
    grid = SIDE // PATCH
    patches = images().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B C gh gw P P
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images()), grid**2, -1)
    with torch.no_grad():
        expected = model(
            input_ids=tokens(),
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
            spatial_shapes=torch.tensor([[grid, grid]] * len(patches)),
        )
        image, text, *_ = converted(images(), tokens())
    assert_close(image, expected.image_embeds)
    assert_close(text, expected.text_embeds)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_equal_those_of_timm_in_both_directions(kind: str, tmp_path: Path) -> None:
    model = timm_model(kind)
    convert_checkpoint(save(model, tmp_path / "timm.safetensors"), tmp_path / "oc.safetensors")
    converted = open_clip_model(kind)
    state = load_file(tmp_path / "oc.safetensors")
    assert not converted.load_state_dict(state, strict=False).unexpected_keys
    with torch.no_grad():
        assert_close(converted.encode_image(images()), model(images()))
    other = open_clip_model(kind)
    source = save(other, tmp_path / "other.safetensors")
    convert_checkpoint(source, tmp_path / "other-timm.safetensors", to="timm")
    model.load_state_dict(load_file(tmp_path / "other-timm.safetensors"), strict=True)
    with torch.no_grad():
        assert_close(model(images()), other.encode_image(images()))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_loads_a_converted_model_strictly(kind: str, tmp_path: Path) -> None:
    source = save(open_clip_model(kind), tmp_path / "oc.safetensors")
    convert_checkpoint(source, tmp_path / "hf.safetensors", to="transformers")
    transformers_model(kind).load_state_dict(load_file(tmp_path / "hf.safetensors"), strict=True)


@pytest.mark.parametrize("kind", ["clip-vision", "siglip-vision"])
def test_the_wrapper_of_an_image_encoder_is_optional(kind: str, tmp_path: Path) -> None:
    model = transformers_model(kind)
    plain = save(model, tmp_path / "plain.safetensors")
    wrapped = save(model, tmp_path / "wrapped.safetensors", prefix="vision_model.")
    for source in (plain, wrapped):
        convert_checkpoint(source, tmp_path / f"{source.stem}-oc.safetensors")
    first, second = (tmp_path / f"{name}-oc.safetensors" for name in ("plain", "wrapped"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.clip."])
def test_wrappers_and_prefixes_are_removed_and_reported(prefix: str, tmp_path: Path) -> None:
    model = transformers_model("clip")
    plain = save(model, tmp_path / "plain.safetensors")
    wrapped = save(model, tmp_path / "wrapped.safetensors", prefix=prefix)
    convert_checkpoint(plain, tmp_path / "a.safetensors")
    done = convert_checkpoint(wrapped, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert "removed from the names" in done.notes[0]


def test_buffers_without_weights_are_left_out_and_reported(tmp_path: Path) -> None:
    tensors = transformers_model("clip").state_dict()
    tensors["text_model.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    save_file(tensors, tmp_path / "old.safetensors")
    done = convert_checkpoint(tmp_path / "old.safetensors", tmp_path / "oc.safetensors")
    assert done.notes == ("1 tensor left out: text_model.embeddings.position_ids",)


def test_all_unknown_tensors_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = transformers_model("clip").state_dict()
    extra = [f"adapter.{n}.gain" for n in range(25)]
    save_file(tensors | {name: torch.ones(1) for name in extra}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as raised:
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "oc.safetensors")
    assert all(f"{name}: not in the table" in raised.value.message for name in extra)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "missing",
    [
        "vision_model.encoder.layers.1.self_attn.k_proj.bias",
        "text_model.final_layer_norm.weight",
        "vision_model.embeddings.class_embedding",
        "text_projection.weight",
    ],
)
def test_missing_tensors_are_named(missing: str, tmp_path: Path) -> None:
    tensors = transformers_model("clip").state_dict()
    del tensors[missing]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"{missing}: missing from the file"):
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "oc.safetensors")


def test_a_missing_block_in_the_middle_is_found(tmp_path: Path) -> None:
    tensors = {
        name: tensor
        for name, tensor in open_clip_model("clip").state_dict().items()
        if not name.startswith("transformer.resblocks.1.")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    for to in ("open_clip", "transformers"):
        with pytest.raises(CheckpointError, match=r"transformer.resblocks.1.ln_1.weight: missing"):
            convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "out", to=to)  # type: ignore[arg-type]


def test_query_and_key_of_different_dtypes_are_rejected(tmp_path: Path) -> None:
    tensors = transformers_model("clip").state_dict()
    name = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"k_proj.weight: F16 \(32, 32\)"):
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "oc.safetensors")


def test_a_classifier_in_the_place_of_the_projection_is_rejected(tmp_path: Path) -> None:
    model = timm_model("clip", num_classes=5)
    with torch.no_grad():
        model.head.bias.fill_(0.5)
    with pytest.raises(CheckpointError, match=r"head.bias: is not zero.*classifier"):
        convert_checkpoint(save(model, tmp_path / "t.safetensors"), tmp_path / "oc.safetensors")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"], "a language model"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a diffusion model"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder without an image encoder"),
        (["visual.layer1.0.conv1.weight"], "CLIP with a ResNet image encoder"),
        (["layer1.0.conv1.weight"], "a convolutional network"),
        (["weight"], "an unknown model"),
    ],
)
def test_other_models_are_recognized(names: list[str], expected: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"x.safetensors: is {expected}") as raised:
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "oc.safetensors")
    assert raised.value.hint


def test_quantized_weights_are_rejected(tmp_path: Path) -> None:
    tensors = transformers_model("clip").state_dict()
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    tensors[name] = tensors[name].to(torch.int8)
    tensors[name.replace("weight", "SCB")] = torch.ones(len(tensors[name]))
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="stores weights as several tensors") as raised:
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "oc.safetensors")
    assert "dequantize" in str(raised.value.hint)


def test_outputs_are_refused_if_they_exist_or_are_the_input(tmp_path: Path) -> None:
    source = save(transformers_model("clip"), tmp_path / "x.safetensors")
    with pytest.raises(OutputError, match="is also an input"):
        convert_checkpoint(source, source, force=True)
    (tmp_path / "there").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        convert_checkpoint(source, tmp_path / "there")


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = save(transformers_model("siglip"), tmp_path / "x.safetensors")
    for name in ("a", "b"):
        convert_checkpoint(source, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_header(tmp_path / "a").metadata == {
        "format": "pt",
        "converted_from": "transformers/siglip",
    }


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
