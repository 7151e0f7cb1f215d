"""The output directory is the old one or the new one, whatever fails, is full or in the way."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from support import run_python
from versions import fail, names, read_version, replace, write_version

from edgeport import staging
from edgeport.errors import InputError, OutputRefused, StageFailed
from edgeport.staging import check_target, failed_directory, staged_directory

# Replacing


def test_makes_and_replaces_a_directory(out: Path) -> None:
    for version in (1, 2, 3):
        replace(out / "deep", version)
        assert read_version(out / "deep") == version
        assert names(out) == ["deep"]


def test_the_replaced_directory_keeps_its_mode(out: Path) -> None:
    replace(out, 1)
    out.chmod(0o750)
    replace(out, 2)
    assert out.stat().st_mode & 0o777 == 0o750


def test_replaces_an_empty_directory_and_a_linked_one(out: Path, tmp_path: Path) -> None:
    out.mkdir()
    (tmp_path / "link").symlink_to("out")
    replace(tmp_path / "link", 1)
    assert read_version(out) == 1
    assert (tmp_path / "link").is_symlink()


def test_two_renames_do_where_one_call_is_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    for version in (1, 2, 3):
        replace(out, version)
    assert read_version(out) == 3
    assert names(out.parent) == ["out"]


def test_a_killed_swap_is_undone_or_ended(out: Path) -> None:
    previous = out.with_name(".out.previous")
    replace(out, 1)
    out.rename(previous)  # killed after the first rename
    check_target(out)
    with pytest.raises(ZeroDivisionError):
        fail(out, ZeroDivisionError())
    assert read_version(out) == 1
    out.rename(previous)
    replace(out, 2)
    assert read_version(out) == 2
    out.rename(previous)
    write_version_at(out, 3)  # killed after the second
    replace(out, 4)
    assert read_version(out) == 4
    assert names(out.parent) == ["out"]


def write_version_at(directory: Path, version: int) -> None:
    directory.mkdir()
    write_version(directory, version)


# Failing


@pytest.mark.parametrize("error", [ValueError("bad node"), KeyboardInterrupt()])
def test_a_failure_keeps_the_target_and_the_files(out: Path, error: BaseException) -> None:
    replace(out, 1)
    with pytest.raises(type(error)) as caught:
        fail(out, error)
    assert caught.value is error
    assert read_version(out) == 1
    assert names(out.parent) == ["out", "out.failed"]
    record = json.loads((failed_directory(out) / "failure.json").read_text())
    assert record["generator"] == "edgeport"
    assert record["error"] == (str(error) or "KeyboardInterrupt")
    assert (failed_directory(out) / "model.onnx").read_text() == "half"


def test_the_next_run_replaces_or_removes_the_failed_files(out: Path) -> None:
    for name in ("a", "b"):
        with pytest.raises(StageFailed):
            fail(out, StageFailed("lower", "no"), name)
    assert names(failed_directory(out)) == ["b", "failure.json"]
    assert json.loads((failed_directory(out) / "failure.json").read_text())["stage"] == "lower"
    replace(out, 1)
    assert names(out.parent) == ["out"]


def test_an_interrupt_after_the_swap_does_not_call_the_old_files_failed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(out, 1)

    def interrupt(_: Path) -> None:
        if read_version(out) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(staging, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(out, 2)
    assert read_version(out) == 2
    assert names(out.parent) == ["out"]


# Refusing


def refusal(target: Path) -> str:
    """Returns the refusal, the same from both functions, after checking that nothing changed."""
    before = snapshot(target.parent)
    with pytest.raises(OutputRefused) as first:
        check_target(target)
    with pytest.raises(OutputRefused) as second, staged_directory(target):
        pytest.fail("work began")
    assert str(first.value) == str(second.value)
    assert snapshot(target.parent) == before
    assert "\n" not in str(first.value)
    assert "--output-dir" in str(first.value)
    return str(first.value)


def snapshot(directory: Path) -> list[str]:
    return sorted(map(str, directory.rglob("*"))) if directory.is_dir() else []


def test_refuses_what_is_not_ours(out: Path) -> None:
    out.write_text("a file")
    assert "not a directory" in refusal(out)
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert "was not written by edgeport" in refusal(out)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[1]",
        "{",
        '{"generator": "other", "files": {}}',
        '{"generator": "edgeport"}',
        "[" * 9999,
    ],
)
def test_refuses_manifests_of_others(out: Path, manifest: str) -> None:
    out.mkdir()
    (out / "manifest.json").write_text(manifest)
    assert "was not written by edgeport" in refusal(out)


def test_refuses_to_lose_the_users_files(out: Path) -> None:
    replace(out, 1)
    (out / ".DS_Store").write_text("")
    check_target(out)
    (out / "sub").mkdir()
    for name in ("notes.md", "sub/a", "sub/b", "sub/c", "sub/d"):
        (out / name).write_text("mine")
    message = refusal(out)
    assert "notes.md, sub/a, sub/b and 2 more" in message
    (out / "sub" / "f0").symlink_to("/etc")
    assert "3 more" in refusal(out)


def test_refuses_files_that_came_during_the_run(out: Path) -> None:
    def replace_slowly() -> None:
        with staged_directory(out) as directory:
            write_version(directory, 2)
            (out / "notes.md").write_text("mine")

    replace(out, 1)
    with pytest.raises(OutputRefused, match=r"notes\.md"):
        replace_slowly()
    assert (out / "notes.md").read_text() == "mine"
    assert read_version(failed_without_record(out)) == 2


def failed_without_record(out: Path) -> Path:
    (failed_directory(out) / "failure.json").unlink()
    return failed_directory(out)


def test_input_to_be_mended_leaves_nothing(out: Path) -> None:
    with pytest.raises(InputError):
        fail(out, InputError("x"))
    assert not list(out.parent.iterdir())
    with pytest.raises(ValueError, match="x"):
        fail(out, ValueError("x"))
    assert (failed_directory(out) / "model.onnx").is_file()


def test_refuses_a_failed_directory_that_is_not_ours(out: Path) -> None:
    failed_directory(out).mkdir()
    (failed_directory(out) / "mine").write_text("")
    assert "out.failed exists and was not written by edgeport" in refusal(out)
    (failed_directory(out) / "mine").unlink()
    with pytest.raises(ValueError, match="x"):
        fail(out, ValueError("x"))
    (failed_directory(out) / "mine").write_text("")
    assert "out.failed holds files that edgeport did not write (mine)" in refusal(out)


def test_refuses_odd_links(out: Path) -> None:
    out.symlink_to("nowhere")
    assert "symbolic link to nowhere" in refusal(out)
    out.unlink()
    out.symlink_to("out")
    assert "symbolic link to out" in refusal(out)


def test_refuses_the_current_directory(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir()
    monkeypatch.chdir(out)
    for target in (Path(), out, out.parent, Path("/")):
        with pytest.raises(OutputRefused, match="current directory or above"):
            check_target(target)


def test_refuses_parents_that_cannot_be_written(out: Path) -> None:
    out.write_text("a file")
    assert "no directory that can be written" in refusal(out / "deep" / "deeper")
    with pytest.raises(OutputRefused):
        replace(out.with_name("x" * 300), 1)


def test_refuses_a_read_only_mount_and_a_mount_point(small_disk: Path) -> None:
    assert "mount point" in refusal(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "no directory that can be written" in refusal(small_disk / "out")


# Full


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    out = small_disk / "out"
    replace(out, 1)
    with pytest.raises(StageFailed, match="no space left while writing") as caught:
        fill(out)
    assert "\n" not in str(caught.value)
    assert caught.value.stage == "write"
    assert read_version(out) == 1
    for path in failed_directory(out).glob("*"):
        path.unlink()
    replace(out, 2)
    assert names(small_disk) == ["out"]


def fill(out: Path) -> None:
    with staged_directory(out) as directory:
        for index in range(100):
            (directory / str(index)).write_bytes(b"x" * 100_000)


def test_a_full_disk_in_the_words_of_a_library_is_told_too(small_disk: Path) -> None:
    def fill_and_complain() -> None:
        with staged_directory(small_disk / "out") as directory:
            with suppress(OSError):
                (directory / "large").write_bytes(b"x" * (2 << 20))
            raise RuntimeError("[enforce fail]\nfailed writing file")

    with pytest.raises(StageFailed, match=r"no space left .*RuntimeError: .*failed writing file"):
        fill_and_complain()


LIMITED = """
import resource, sys
from pathlib import Path
from edgeport.errors import EdgeportError
from edgeport.staging import staged_directory
try:
    with staged_directory(Path(sys.argv[1])) as directory:
        (directory / "small").write_bytes(b"x")
        size = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        (directory / "large").write_bytes(b"x" * 100_000)
except EdgeportError as error:
    print(type(error).__name__, error, *getattr(error, "__notes__", []), sep="|")
"""


@pytest.mark.parametrize("size", [50_000, 0])
def test_a_file_past_the_size_limit_is_one_line(out: Path, size: int) -> None:
    """At 0 not even the record of the failure can be written: the failed files are given up."""
    replace(out, 1)
    told, trace = run_python(LIMITED, str(out), str(size)).communicate(timeout=20)
    assert told.startswith("StageFailed|write: a file grew past the size limit while writing"), (
        trace
    )
    assert str(out) in told
    assert ".staging-" not in told
    assert ("could not be kept" in told) == (size == 0)
    assert read_version(out) == 1
    assert names(out.parent) == (["out", "out.failed"] if size else ["out"])
    replace(out, 2)
    assert names(out.parent) == ["out"]
