"""CAR-FT and Lipsum-FT: their formulas in float64, and where their text features come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

from tests.clip_merges import write_clip_merges
from tests.model.conftest import CONTEXT_LENGTH, FAMILIES, MERGES, write_model_folder
from tests.training import tiny
from tests.training.plain_loop import KEYS, PlainClassifier, train_plainly
from tests.training.test_equivalence import steps_of
from tests.training.test_methods import assert_equal_weights
from tests.training.tiny import CLASSES, write_images
from wiseft_cli.checkpoint.card import ModelSpec
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.errors import ModelError, UsageError
from wiseft_cli.model.classifier import ImageClassifier, build_classification_head, state_arrays
from wiseft_cli.model.full_clip import load_full_clip
from wiseft_cli.model.model_source import find_model
from wiseft_cli.training.batches import Purpose, derive_seed
from wiseft_cli.training.kept import TextSource
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.text import class_free_prompts

TEMPLATES = ("a photo of a {}.", "a sketch of a {}.", "art of the {}", "the {}, art of")
SCALE = 10.0
RECIPE = {**KEYS, "label_smoothing": 0.0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP model in `clip`, a zero-shot checkpoint made from it, and training images."""
    write_model(tmp_path, "vit")
    monkeypatch.setitem(tiny.CONFIGS, "clip", FAMILIES["vit"])
    write_images(tmp_path / "train", size=36)
    return tmp_path


def write_model(folder: Path, family: str) -> None:
    merges = write_clip_merges(folder / "bpe.txt.gz", MERGES)
    write_model_folder(folder / "clip", family, merges)
    full = load_full_clip(find_model(f"local-dir:{folder / 'clip'}", pretrained=None))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, full.encoder_config["embed_dim"], generator=generator)
    head = build_classification_head(SCALE * F.normalize(weight, dim=-1), torch.zeros(3))
    config = json.loads(canonical_json(full.encoder_config))
    sides = config["vision_cfg"]["image_size"]
    sides = [sides, sides] if isinstance(sides, int) else sides
    card = replace(
        tiny.zeroshot_card("vit"),
        model=ModelSpec(full.name, full.source, config),
        templates=TEMPLATES,
        preprocess={"size": sides, "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3},
    )
    classifier = ImageClassifier(full.model.visual, head)
    write_checkpoint(folder / "zs.safetensors", state_arrays(classifier), card)


@pytest.fixture
def in_float64(folder: Path) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def text_model(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder / 'clip'}").float().eval()


def features(model: PlainClassifier, images: torch.Tensor) -> torch.Tensor:
    return F.normalize(model.visual(images), dim=-1)


def six_steps(folder: Path, **keys: Any) -> Any:
    source = TextSource(f"local-dir:{folder / 'clip'}")
    return steps_of(folder, zeroshot=folder / "zs.safetensors", text=source, **RECIPE, **keys)[0]


@pytest.mark.usefixtures("in_float64")
def test_car_ft_adds_the_divergence_of_the_context_distributions(folder):
    prompts = ["a photo of a .", "a sketch of a .", "art of the", "the , art of"]
    tokenize = open_clip.SimpleTokenizer(bpe_path=str(folder / "bpe.txt.gz"))
    with torch.no_grad():
        tokens = tokenize(prompts, context_length=CONTEXT_LENGTH)
        contexts = F.normalize(text_model(folder).encode_text(tokens), dim=-1).double()

    def penalty(model: Any, start: Any, images: torch.Tensor) -> torch.Tensor:
        before = (SCALE * features(start, images) @ contexts.T).softmax(dim=1)
        after = (SCALE * features(model, images) @ contexts.T).softmax(dim=1)
        return 0.7 * (before * (before / after).log()).sum(dim=1).mean()

    plain = train_plainly(folder / "zs.safetensors", folder / "train", "clip", loss=penalty)
    # The contexts are float32 features, computed in batches of another shape.
    found = six_steps(folder, car_ft=0.7)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=1e-7)
    assert_equal_weights(six_steps(folder, car_ft=0.7, micro_batch_size=5), as_module(found))


@pytest.mark.usefixtures("in_float64")
def test_lipsum_ft_adds_half_the_mean_squared_change_of_random_logits(folder):
    tower, step = text_model(folder), iter(range(6))
    start_id, end_id = tower.vocab_size - 2, tower.vocab_size - 1

    def penalty(model: Any, start: Any, images: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator()
        generator.manual_seed(derive_seed(0, Purpose.RANDOM_TEXTS, next(step)))
        words = torch.randint(start_id, (80, 8), generator=generator)
        tokens = torch.zeros(80, CONTEXT_LENGTH, dtype=torch.int64)
        tokens[:, 0], tokens[:, 1:9], tokens[:, 9] = start_id, words, end_id
        with torch.no_grad():
            texts = F.normalize(tower.encode_text(tokens), dim=-1).double()
        source = SCALE * features(model, images) @ texts.T
        target = SCALE * features(start, images) @ texts.T
        return 1.3 * ((source - target) ** 2).mean(dim=1).mean() / 2

    plain = train_plainly(folder / "zs.safetensors", folder / "train", "clip", loss=penalty)
    found = six_steps(folder, lipsum_ft=1.3)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=1e-7)
    assert_equal_weights(six_steps(folder, lipsum_ft=1.3, micro_batch_size=5), as_module(found))


def as_module(weights: Any) -> Any:
    """Return an object with the named parameters of a run."""
    return type("Weights", (), {"named_parameters": lambda _: weights.items()})()


@pytest.mark.usefixtures("in_float64")
def test_strength_of_zero_equals_the_default_to_the_bit(folder):
    default = steps_of(folder, zeroshot=folder / "zs.safetensors", **RECIPE)[0]
    found = six_steps(folder, car_ft=0.0, lipsum_ft=0.0)
    assert all(torch.equal(found[name], default[name]) for name in default)


WORDS = ["finetune", "zs.safetensors", "--train", "train", "--batch-size", "5", "--epochs", "2"]
WORDS += ["--workers", "0", "--device", "cpu", "--threads", "1", "--lr", "1e-3"]
METHODS = ["--car-ft", "0.5", "--lipsum-ft", "0.5", "--model", "local-dir:clip"]


def test_run_records_its_text_tower_and_resumes_to_the_same_bytes(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert (
        main([*WORDS, *METHODS, "-o", "whole.safetensors", "--save-every", "4", "--keep-state"])
        == 0
    )
    options = read_card(Path("whole.safetensors")).history[-1].options
    assert options["recipe"]["car_ft"] == options["recipe"]["lipsum_ft"] == 0.5
    assert options["text_tower"]["weights"].split(":")[0] in ("sha256", "blake3")
    Path("whole.safetensors.state").rename("out.safetensors.state")
    resumed = [*WORDS, *METHODS, "-o", "out.safetensors", "--resume"]
    assert main(resumed) == 0
    assert "resume   after step 4" in capsys.readouterr().err
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_two_processes_make_the_steps_of_one(folder, monkeypatch, fork_server):
    monkeypatch.chdir(folder)
    words = [*WORDS, *METHODS, "--eps", "0.001"]
    code, _, err = fork_server.run_two_ranks(*words, "-o", "two.safetensors", folder=folder)
    assert code == 0, err
    assert main([*words, "-o", "one.safetensors"]) == 0
    from tests.training.test_torchrun import assert_alike

    assert_alike("one.safetensors", "two.safetensors")


def plan_with(folder: Path, text: TextSource | None = None, **keys: Any) -> Any:
    return make_plan(
        parent=folder / "zs.safetensors",
        data=DataOptions(str(folder / "train")),
        output=folder / "out",
        recipe=Recipe(**keys),
        text=text,
    )


@pytest.mark.parametrize("key", ["car_ft", "lipsum_ft"])
def test_method_without_a_model_is_rejected(folder, key):
    with pytest.raises(UsageError, match=r"need the text tower of the CLIP model") as caught:
        plan_with(folder, **{key: 1.0})
    assert caught.value.hint == "add --model, and --pretrained for an open_clip name"


def test_model_without_a_method_is_rejected(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main([*WORDS, "--model", "local-dir:clip", "-o", "out.safetensors"]) == 2
    assert (
        "--model and --pretrained are only for --car-ft and --lipsum-ft" in capsys.readouterr().err
    )


def test_model_of_another_encoder_is_rejected(folder):
    other = folder / "other"
    other.mkdir()
    write_model(other, "vit-quickgelu")
    with pytest.raises(ModelError, match="its image encoder differs from that of"):
        plan_with(folder, TextSource(f"local-dir:{other / 'clip'}"), car_ft=1.0)


def test_single_template_has_no_context_distribution(folder):
    card = read_card(folder / "zs.safetensors")
    from safetensors.numpy import load_file

    arrays = load_file(folder / "zs.safetensors")
    single = replace(card, templates=("a photo of a {}.",), digest=None)
    write_checkpoint(folder / "zs.safetensors", arrays, single, force=True)
    with pytest.raises(ModelError, match=r"car_ft needs at least two templates .*, found 1"):
        plan_with(folder, TextSource(f"local-dir:{folder / 'clip'}"), car_ft=1.0)


def test_towers_without_the_ends_of_clip_have_no_random_texts(tmp_path):
    write_model(tmp_path, "siglip")
    write_images(tmp_path / "train", size=36)
    source = TextSource(f"local-dir:{tmp_path / 'clip'}")
    with pytest.raises(ModelError, match="lipsum_ft needs a text tower that begins and ends texts"):
        plan_with(tmp_path, source, lipsum_ft=1.0)
    assert plan_with(tmp_path, source, car_ft=1.0).text.contexts.shape == (4, 64)


def test_class_free_prompts_are_distinct_and_not_empty():
    templates = ["a photo of a {}.", "a  photo of a {}.", "{}", "the {} in {}"]
    assert class_free_prompts(templates) == ["a photo of a .", "the in"]
    assert len(CLASSES) == 3
