"""The parsers that are fuzzed, each with valid inputs to start from.

A target gets a folder and the bytes of one case, and calls the parser as the commands do. A
`WiseftError` is the right answer to a wrong input. What a target returns is printed by a command,
so it must not contain control characters.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

Parser = Callable[[Path, bytes], Any]


@dataclass(frozen=True)
class Target:
    """A parser that is fuzzed.

    Attributes:
        parse: Parses one case; may return texts that a command would print.
        seeds: Valid or nearly valid inputs.
        module: The module whose coverage is reported.
        words: Byte strings that the mutation inserts.
    """

    parse: Parser
    seeds: tuple[bytes, ...]
    module: str
    words: tuple[bytes, ...] = ()


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _with_suffix(folder: Path, data: bytes, suffixes: tuple[str, ...]) -> Path:
    """Write the case under the suffix that its first byte chooses."""
    suffix = suffixes[data[0] % len(suffixes)] if data else suffixes[0]
    return _write(folder, f"case{suffix}", data[1:])


def _seeds(suffixes: tuple[str, ...], texts: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    return tuple(bytes([suffixes.index(suffix)]) + text.encode() for suffix, text in texts)


def _safetensors_file(header: object, n_bytes: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(n_bytes)


_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_CARD = {
    "schema": 1,
    "role": "merged",
    "model": {"name": "ViT-B-32", "source": None, "config": {"embed_dim": 2}},
    "preprocess": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "classes": [{"id": "0", "name": "zero"}, {"id": "1", "name": "one"}],
    "templates": ["a photo of a {}."],
    "logit_scale": 100.0,
    "alpha": "0.5",
    "recipe": {"lr": 3e-05},
    "seed": 0,
    "history": [
        {
            "command": "merge",
            "version": "0.1.0",
            "options": {"alpha": "0.5"},
            "inputs": [{"role": "zeroshot", "digest": "sha256:" + "0" * 64}],
            "output": None,
        }
    ],
    "digest": "sha256:" + "0" * 64,
}
_CARD_TEXT = json.dumps(_CARD)


def _safetensors(folder: Path, data: bytes) -> object:
    from wiseft_cli.checkpoint.reader import open_checkpoint, read_content
    from wiseft_cli.checkpoint.summary import draw_history, summarize

    with open_checkpoint(_write(folder, "model.safetensors", data)) as reader:
        content = read_content(reader)
        summarize(reader)
        shown = list(draw_history(reader.card)) if reader.card else []
        return [*shown, *content.find_faults(reader.card)]


def _card(folder: Path, data: bytes) -> object:
    from wiseft_cli.checkpoint.card import parse_card, render_card
    from wiseft_cli.checkpoint.summary import draw_history

    path = folder / "model.safetensors"
    card = parse_card(data.decode(errors="surrogateescape"), path)
    assert parse_card(render_card(card), path) == card
    return list(draw_history(card))


def _shard_index(folder: Path, data: bytes) -> object:
    from wiseft_cli.checkpoint.reader import open_checkpoint

    for number, name in enumerate(("a", "b"), start=1):
        shard = _safetensors_file({name: _TENSOR}, 8)
        _write(folder, f"model-0000{number}-of-00002.safetensors", shard)
    _write(folder, "model.safetensors.index.json", data)
    with open_checkpoint(folder, allow_shards=True) as reader:
        assert all(folder in path.resolve().parents for path in reader.files)
    return None


def _class_names(folder: Path, data: bytes) -> object:
    from wiseft_cli.prompts.class_names import read_class_names

    read_class_names(_with_suffix(folder, data, _TEXTS))
    return None


def _templates(folder: Path, data: bytes) -> object:
    from wiseft_cli.prompts.templates import fill_template, read_templates

    path = _with_suffix(folder, data, _TEXTS[:2])
    for template in read_templates([str(path)], [], load_set=lambda _: []):
        assert fill_template(template, "NAME") == "NAME".join(template.split("{}"))
    return None


def _recipe(folder: Path, data: bytes) -> object:
    from wiseft_cli.training.recipe_file import load_recipe, render_recipe

    path = _write(folder, "case.yaml", data)
    rendered = render_recipe(load_recipe(str(path), {}))
    again = _write(folder, "again.yaml", rendered.encode())
    assert render_recipe(load_recipe(str(again), {})) == rendered
    return None


def _manifest(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.manifest import list_manifest

    _write(folder, "a.png", b"")
    _write(folder, "b.png", b"")
    images = list_manifest(_with_suffix(folder, data, _TABLES), name="case")
    return images.notes


def _label_map(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.label_map import read_label_map

    read_label_map(_with_suffix(folder, data, _DOCUMENTS))
    return None


def _suite(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.suite import read_suite

    read_suite(_write(folder, "case.yaml", data))
    return None


def _dataset_card(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.dataset_card import read_dataset_card

    read_dataset_card(str(_write(folder, "case.yaml", data)))
    return None


def _tar(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.shards import list_shards

    return list_shards(str(_write(folder, "case.tar", data))).notes


def _results(folder: Path, data: bytes) -> object:
    from wiseft_cli.reporting.results import read_result_lines, result_document

    for line in read_result_lines(_write(folder, "case.jsonl", data)):
        json.dumps(result_document(line), allow_nan=False)
    return None


def _options(folder: Path, data: bytes) -> object:
    from wiseft_cli.data.spec import parse_spec
    from wiseft_cli.merging.alpha import parse_alphas
    from wiseft_cli.reporting.gates import parse_gate

    text = data[1:].decode(errors="surrogateescape")
    (parse_spec, lambda text: parse_alphas([text]), parse_gate)[data[0] % 3 if data else 0](text)
    return None


def _state(folder: Path, data: bytes) -> object:
    from wiseft_cli.training.state_dir import find_newest_intact, state_path

    path = state_path(folder / "out.safetensors", 3)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return find_newest_intact(folder / "out.safetensors")[1]


def _torch_weights(folder: Path, data: bytes) -> object:
    from wiseft_cli.model.weights_file import inspect_weights

    inspect_weights(_write(folder, "case.bin", data))
    return None


def _torch_file(folder: Path, data: bytes) -> object:
    from wiseft_cli.convert.torch_files import open_torch_weights

    reader, notes = open_torch_weights(_write(folder, "case.pt", data))
    with reader:
        for info in reader.tensors.values():
            if info.nbytes <= 1 << 20:
                reader.read_into(info.name, memoryview(bytearray(info.nbytes)))
    return notes


def _pickle(folder: Path, data: bytes) -> object:
    from wiseft_cli.convert.pickles import load_pickle

    load_pickle(io.BytesIO(data), folder / "case.pt")
    return None


def _adapter(folder: Path, data: bytes) -> object:
    from wiseft_cli.checkpoint.reader import open_checkpoint
    from wiseft_cli.convert.lora import open_adapter

    shapes = {
        "base_model.model.a.b.lora_A.weight": (1, 2),
        "base_model.model.a.b.lora_B.weight": (2, 1),
    }
    base = _write(folder, "base.safetensors", _zeros({"a.b.weight": (2, 2)}))
    _write(folder, "adapter_model.safetensors", _zeros(shapes))
    _write(folder, "adapter_config.json", data)
    with open_checkpoint(base) as reader, open_adapter(folder, reader) as adapted:
        for info in adapted.tensors.values():
            adapted.read_into(info.name, memoryview(bytearray(info.nbytes)))
    return None


def _transformers_config(folder: Path, data: bytes) -> object:
    from wiseft_cli.convert.configs import (
        open_clip_model_config,
        read_preprocess,
        read_transformers_config,
    )

    config, _, processor = data.partition(b"\n---\n")
    path = _write(folder, "config.json", config)
    if processor:
        _write(folder, "preprocessor_config.json", processor)
    found = read_transformers_config(folder)
    json.dumps([open_clip_model_config(found, path), read_preprocess(folder, found)])
    return None


def _zeros(shapes: dict[str, tuple[int, int]]) -> bytes:
    header, end = {}, 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return _safetensors_file(header, end)


def _merge_plan(folder: Path, data: bytes) -> object:
    from wiseft_cli.merging.plan_file import combine_request, render_plan

    rendered = render_plan(combine_request(_write(folder, "case.yaml", data), {}), 2)
    again = _write(folder, "again.yaml", rendered.encode())
    assert render_plan(combine_request(again, {}), 2) == rendered
    return None


def _tar_file(members: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def _saved_by_torch() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"state_dict": {"module.visual.proj": torch.zeros(2)}, "epoch": 1}, buffer)
    return buffer.getvalue()


_TEXTS = (".txt", ".yaml", ".json")
_TABLES = (".csv", ".tsv", ".jsonl")
_DOCUMENTS = (".yaml", ".json")
_RESULT = {
    "schema": 1,
    "checkpoints": [{"name": "a", "role": "merged", "digest": "sha256:" + "0" * 64}],
    "alpha": None,
    "set": "digits",
    "role": "reference",
    "reference": True,
    "data_fingerprint": "sha256:" + "1" * 64,
    "n_images": 10,
    "n_unreadable": 0,
    "n_classes": 2,
    "join": "id",
    "primary": "top1",
    "metrics": {"top1": {"value": 0.5, "low": 0.2, "high": 0.8}},
    "precision": "fp32",
    "version": "0.1.0",
}
_WORDS = (
    *(b"\x00", b"\xff\xfe", b"\x1b[2J", b"\r\n", b"\xe2\x80\xae", b"../", b"/etc/passwd", b"{}"),
    *(b"-1", b"1e999", b"NaN", b"null", b"true", b'"', b"[" * 50, b"{" * 50, b"9" * 30, b"0" * 20),
    *(
        b"!!python/object/apply:os.system [id]",
        b"&a [*a]",
        b"<<: *a",
        b"{0.__class__}",
        b"- ",
        b": ",
    ),
)

TARGETS = {
    "safetensors": Target(
        _safetensors,
        (
            _safetensors_file({"a": _TENSOR}, 8),
            _safetensors_file({"__metadata__": {"wiseft": _CARD_TEXT}, "a": _TENSOR}, 8),
            _safetensors_file({"a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, 8),
        ),
        "wiseft_cli.checkpoint.format",
        (b'"data_offsets"', b'"shape":[0]', b'"BF16"', b'"F8_E4M3"', b"__metadata__"),
    ),
    "card": Target(_card, (_CARD_TEXT.encode(), b"{}"), "wiseft_cli.checkpoint.card"),
    "shard-index": Target(
        _shard_index,
        (
            json.dumps(
                {
                    "metadata": {"total_size": 16},
                    "weight_map": {
                        "a": "model-00001-of-00002.safetensors",
                        "b": "model-00002-of-00002.safetensors",
                    },
                }
            ).encode(),
        ),
        "wiseft_cli.checkpoint.shards",
    ),
    "class-names": Target(
        _class_names,
        _seeds(
            _TEXTS,
            [
                (".txt", "cat\ndog\n"),
                (".yaml", "n1: cat\nn2: [crane, bird]\nn3:\n  name: dog\n  prompts: [a dog]\n"),
                (".json", '{"n1": "cat", "n2": ["dog", "hound"]}'),
            ],
        ),
        "wiseft_cli.prompts.class_names",
    ),
    "templates": Target(
        _templates,
        _seeds(_TEXTS, [(".txt", "a photo of a {}.\n"), (".yaml", "- '{} in the snow'\n")]),
        "wiseft_cli.prompts.templates",
    ),
    "recipe": Target(
        _recipe,
        (b"lr: 3.0e-5\nepochs: 2\nbatch_size: 16\n", b"source: paper\nseed: 1\nfreeze: encoder\n"),
        "wiseft_cli.training.recipe_file",
        (b"weight_decay: ", b"precision: bf16", b"warmup_steps: "),
    ),
    "merge-plan": Target(
        _merge_plan,
        (
            b"method: ties\nalpha: [0.5, 1]\ndensity: 0.2\nweights: [0.5, 0.5]\n",
            b"layer_alpha: {'visual.transformer.resblocks.{0-5}.*': 0.2}\ndtype: float16\n",
        ),
        "wiseft_cli.merging.plan_file",
        (b"{0-99999999}", b"fisher_floor: ", b"{a,b,{0-9}}", b"alpha: 0:1:1e-9"),
    ),
    "manifest": Target(
        _manifest,
        _seeds(
            _TABLES,
            [
                (".csv", "path,label,split\na.png,0,train\nb.png,1,train\n"),
                (".tsv", "path\tlabel\na.png\tx\n"),
                (".jsonl", '{"path": "a.png", "label": "0"}\n'),
            ],
        ),
        "wiseft_cli.data.manifest",
    ),
    "label-map": Target(
        _label_map,
        _seeds(
            _DOCUMENTS,
            [
                (".yaml", "classes: {a: b}\nany_of: {c: [d, e]}\nunmapped: [f]\nleave_out: [g]\n"),
                (".json", '{"a": "b"}'),
            ],
        ),
        "wiseft_cli.data.label_map",
    ),
    "suite": Target(
        _suite,
        (b"- name: a\n  data: folder\n- data: b.csv\n  split: test\n",),
        "wiseft_cli.data.suite",
    ),
    "data-set-card": Target(
        _dataset_card,
        (
            b"name: mine\ntitle: Mine\nsource: https://example.org\nlicence: MIT\ncitation: none\n"
            b"layout: arrays\nfolders: [a, b/c]\noptions: {images: x.npy, labels: y.npy}\n"
            b"classes: classes.yaml\ntemplates: t.yaml\nprimary: top1\nn_images: 2\n"
            b"n_classes: 2\nexif_orientation: ignore\n",
        ),
        "wiseft_cli.data.dataset_card",
    ),
    "tar": Target(
        _tar,
        (
            _tar_file([("a.png", _png()), ("a.cls", b"0"), ("b.png", _png()), ("b.txt", b"1")]),
            _tar_file([("../x/a.png", _png()), ("../x/a.json", b'{"label": "0"}')]),
        ),
        "wiseft_cli.data.shards",
    ),
    "results": Target(
        _results, (json.dumps(_RESULT).encode() + b"\n",), "wiseft_cli.reporting.results"
    ),
    "options": Target(
        _options,
        (
            b"\x00imagenet=data/val:split=test,join=id",
            b"\x010:1:0.1",
            b"\x02shifts:top1>=baseline-0.01",
        ),
        "wiseft_cli.data.spec",
    ),
    "training-state": Target(
        _state, (_safetensors_file({"a": _TENSOR}, 8),), "wiseft_cli.training.state_dir"
    ),
    "torch-weights": Target(_torch_weights, (_saved_by_torch(),), "wiseft_cli.model.weights_file"),
    "torch-file": Target(_torch_file, (_saved_by_torch(),), "wiseft_cli.convert.torch_files"),
    "pickle": Target(
        _pickle,
        (
            *(pickle.dumps({"a": [1, 2.0, None], "b": {1, 2}}, protocol) for protocol in range(6)),
            b"cos\nsystem\n(S'id'\ntR.",
        ),
        "wiseft_cli.convert.pickles",
        (b"cos\nsystem\n", b"R", b"ctorch\nFloatStorage\n", b"\x93", b"h\x00", b"q\x00", b"2" * 30),
    ),
    "lora-adapter": Target(
        _adapter,
        (
            b'{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["b"]}',
            b'{"peft_type": "LORA", "r": 8, "rank_pattern": {"a.b": 1}, "use_rslora": true}',
        ),
        "wiseft_cli.convert.lora_config",
        (
            b'"rank_pattern": {"(a|aa)+$": 1}',
            b'"alpha_pattern": {"a.*": 1}',
            b'"fan_in_fan_out": true',
        ),
    ),
    "transformers-config": Target(
        _transformers_config,
        (
            b'{"model_type": "clip", "vision_config": {"hidden_size": 64}, "projection_dim": 8}'
            b'\n---\n{"size": {"shortest_edge": 224}, "image_mean": [0.5, 0.5, 0.5],'
            b' "image_std": [0.5, 0.5, 0.5], "resample": 3, "do_center_crop": true,'
            b' "do_resize": true, "crop_size": 224}',
            b'{"model_type": "siglip", "vision_config": {}, "text_config": {}}',
        ),
        "wiseft_cli.convert.configs",
        (b'"quantization_config": 1', b'"num_attention_heads": 0', b'"layer_norm_eps": "x"'),
    ),
}


def dictionary(target: Target) -> tuple[bytes, ...]:
    """Return the byte strings that mutations of a target insert."""
    return (*_WORDS, *target.words)
