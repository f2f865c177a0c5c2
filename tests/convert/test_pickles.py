"""A pickle is read as data: hostile ones are rejected, and nothing in any of them is called."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wiseft_cli.convert.pickles import _HANDLERS, _IGNORED, _LITERALS, Record, load_pickle
from wiseft_cli.convert.torch_files import open_torch_weights
from wiseft_cli.errors import CheckpointError, NotACheckpointError, UsageError

CALLS: list[str] = []


def leave_a_trace(*_: Any) -> None:
    CALLS.append("called")


class Reduced:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def load(data: bytes) -> Any:
    return load_pickle(io.BytesIO(data), Path("x.pt"))


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def tensor_program(key: str = "0", numel: int = 2, shape: tuple[int, ...] = (2,)) -> bytes:
    """Return a pickle of {"w": tensor}, written by hand."""
    stride = tuple(1 for _ in shape)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"I%d\n" % numel + b"tQ"
    arguments = b"(" + storage + b"I0\n" + numbers(shape) + numbers(stride) + b"I00\n}t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.integers(0, 5),
)
def test_plain_data_is_read_as_the_library_reads_it(value: Any, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol)) == value


def test_every_operation_of_pickle_is_known_or_rejected_on_purpose() -> None:
    names = {opcode.name for opcode in pickletools.opcodes} - {"STOP"}
    rejected = {
        name
        for name in names
        if name not in _HANDLERS and name not in _IGNORED and not _LITERALS.fullmatch(name)
    } - {"NONE", "NEWTRUE", "NEWFALSE"}
    assert rejected == {"EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_records_and_no_class_is_imported(protocol: int) -> None:
    namespace = argparse.Namespace(lr=3e-5, path=Path("x"), at=functools.partial(max, 1))
    state = pickle.dumps({"args": namespace.lr and argparse.Namespace(lr=3e-5)}, protocol)
    record = load(state)["args"]
    assert isinstance(record, Record)
    assert (str(record.cls), record.attributes) == ("argparse.Namespace", {"lr": 3e-5})


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch harm",)),
        (eval, ("1",)),
        (exec, ("1",)),
        (getattr, ("x", "y")),
        (__import__, ("os",)),
        (open, ("harm", "w")),
        (compile, ("1", "x", "eval")),
        (__import__("subprocess").Popen, (["touch", "harm"],)),
        (__import__("operator").attrgetter, ("system",)),
        (__import__("importlib").import_module, ("os",)),
        (pickle.loads, (b"N.",)),
        (torch.load, ("x.pt",)),
        (torch.hub.load, ("x/y", "z")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_call_that_can_run_code_is_rejected(
    tmp_path: Path, monkeypatch: Any, function: Any, args: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"state_dict": Reduced(function, *args)}, protocol)
    write_zip(tmp_path / "x.pt", data)
    with pytest.raises(NotACheckpointError, match="can run code") as caught:
        open_torch_weights(tmp_path / "x.pt")
    assert "nothing in it was run" in (caught.value.hint or "")
    assert not (tmp_path / "harm").exists()


def test_a_function_of_an_installed_package_is_never_called() -> None:
    CALLS.clear()
    value = load(
        pickle.dumps([Reduced(leave_a_trace, 1), Reduced(collections.namedtuple, "a", "b")])
    )
    assert [str(at.cls) for at in value] == [
        "tests.convert.test_pickles.leave_a_trace",
        "collections.namedtuple",
    ]
    assert CALLS == []


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nload\n(tR(tR.",  # calls the result of a call
        b"\x80\x02cnumpy\nload\n}b.",  # changes a class
        b"X\x01\x00\x00\x00x(tR.",  # calls text
        b"\x80\x02\x82\x01.",  # a registered extension
        b"P../../etc/passwd\n.",  # an id outside the file
        b"(X\x07\x00\x00\x00storageX\x04\x00\x00\x00../xtQ.",
        b"X\x0b\x00\x00\x00/etc/passwdQ.",
    ],
)
def test_a_program_that_asks_for_more_than_data_is_rejected(program: bytes) -> None:
    with pytest.raises(NotACheckpointError, match=r"(calls|changes|uses|refers)"):
        load(program)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"N",  # no end
        b".",  # an empty stack
        b"\x80\x02\x8e" + b"\xff" * 7 + b"\x7f" + b"x.",  # 2^63 bytes
        b"\x80\x02B\xff\xff\xff\x7fx.",  # 2 GB of bytes in a few
        b"\x80\x02r\xff\xff\xff\xffN.",  # stores nothing at place 2^32
        b"h\x07.",  # a memo that was not filled
        b"\x80\x02}X\x01\x00\x00\x00ku.",  # a key without a value
        b"I" + b"9" * 5000 + b"\n.",
        b"t.",
        b"\x80\x02N\x85\x86.",
        tensor_program(shape=(-1,)),
        tensor_program(shape=(1 << 63,)),
    ],
)
def test_a_damaged_program_is_an_error_of_its_file(program: bytes) -> None:
    with pytest.raises(NotACheckpointError, match=r"^x\.pt: damaged pickle"):
        load(program)


def test_a_list_that_contains_itself_ends(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    write_zip(tmp_path / "x.pt", pickle.dumps({"a": loop, "b": {"c": loop}}))
    with pytest.raises(CheckpointError, match="holds no state dict"):
        open_torch_weights(tmp_path / "x.pt")


def test_tuples_of_tuples_as_keys_take_no_time() -> None:
    program = b"\x80\x02}N" + 200 * b"2\x86" + b"Ns."
    assert len(load(program)) == 1


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_a_truncated_pickle_is_an_error_of_its_file(cut: int) -> None:
    data = pickle.dumps({"a": [1, 2.0, "x" * 40], "b": {"c": (b"y" * 300,)}})
    with pytest.raises(NotACheckpointError):
        load(data[:cut])


@given(st.binary(max_size=60))
def test_random_bytes_never_escape_as_another_error(data: bytes) -> None:
    with contextlib.suppress(NotACheckpointError):
        load(data)


class TestArchives:
    """Zip archives that torch.save did not write."""

    def test_a_hand_written_archive_is_read(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.pt", tensor_program(), {"0": b"\0" * 8})
        reader, notes = open_torch_weights(path)
        with reader:
            assert reader.read_array("w").tolist() == [0, 0]
        assert notes == []

    @pytest.mark.parametrize("key", ["../data.pkl", "/etc/passwd", "..", "1", ""])
    def test_a_key_reaches_only_storages_of_the_archive(self, tmp_path: Path, key: str) -> None:
        path = write_zip(tmp_path / "x.pt", tensor_program(key), {"0": b"\0" * 8})
        with pytest.raises(CheckpointError, match="is missing"):
            open_torch_weights(path)

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            (tensor_program(shape=(3,)), "reaches beyond its data"),
            (tensor_program(numel=3), "has only 8 bytes"),
            (tensor_program(numel=1 << 60, shape=(1 << 60,)), "has only 8 bytes"),
        ],
    )
    def test_a_tensor_lies_inside_its_storage(
        self, tmp_path: Path, program: bytes, message: str
    ) -> None:
        path = write_zip(tmp_path / "x.pt", program, {"0": b"\0" * 8})
        with pytest.raises(CheckpointError, match=message):
            open_torch_weights(path)

    def test_a_compressed_archive_is_rejected_before_it_is_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 100_000_000)
        with pytest.raises(NotACheckpointError, match="is compressed"):
            open_torch_weights(path)

    def test_an_expanded_tensor_is_not_written_out(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="repeats its elements"):
            open_torch_weights(tmp_path / "x.pt")

    def test_members_that_overlap_are_rejected(self, tmp_path: Path) -> None:
        path = write_zip(tmp_path / "x.pt", tensor_program(), {"0": b"\0" * 8, "1": b"\0" * 8})
        data = path.read_bytes()
        entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
        first = data[entries[1] + 42 : entries[1] + 46]
        path.write_bytes(data[: entries[2] + 42] + first + data[entries[2] + 46 :])
        with pytest.raises(NotACheckpointError, match=r"overlaps|zip archive"):
            open_torch_weights(path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_truncated_file_is_an_error(self, tmp_path: Path, legacy: bool) -> None:
        path = tmp_path / "x.pt"
        torch.save({"w": torch.zeros(100)}, path, _use_new_zipfile_serialization=not legacy)
        data = path.read_bytes()
        for cut in range(0, len(data), 97):
            path.write_bytes(data[:cut])
            with pytest.raises(CheckpointError, match=r"x\.pt"):
                open_torch_weights(path)

    def test_an_archive_of_another_program_is_named(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("a.npy", b"x")
        with pytest.raises(NotACheckpointError, match=r"without the one data\.pkl"):
            open_torch_weights(tmp_path / "x.pt")


def assert_equal_tensors(
    path: Path, expected: dict[str, torch.Tensor], **options: Any
) -> list[str]:
    reader, notes = open_torch_weights(path, **options)
    with reader:
        assert reader.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            data = bytearray(reader.tensors[name].nbytes)
            for offset in range(0, len(data), 24):  # not a multiple of the rows
                reader.read_into(name, memoryview(data)[offset : offset + 24], offset)
            assert bytes(data) == plain.numpy().tobytes(), name
            assert reader.tensors[name].shape == tuple(tensor.shape)
    return notes


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
class TestContents:
    """What people save, in both formats of torch.save."""

    def save(self, value: Any, path: Path, legacy: bool) -> Path:
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        return path

    def test_a_state_dict(self, tmp_path: Path, legacy: bool) -> None:
        state = make_model().state_dict()
        assert assert_equal_tensors(self.save(state, tmp_path / "x.pt", legacy), state) == []

    def test_dtypes_and_strides(self, tmp_path: Path, legacy: bool) -> None:
        state = {
            "transposed": torch.randn(5, 7).t(),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "part": torch.randn(9)[2:6],
            "every_other": torch.randn(9)[::2],
            "uint16": torch.arange(9).to(torch.uint16),
            "float8": torch.randn(4).to(torch.float8_e4m3fn),
            "bfloat16": torch.randn(3).bfloat16(),
            "bool": torch.tensor([True, False]),
            "parameter": nn.Parameter(torch.randn(3)),
            "scalar": torch.tensor(3.0),
            "empty": torch.zeros(0, 3),
        }
        assert_equal_tensors(self.save(state, tmp_path / "x.pt", legacy), state)

    def test_a_file_that_is_replaced_while_it_is_open(self, tmp_path: Path, legacy: bool) -> None:
        state = {"transposed": torch.randn(5, 7).t(), "plain": torch.randn(5)}
        path = self.save(state, tmp_path / "x.pt", legacy)
        self.save({n: at.new_zeros(at.shape) for n, at in state.items()}, tmp_path / "y", legacy)
        reader, _ = open_torch_weights(path)
        with reader:
            (tmp_path / "y").replace(path)
            for name, tensor in state.items():
                np.testing.assert_array_equal(reader.read_array(name), tensor.numpy())

    def test_a_training_checkpoint_of_open_clip(self, tmp_path: Path, legacy: bool) -> None:
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        checkpoint = {
            "epoch": 3,
            "name": "run",
            "state_dict": {f"module.{name}": at for name, at in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "scaler": {"scale": 65536.0},
        }
        notes = assert_equal_tensors(
            self.save(checkpoint, tmp_path / "epoch_3.pt", legacy), dict(model.state_dict())
        )
        assert notes == [
            "weights of 'state_dict'; the file's other entries are left out",
            "prefix module. removed from every name",
        ]

    def test_a_whole_module(self, tmp_path: Path, legacy: bool) -> None:
        model = make_model()
        model[1].register_buffer("hidden", torch.ones(2), persistent=False)
        notes = assert_equal_tensors(
            self.save(nn.DataParallel(model), tmp_path / "x.pt", legacy), model.state_dict()
        )
        assert "DataParallel" in notes[0]

    def test_two_sets_of_weights_need_a_key(self, tmp_path: Path, legacy: bool) -> None:
        state = make_model().state_dict()
        value = {"state_dict": state, "ema": {"model": state}, "state_dict_ema": state}
        path = self.save(value, tmp_path / "x.pt", legacy)
        with pytest.raises(UsageError, match="state_dict, state_dict_ema"):
            open_torch_weights(path)
        with pytest.raises(UsageError, match="has no entry 'emma'"):
            open_torch_weights(path, key="emma")
        assert_equal_tensors(path, state, key="state_dict_ema")
        assert_equal_tensors(path, state, key="ema.model")

    def test_tensors_without_plain_values_are_rejected(self, tmp_path: Path, legacy: bool) -> None:
        state = {"w": torch.ones(2, 2).to_sparse(), "m": torch.empty(2, device="meta")}
        with pytest.raises(CheckpointError, match="not plain arrays") as caught:
            open_torch_weights(self.save(state, tmp_path / "x.pt", legacy))
        assert "w: is sparse" in caught.value.message
        assert "m: is on the meta device" in caught.value.message


class Encoder(nn.Module):
    """wise-ft's ImageEncoder: a CLIP without its text transformer, and two transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.visual = make_model()
        self.model.token_embedding = nn.Embedding(5, 2)
        self.train_preprocess = os.path.join  # stands for a transform: any function
        self.cache_dir = "cache"


class Head(nn.Linear):
    """wise-ft's ClassificationHead."""

    normalize = True


class Classifier(nn.Module):
    """wise-ft's ImageClassifier."""

    def __init__(self, *, normalize: bool) -> None:
        super().__init__()
        self.image_encoder = Encoder()
        self.classification_head = Head(3, 2)
        self.classification_head.normalize = normalize
        self.process_images = True


class TestClassifiers:
    """wise-ft's and model-soups' own checkpoints."""

    def expected(self, model: Classifier) -> dict[str, torch.Tensor]:
        visual = model.image_encoder.model.visual.state_dict()
        head = model.classification_head.state_dict()
        return {f"visual.{name}": at for name, at in visual.items()} | {
            f"classification_head.{name}": at for name, at in head.items()
        }

    def test_a_module_of_wise_ft_gets_the_names_of_a_wiseft_checkpoint(
        self, tmp_path: Path
    ) -> None:
        model = Classifier(normalize=True)
        model.image_encoder.train_preprocess = None  # type: ignore[assignment]
        torch.save(model, tmp_path / "x.pt")
        notes = assert_equal_tensors(tmp_path / "x.pt", self.expected(model))
        assert "1 tensor outside it left out: image_encoder.model.token_embedding.weight" in notes

    def test_a_head_without_normalization_keeps_its_names(self, tmp_path: Path) -> None:
        model = Classifier(normalize=False)
        model.image_encoder.train_preprocess = None  # type: ignore[assignment]
        torch.save(model, tmp_path / "x.pt")
        notes = assert_equal_tensors(tmp_path / "x.pt", model.state_dict())
        assert "not normalized" in notes[-1]

    def test_a_state_dict_of_model_soups_is_assumed_to_normalize(self, tmp_path: Path) -> None:
        model = Classifier(normalize=True)
        state = {
            f"module.{name.removeprefix('image_encoder.')}": at
            for name, at in model.state_dict().items()
        }
        torch.save(state, tmp_path / "model_0.pt")
        notes = assert_equal_tensors(tmp_path / "model_0.pt", self.expected(model))
        assert any("does not say whether features are normalized" in note for note in notes)


def test_an_archive_of_torchscript_has_its_tensors(tmp_path: Path) -> None:
    model = make_model()
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(model), tmp_path / "x.pt")
    assert_equal_tensors(tmp_path / "x.pt", model.state_dict())
