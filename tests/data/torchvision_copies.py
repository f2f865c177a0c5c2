"""Write small copies of the sets of `torchvision:NAME`, in the files that torchvision reads.

Each writer makes the first split of its set: two images, of the classes it returns.
"""

from __future__ import annotations

import bz2
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from tests.data.published_copies import picture, save_picture

Patch = pytest.MonkeyPatch


def grey(class_number: int, size: int = 28) -> np.ndarray:
    return picture(class_number, 0, size=size)[..., 0]


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array in MNIST's format: type, dimensions, values, all big-endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {1: 8, 4: 12}[array.dtype.itemsize]
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_text(path: Path, text: str) -> str:
    """Write a file and return its MD5 sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return md5(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def cls(name: str) -> Any:
    return getattr(torchvision.datasets, name)


def write_mnist(
    root: Path, name: str, test: Sequence[int] = (3, 9), train: Sequence[int] = (3, 9)
) -> None:
    for split, numbers in (("t10k", test), ("train", train)):
        images = np.stack([grey(number) for number in numbers])
        write_idx(root / f"{name}/raw/{split}-images-idx3-ubyte", images)
        write_idx(root / f"{name}/raw/{split}-labels-idx1-ubyte", np.array(numbers, np.uint8))


def mnist(root: Path, _: Patch) -> list[str]:
    write_mnist(root, "MNIST")
    return ["3 - three", "9 - nine"]


def fashion_mnist(root: Path, _: Patch) -> list[str]:
    write_mnist(root, "FashionMNIST")
    return ["Dress", "Ankle boot"]


def kmnist(root: Path, _: Patch) -> list[str]:
    write_mnist(root, "KMNIST")
    return ["tsu", "wo"]


def emnist(root: Path, _: Patch) -> list[str]:
    folder = root / "EMNIST/raw"
    write_idx(folder / "emnist-balanced-test-images-idx3-ubyte", np.stack([grey(0), grey(10)]))
    write_idx(folder / "emnist-balanced-test-labels-idx1-ubyte", np.array([0, 10], np.uint8))
    return ["0", "A"]


def qmnist(root: Path, _: Patch) -> list[str]:
    write_idx(root / "QMNIST/raw/qmnist-test-images-idx3-ubyte", np.stack([grey(3), grey(9)]))
    about = np.zeros((2, 8), np.int32)
    about[:, 0] = [3, 9]
    write_idx(root / "QMNIST/raw/qmnist-test-labels-idx2-int", about)
    return ["3 - three", "9 - nine"]


def fer2013(root: Path, patch: Patch) -> list[str]:
    rows = [
        f"{number},{' '.join(map(str, grey(number, 48).reshape(-1)))},{usage}"
        for number, usage in ((1, "PrivateTest"), (2, "Training"), (6, "PublicTest"))
    ]
    text = "\n".join(["emotion,pixels,Usage", *rows, ""])
    sums = {**cls("FER2013")._RESOURCES}
    sums["fer"] = ("fer2013.csv", write_text(root / "fer2013/fer2013.csv", text))
    patch.setattr(cls("FER2013"), "_RESOURCES", sums)
    return ["1", "6"]


def pcam(root: Path, _: Patch) -> list[str]:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    stem = root / "pcam/camelyonpatch_level_2_split_test"
    with h5py.File(f"{stem}_x.h5", "w") as file:
        file["x"] = np.stack([picture(0, 0, size=96), picture(1, 0, size=96)])
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file["y"] = np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)
    return ["0", "1"]


def semeion(root: Path, patch: Patch) -> list[str]:
    rows = [
        " ".join([*(f"{bit:.4f}" for bit in grey(number, 16).reshape(-1) > 128), *one_hot])
        for number in (4, 7)
        for one_hot in [["1" if at == number else "0" for at in range(10)]]
    ]
    patch.setattr(
        cls("SEMEION"), "md5_checksum", write_text(root / "semeion.data", "\n".join(rows))
    )
    return ["4", "7"]


def stl10(root: Path, patch: Patch) -> list[str]:
    folder = root / "stl10_binary"
    write_text(folder / "class_names.txt", "airplane\nbird\ncar\n")
    columns_first = picture(2, 0, size=96).transpose(2, 1, 0)
    for split in ("test", "train"):
        (folder / f"{split}_X.bin").write_bytes(np.stack([columns_first] * 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([3, 1]))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for attribute in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(cls("STL10"), attribute)]
        patch.setattr(cls("STL10"), attribute, files)
    return ["car", "airplane"]


def svhn(root: Path, patch: Patch) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    images = np.stack([picture(0, 0), picture(5, 0)], axis=-1)
    savemat(root / "test_32x32.mat", {"X": images, "y": np.array([[10], [5]], np.uint8)})
    sums = {**cls("SVHN").split_list}
    sums["test"] = [*sums["test"][:2], md5(root / "test_32x32.mat")]
    patch.setattr(cls("SVHN"), "split_list", sums)
    return ["0", "5"]


def usps(root: Path, _: Patch) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{number + 1} " + " ".join(f"{at + 1}:{value / 127.5 - 1:.4f}" for at, value in pixels)
        for number in (2, 8)
        for pixels in [list(enumerate(grey(number, 16).reshape(-1)))]
    ]
    (root / "usps.t.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    return ["2", "8"]


def clevr(root: Path, _: Patch) -> list[str]:
    folder = root / "clevr/CLEVR_v1.0"
    scenes = []
    for at, count in enumerate((3, 10)):
        save_picture(folder / f"images/val/CLEVR_val_{at:06d}.png", at, 0)
        scene = {"image_filename": f"CLEVR_val_{at:06d}.png", "objects": [{}] * count}
        scenes.append(scene)
    write_text(folder / "scenes/CLEVR_val_scenes.json", json.dumps({"scenes": scenes}))
    return ["3", "10"]


def caltech101(root: Path, _: Patch) -> list[str]:
    for name in ("BACKGROUND_Google", "accordion", "yin_yang"):
        save_picture(root / f"caltech101/101_ObjectCategories/{name}/image_0001.jpg", 0, 0)
    return ["accordion", "yin_yang"]


def caltech256(root: Path, _: Patch) -> list[str]:
    folder = root / "caltech256/256_ObjectCategories"
    save_picture(folder / "001.ak47/001_0001.jpg", 0, 0)
    save_picture(folder / "002.american-flag/002_0001.jpg", 1, 0)
    return ["001.ak47", "002.american-flag"]


def country211(root: Path, _: Patch) -> list[str]:
    for code in ("AD", "NO"):
        save_picture(root / f"country211/test/{code}/1.jpg", 0, 0)
    return ["AD", "NO"]


def aircraft(root: Path, _: Patch) -> list[str]:
    folder = root / "fgvc-aircraft-2013b/data"
    write_text(folder / "variants.txt", "707-320\n727-200\nYak-42\n")
    write_text(folder / "images_variant_test.txt", "0034309 Yak-42\n0034958 727-200\n")
    for at, name in enumerate(("0034309", "0034958")):
        save_picture(folder / f"images/{name}.jpg", at, 0)
    return ["727-200", "Yak-42"]


def gtsrb(root: Path, _: Patch) -> list[str]:
    folder = root / "gtsrb"
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for at, number in enumerate((16, 1)):
        save_picture(folder / f"GTSRB/Final_Test/Images/{at:05d}.ppm", number, 0)
        lines.append(f"{at:05d}.ppm;32;32;5;5;27;27;{number}")
        save_picture(folder / f"GTSRB/Training/{number:05d}/00000_00000.ppm", number, 0)
    write_text(folder / "GT-final_test.csv", "\n".join([*lines, ""]))
    return ["1", "16"]


def inaturalist(root: Path, _: Patch) -> list[str]:
    kinds = [
        "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
        "00001_Animalia_Annelida_Polychaeta_Sabellida_Sabellidae_Sabella_spallanzanii",
    ]
    for at, kind in enumerate(kinds):
        save_picture(root / f"2021_valid/{kind}/a.jpg", at, 0)
    return kinds


def imagenette(root: Path, _: Patch) -> list[str]:
    wnids = list(cls("Imagenette")._WNID_TO_CLASS)
    for wnid in (wnids[0], wnids[4]):
        save_picture(root / f"imagenette2/val/{wnid}/{wnid}_1.JPEG", 0, 0)
    return [wnids[0], wnids[4]]


def lfw_people(root: Path, patch: Patch) -> list[str]:
    folder = root / "lfw-py"
    for name in ("Aaron_Eckhart", "Zoran_Djindjic"):
        save_picture(folder / f"lfw_funneled/{name}/{name}_0001.jpg", 0, 0)
    sums = {**cls("LFWPeople").checksums}
    people = "2\nZoran_Djindjic\t1\nAaron_Eckhart\t1\n"
    sums["peopleDevTest.txt"] = write_text(folder / "peopleDevTest.txt", people)
    names = "Aaron_Eckhart\t1\nAbel_Pacheco\t4\nZoran_Djindjic\t1\n"
    sums["lfw-names.txt"] = write_text(folder / "lfw-names.txt", names)
    patch.setattr(cls("LFWPeople"), "checksums", sums)
    archive = write_text(folder / "lfw-funneled.tgz", "the archive")
    files = {**cls("LFWPeople").file_dict}
    files["funneled"] = (*files["funneled"][:2], archive)
    patch.setattr(cls("LFWPeople"), "file_dict", files)
    return ["Aaron_Eckhart", "Zoran_Djindjic"]


def omniglot(root: Path, patch: Patch) -> list[str]:
    folder = root / "omniglot-py"
    characters = ["Angelic/character01", "Tibetan/character42"]
    for at, character in enumerate(characters):
        save_picture(folder / f"images_evaluation/{character}/{at:04d}_01.png", at, 0)
    archive = write_text(folder / "images_evaluation.zip", "the archive")
    patch.setattr(cls("Omniglot"), "zips_md5", {"images_evaluation": archive})
    return characters


def pets(root: Path, _: Patch) -> list[str]:
    folder = root / "oxford-iiit-pet"
    for name in ("yorkshire_terrier_1", "Abyssinian_3"):
        save_picture(folder / f"images/{name}.jpg", 0, 0)
    # A copy with classes left out: the third number is not the third class that occurs.
    write_text(folder / "annotations/test.txt", "yorkshire_terrier_1 37 2 25\nAbyssinian_3 1 1 1\n")
    return ["Abyssinian", "Yorkshire Terrier"]


def places365(root: Path, patch: Patch) -> list[str]:
    text = "/a/airfield 0\n/a/airplane_cabin 1\n/z/zen_garden 2\n"
    categories = write_text(root / "categories_places365.txt", text)
    listed = "Places365_val_00000001.jpg 2\nPlaces365_val_00000002.jpg 0\n"
    lists = {**cls("Places365")._FILE_LIST_META}
    lists["val"] = ("places365_val.txt", write_text(root / "places365_val.txt", listed))
    patch.setattr(cls("Places365"), "_CATEGORIES_META", ("categories_places365.txt", categories))
    patch.setattr(cls("Places365"), "_FILE_LIST_META", lists)
    for at in (1, 2):
        save_picture(root / f"val_large/Places365_val_{at:08d}.jpg", at, 0)
    return ["/a/airfield", "/z/zen_garden"]


def rendered_sst2(root: Path, _: Patch) -> list[str]:
    for name in ("negative", "positive"):
        save_picture(root / f"rendered-sst2/test/{name}/1.png", 0, 0)
    return ["negative", "positive"]


WRITERS: Mapping[str, Callable[[Path, Patch], list[str]]] = {
    "CLEVRClassification": clevr,
    "Caltech101": caltech101,
    "Caltech256": caltech256,
    "Country211": country211,
    "EMNIST": emnist,
    "FER2013": fer2013,
    "FGVCAircraft": aircraft,
    "FashionMNIST": fashion_mnist,
    "GTSRB": gtsrb,
    "INaturalist": inaturalist,
    "Imagenette": imagenette,
    "KMNIST": kmnist,
    "LFWPeople": lfw_people,
    "MNIST": mnist,
    "Omniglot": omniglot,
    "OxfordIIITPet": pets,
    "PCAM": pcam,
    "Places365": places365,
    "QMNIST": qmnist,
    "RenderedSST2": rendered_sst2,
    "SEMEION": semeion,
    "STL10": stl10,
    "SVHN": svhn,
    "USPS": usps,
}
