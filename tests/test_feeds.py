"""Parity and calibration inputs: never the same, always what the model takes, or one line."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import INPUT, gaussian, needs_pillow

from edgeport.catalog import Source, find_source, parse_spec
from edgeport.errors import InputError
from edgeport.feeds import FeedPlan, calibration_feeds, parity_feeds

FACTORY_SOURCE = Source("factory", "net.py:build")
IMAGE = (parse_spec(INPUT),)


def plan_of(
    data: Path | None = None,
    specs=IMAGE,
    source: Source = FACTORY_SOURCE,
    seed: int = 0,
    parity: int = 1,
    calibration: int = 4,
) -> FeedPlan:
    return FeedPlan(source, specs, seed, parity, calibration, data)


def contents(feeds) -> list[tuple[bytes, ...]]:
    return [tuple(array.tobytes() for array in feed.values()) for feed in feeds]


def save_images(folder: Path, count: int, size: int = 20) -> list[Path]:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
        paths.append(folder / f"{index:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("recipe", [True, False])
def test_seeded_feeds_differ_from_parity_and_follow_the_seed(recipe: bool) -> None:
    source = find_source("padre") if recipe else FACTORY_SOURCE
    plans = {seed: plan_of(source=source, seed=seed, parity=3, calibration=12) for seed in (0, 1)}
    parity = {seed: contents(parity_feeds(plan)) for seed, plan in plans.items()}
    calibration = {seed: contents(calibration_feeds(plan)) for seed, plan in plans.items()}
    assert [len(parity[0]), len(calibration[0])] == [3, 12]
    assert len(set(parity[0] + calibration[0])) == 15
    assert not set(parity[0]) & set(calibration[1])
    assert parity[0] != parity[1]
    assert parity[0] == contents(parity_feeds(plans[0]))
    assert calibration[0] == contents(calibration_feeds(plans[0]))


@pytest.mark.parametrize(
    "text", ["a:float16[2,3]", "a:int64[5]", "a:int32[5]", "a:uint8[5]", "a:bool[5]"]
)
def test_seeded_feeds_have_the_type_and_shape_of_the_spec(text: str) -> None:
    spec = parse_spec(text)
    (feed,) = parity_feeds(plan_of(specs=(spec,)))
    assert (str(feed["a"].dtype), feed["a"].shape) == (spec.dtype, spec.shape)


def test_arrays_are_split_into_samples_and_parity_is_held_out(tmp_path: Path) -> None:
    data = gaussian([6, 3, 16, 16])
    np.savez(tmp_path / "data.npz", image=data)
    plan = plan_of(tmp_path / "data.npz", parity=2, calibration=32)
    parity, calibration = parity_feeds(plan), list(calibration_feeds(plan))
    assert np.array_equal(np.concatenate([f["image"] for f in parity]), data[:2])
    rest = sorted(np.concatenate([f["image"] for f in calibration]).tolist())
    assert rest == sorted(data[2:].tolist())
    assert plan.origin() == "data.npz (up to 32 samples)"


@pytest.mark.parametrize("in_files", [False, True])
def test_calibration_meets_every_class_of_sorted_data(tmp_path: Path, in_files: bool) -> None:
    """Twenty classes of twenty samples each, in their order; thirty samples calibrate."""
    data = np.repeat(np.arange(20, dtype=np.float32), 20)[:, None, None, None]
    data = np.broadcast_to(data, (400, 3, 16, 16))
    if in_files:
        for index, one in enumerate(data):
            np.savez(tmp_path / f"{index:03}.npz", image=one[None])
    else:
        np.savez(tmp_path / "data.npz", image=data)
    met = {
        float(f["image"][0, 0, 0, 0]) for f in calibration_feeds(plan_of(tmp_path, calibration=30))
    }
    assert len(met) >= 12
    again = {
        float(f["image"][0, 0, 0, 0]) for f in calibration_feeds(plan_of(tmp_path, calibration=30))
    }
    assert met == again


def test_calibration_takes_no_more_than_asked(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=gaussian([6, 3, 16, 16]))
    assert len(list(calibration_feeds(plan_of(tmp_path / "data.npz", calibration=3)))) == 3


def test_duplicates_of_a_parity_sample_never_calibrate(tmp_path: Path) -> None:
    one, other = gaussian([1, 3, 16, 16], 0), gaussian([1, 3, 16, 16], 1)
    for name, array in (("a", one), ("b", other), ("c", one), ("d", one)):
        np.savez(tmp_path / f"{name}.npz", image=array)
    plan = plan_of(tmp_path)
    assert contents(parity_feeds(plan)) == [(one.tobytes(),)]
    assert contents(calibration_feeds(plan)) == [(other.tobytes(),)]


@needs_pillow
def test_a_duplicated_image_never_calibrates(tmp_path: Path) -> None:
    paths = save_images(tmp_path / "images", 3)
    shutil.copy(paths[0], tmp_path / "images" / "zz_copy.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    plan = plan_of(tmp_path / "images", calibration=32)
    assert len(list(calibration_feeds(plan))) == 2
    assert not set(contents(parity_feeds(plan))) & set(contents(calibration_feeds(plan)))


@pytest.mark.parametrize("copies", [1, 5])
def test_too_few_samples(tmp_path: Path, copies: int) -> None:
    np.savez(tmp_path / "data.npz", image=np.tile(gaussian([1, 3, 16, 16]), (copies, 1, 1, 1)))
    with pytest.raises(InputError, match="leaves no sample for calibration"):
        list(calibration_feeds(plan_of(tmp_path / "data.npz")))


@needs_pillow
def test_images_become_rgb_between_0_and_1_at_the_input_size(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[0, 0], pixels[0, 15], pixels[15, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 51)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (feed,) = parity_feeds(plan_of(tmp_path / "a.png"))
    image = feed["image"]
    assert (image.dtype, image.shape) == (np.float32, (1, 3, 16, 16))
    assert image[0, :, 0, 0].tolist() == [1, 0, 0]
    assert image[0, :, 0, 15].tolist() == [0, 1, 0]
    assert image[0, :, 15, 0] == pytest.approx([0, 0, 0.2])


@needs_pillow
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_kind(tmp_path: Path, mode: str, channels: int) -> None:
    from PIL import Image

    Image.new(mode, (40, 9)).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    spec = parse_spec(f"x:float32[1,{channels},16,24]")
    (feed,) = parity_feeds(plan_of(tmp_path, specs=(spec,)))
    assert feed["x"].shape == spec.shape
    assert np.isfinite(feed["x"]).all()


def test_several_inputs_and_batches_of_more_than_one(tmp_path: Path) -> None:
    specs = (parse_spec("a:float32[2,5]"), parse_spec("b:int64[2]"))
    a, b = gaussian([7, 5]), np.arange(7)
    np.savez(tmp_path / "data.npz", b=b, a=a, other=np.zeros(3))
    plan = plan_of(tmp_path / "data.npz", specs=specs, calibration=32)
    (parity,), calibration = parity_feeds(plan), list(calibration_feeds(plan))
    assert list(parity) == ["a", "b"]
    assert np.array_equal(parity["a"], a[:2])
    assert [feed["b"].tolist() for feed in calibration] == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 3, 16, 15), np.float32), "the model takes image"),
        (np.zeros((4, 3, 16), np.float32), "the model takes image"),
        (np.zeros((0, 3, 16, 16), np.float32), "the model takes image"),
        (np.float32(3), "the model takes image"),
        (np.full((4, 3, 16, 16), np.nan, np.float32), "NaN or infinity"),
        (np.full((4, 3, 16, 16), -np.inf), "NaN or infinity"),
        (np.full((4, 3, 16, 16), 1e300), "NaN or infinity"),
        (np.full((4, 3, 16, 16), "a"), "no real numbers"),
        (np.zeros((4, 3, 16, 16), np.complex64), "no real numbers"),
        (np.zeros((4, 3, 16, 16), "datetime64[s]"), "no real numbers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, words: str) -> None:
    for suffix, save in ((".npz", lambda p: np.savez(p, image=array)), (".npy", save_npy(array))):
        path = tmp_path / f"data{suffix}"
        save(path)
        with pytest.raises(InputError, match=words) as caught:
            parity_feeds(plan_of(path))
        assert path.name in str(caught.value)


def save_npy(array: np.ndarray):
    return lambda path: np.save(path, array)


def test_a_number_is_no_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.float32(3))
    with pytest.raises(InputError, match=r"the model takes s:float32\[1\]"):
        parity_feeds(plan_of(tmp_path / "data.npy", specs=(parse_spec("s:float32[1]"),)))


@needs_pillow
def test_an_image_that_claims_to_be_huge(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = (60_000).to_bytes(4, "little") * 2  # width and height
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.bmp is not a readable image"):
        parity_feeds(plan_of(tmp_path))


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((1, 3, 16, 16)))
    with pytest.raises(InputError, match="has no array 'image'; it has images"):
        parity_feeds(plan_of(tmp_path / "data.npz"))


def test_inputs_of_different_counts(tmp_path: Path) -> None:
    specs = (parse_spec("a:float32[1,5]"), parse_spec("b:float32[1,5]"))
    np.savez(tmp_path / "data.npz", a=np.zeros((3, 5)), b=np.zeros((4, 5)))
    with pytest.raises(InputError, match="differ in their number"):
        parity_feeds(plan_of(tmp_path / "data.npz", specs=specs))


def damaged(path: Path, name: str) -> Path:
    """Writes a file that cannot be read as an array, in one of the ways files go bad."""
    good = path.with_name("good.npz")
    np.savez(good, image=np.zeros((1, 3, 16, 16)))
    content = good.read_bytes()
    good.unlink()
    if name == "objects":
        np.savez(path, image=np.array([{}], dtype=object))
    elif name == "not arrays":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image", "text")
    else:
        middle = bytearray(content)
        middle[len(content) // 2] ^= 0xFF
        kinds = {"garbage": b"no array", "cut": content[:900], "empty": b"", "flipped": middle}
        path.write_bytes(kinds[name])
    return path


@pytest.mark.parametrize("kind", ["garbage", "cut", "empty", "flipped", "objects", "not arrays"])
def test_damaged_array_files(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path / "data.npz", kind)
    with pytest.raises(InputError, match=r"data\.npz") as caught:
        parity_feeds(plan_of(path))
    assert "\n" not in str(caught.value)


@needs_pillow
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_damaged_images(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    path = tmp_path / f"image{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    damages = [b"", b"text", content[:40], content[: len(content) // 2]]
    for _ in range(60):
        flipped = bytearray(content)
        flipped[int(rng.integers(0, min(200, len(content))))] ^= int(rng.integers(1, 256))
        damages.append(bytes(flipped))
    refused = []
    for damage in damages:
        path.write_bytes(damage)
        try:
            parity_feeds(plan_of(path))
        except InputError as error:  # any other class is a failure
            refused.append(str(error))
    assert len(refused) >= 4
    assert all(path.name in sentence for sentence in refused)


@needs_pillow
@pytest.mark.parametrize(
    "specs", [["x:float32[1,5]"], ["x:int64[1,3,8,8]"], [INPUT, "t:float32[1]"]]
)
def test_images_for_a_model_that_takes_none(tmp_path: Path, specs: list[str]) -> None:
    save_images(tmp_path / "images", 1)
    with pytest.raises(InputError, match="images fit a model with one float input"):
        parity_feeds(plan_of(tmp_path / "images", specs=tuple(map(parse_spec, specs))))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        parity_feeds(plan_of(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no image"):
        parity_feeds(plan_of(tmp_path))


def test_fewer_parity_samples_than_asked_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=gaussian([2, 3, 16, 16]))
    with pytest.raises(InputError, match="2 samples"):
        parity_feeds(plan_of(tmp_path / "data.npz", parity=5))
