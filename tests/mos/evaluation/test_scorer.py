"""Any CLIPModel as a scorer: the same features as transformers' own path gives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mos.errors import NotFoundError
from mos.evaluation.scorer import ClipScorer, Preprocessing, read_preprocessing


def noise_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (91, 47), (40, 77), (32, 32)])
def test_pictures_are_prepared_as_transformers_does(tmp_path, width, height):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    picture = noise_picture(width, height)
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    found = read_preprocessing(tmp_path, 32)(picture)
    assert found.shape == (3, 32, 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_folder_may_ask_for_its_own_size_mean_and_no_crop(tmp_path):
    settings = {
        "size": {"height": 20, "width": 30},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = read_preprocessing(tmp_path, 32)(Image.new("RGB", (64, 64), (255, 255, 255)))
    assert found.shape == (3, 20, 30)
    np.testing.assert_allclose(found, 1.0)


def test_a_folder_without_settings_gets_clips_own(tmp_path):
    assert read_preprocessing(tmp_path, 48) == Preprocessing(size=48, crop=(48, 48))


def test_features_are_those_of_the_model_whatever_the_batch(scorer):
    pictures = [noise_picture(64, 64, seed) for seed in range(5)]
    pixels = torch.from_numpy(np.stack([scorer.preprocessing(picture) for picture in pictures]))
    with torch.inference_mode():
        pooled = scorer.model.vision_model(pixel_values=pixels).pooler_output
        expected = scorer.model.visual_projection(pooled).numpy()
    np.testing.assert_allclose(scorer.image_features(pictures), expected, atol=1e-5)
    np.testing.assert_allclose(scorer.image_features(pictures, batch_size=2), expected, atol=1e-5)


def test_prompts_are_scored_once_each_and_kept_in_order(scorer):
    found = scorer.text_features(["a red cat", "a blue dog", "a red cat"])
    assert found.shape == (3, 12)
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])
    np.testing.assert_allclose(found[1], scorer.text_features(["a blue dog"])[0], atol=1e-5)


def test_a_prompt_over_the_scorers_length_is_cut(scorer):
    long = "a red cat " * 40
    assert np.isfinite(scorer.text_features([long])).all()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no-such-scorer"):
        ClipScorer.load(tmp_path / "no-such-scorer")
