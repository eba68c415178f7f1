"""HopfieldMemory in files: what is saved comes back, nothing half-written appears, a bad file is one sentence."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from recollect.hopfield import HopfieldMemory
from safetensors.numpy import load_file, save_file

D, E = 6, 3


def filled(rng, values=True, **options):
    readout = rng.standard_normal((20, E)) if values else None
    memory = HopfieldMemory.from_patterns(rng.standard_normal((20, D)), values=readout, **options)
    memory.remove([0, 19])
    return memory


def assert_same(a, b):
    assert (a.beta, a.dtype, a.patterns.dtype) == (b.beta, b.dtype, b.patterns.dtype)
    np.testing.assert_array_equal(a.patterns, b.patterns)
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.values is None) == (b.values is None)
    if a.values is not None:
        np.testing.assert_array_equal(a.values, b.values)


def sentence(error, *parts):
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 400, text
    for part in parts:
        assert str(part) in text, (part, text)


def no_leftovers(folder, *names):
    assert sorted(os.listdir(folder)) == sorted(names)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"storage": "float16"}, {"storage": "bfloat16"}])
def test_a_saved_memory_comes_back(rng, tmp_path, mmap, values, options):
    memory = filled(rng, values, beta=0.1, **options)
    memory.save(tmp_path / "memory.safetensors")
    no_leftovers(tmp_path, "memory.safetensors")
    loaded = HopfieldMemory.load(tmp_path / "memory.safetensors", mmap=mmap)
    assert_same(loaded, memory)
    cues = rng.standard_normal((4, D))
    np.testing.assert_array_equal(loaded.retrieve(cues), memory.retrieve(cues))
    if not mmap:
        # 19 was removed before the memory was saved, and still is not given out again.
        assert loaded.add(np.ones((1, D)), np.ones((1, E)) if values else None).tolist() == [20]


def test_an_empty_memory_without_beta_comes_back(tmp_path):
    HopfieldMemory(D, values=E).save(tmp_path / "empty")
    for mmap in (False, True):
        loaded = HopfieldMemory.load(tmp_path / "empty", mmap=mmap)
        assert (loaded.d, len(loaded), loaded.values.shape, loaded.beta) == (D, 0, (0, E), None)
    HopfieldMemory.load(tmp_path / "empty").add(np.ones((2, D)), np.ones((2, E)))


def test_the_file_is_plain_safetensors(rng, tmp_path):
    memory = filled(rng, beta=2.5)
    memory.save(tmp_path / "m")
    arrays = load_file(tmp_path / "m")
    np.testing.assert_array_equal(arrays["patterns"], memory.patterns)
    assert set(arrays) == {"patterns", "values", "ids"}
    raw = (tmp_path / "m").read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert metadata["format"] == "recollect.HopfieldMemory" and metadata["format_version"] == "1"
    assert metadata["beta"] == "2.5" and metadata["dtype"] == "float64"


def test_save_refuses_to_overwrite_unless_told(rng, tmp_path):
    memory, path = filled(rng, beta=1), tmp_path / "m"
    memory.save(path)
    before = path.read_bytes()
    memory.remove([1])
    with pytest.raises(FileExistsError) as error:
        memory.save(path)
    sentence(error, path, "overwrite")
    assert path.read_bytes() == before
    memory.save(path, overwrite=True)
    assert len(HopfieldMemory.load(path)) == 17
    no_leftovers(tmp_path, "m")


def test_a_mapped_memory_survives_that_its_file_is_replaced(rng, tmp_path):
    filled(rng, beta=1).save(tmp_path / "m")
    mapped = HopfieldMemory.load(tmp_path / "m", mmap=True)
    kept = mapped.patterns.copy()
    HopfieldMemory.from_patterns(np.ones((2, D))).save(tmp_path / "m", overwrite=True)
    np.testing.assert_array_equal(mapped.patterns, kept)
    mapped.save(tmp_path / "m", overwrite=True)  # and may be written back over it
    assert_same(HopfieldMemory.load(tmp_path / "m"), mapped)


def test_a_failed_save_leaves_what_was_there(rng, tmp_path, monkeypatch):
    memory = filled(rng, beta=1)
    memory.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.numpy.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        memory.save(tmp_path / "m", overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        memory.save(tmp_path / "other")
    no_leftovers(tmp_path, "m")
    assert (tmp_path / "m").read_bytes() == before


def test_a_mapped_memory_is_read_only(rng, tmp_path):
    filled(rng, beta=1).save(tmp_path / "m")
    mapped = HopfieldMemory.load(tmp_path / "m", mmap=True)
    assert "mapped from" in repr(mapped)
    for change in (lambda: mapped.add(np.ones((1, D)), np.ones((1, E))), lambda: mapped.remove([1])):
        with pytest.raises(ValueError) as error:
            change()
        sentence(error, "read-only", tmp_path / "m")


def test_bad_files_are_one_sentence(rng, tmp_path):
    filled(rng, beta=1).save(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    arrays = load_file(tmp_path / "good")
    about = {
        "format": "recollect.HopfieldMemory",
        "format_version": "1",
        "beta": "1.0",
        "dtype": "float64",
        "largest_id": "9",
    }

    def written(tensors, **changes):
        save_file(tensors, tmp_path / "bad", metadata=about | changes)
        return (tmp_path / "bad").read_bytes()

    cases = {
        "cut in the data": (good[:-5], "truncated"),
        "cut in the header": (good[:40], "truncated"),
        "cut in the length": (good[:5], "truncated"),
        "empty": (b"", "truncated"),
        "something else": (b"\x89PNG and so on, and so on, and so on", "not a safetensors file"),
        "other kind": (written(arrays, format="weights"), "does not hold a recollect.HopfieldMemory"),
        "newer": (written(arrays, format_version="2"), "version '2'"),
        "no ids": (written({"patterns": arrays["patterns"]}), "damaged"),
        "fewer ids": (written(arrays | {"ids": arrays["ids"][1:]}), "damaged"),
        "same ids": (written(arrays | {"ids": arrays["ids"] * 0}), "damaged"),
        "3-D": (written(arrays | {"patterns": arrays["patterns"][None]}), "damaged"),
        "values short": (written(arrays | {"values": arrays["values"][1:]}), "damaged"),
        "dtypes differ": (written(arrays, dtype="float32"), "damaged"),
        "beta": (written(arrays, beta="-1.0"), "damaged"),
        "int32": (written(arrays | {"patterns": arrays["patterns"].astype(np.int32)}), "I32"),
    }
    for content, part in cases.values():
        (tmp_path / "bad").write_bytes(content)
        for mmap in (False, True):
            with pytest.raises(ValueError) as error:
                HopfieldMemory.load(tmp_path / "bad", mmap=mmap)
            sentence(error, tmp_path / "bad", part)
    with pytest.raises(FileNotFoundError) as error:
        HopfieldMemory.load(tmp_path / "none")
    sentence(error, tmp_path / "none")
    with pytest.raises(IsADirectoryError) as error:
        HopfieldMemory.load(tmp_path)
    sentence(error, tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        filled(rng, beta=1).save(tmp_path / "no" / "m")
    sentence(error, "directory", tmp_path / "no")


def test_safetensors_missing_says_what_to_install(rng, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError) as error:
        filled(rng, beta=1).save(tmp_path / "m")
    sentence(error, "safetensors", "pip install")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npy_files_are_mapped(rng, tmp_path, dtype):
    patterns = rng.standard_normal((20, D)).astype(dtype)
    width = "float64" if dtype == "float64" else "float32"
    values = rng.standard_normal((20, E)).astype(width)
    for name, array in (("patterns", patterns), ("values", values), ("ids", np.arange(20) + 7)):
        np.save(tmp_path / f"{name}.npy", array)
    plain = HopfieldMemory.open_npy(tmp_path / "patterns.npy", beta=2.0)
    assert plain.values is None and plain.ids.tolist() == list(range(20))
    for memory in (
        HopfieldMemory.open_npy(tmp_path, beta=2.0),
        HopfieldMemory.open_npy(tmp_path / "patterns.npy", values=tmp_path / "values.npy", ids=range(7, 27), beta=2.0),
    ):
        assert_same(memory, HopfieldMemory.from_patterns(patterns, values=values, ids=range(7, 27), beta=2.0))
        assert memory.nearest(patterns[3].astype(width), k=1)[0].shape == (1,)
        with pytest.raises(ValueError, match="read-only"):
            memory.remove([7])


def test_npy_files_that_cannot_be_used_in_place_are_refused(rng, tmp_path):
    patterns = rng.standard_normal((20, D))
    cases = {
        "integers": (patterns.astype(int), TypeError, "<i8"),
        "byte order": (patterns.astype(">f4"), TypeError, ">f4"),
        "columns": (np.asfortranarray(patterns), ValueError, "column by column"),
        "3-D": (patterns[None], ValueError, "(1, 20, 6)"),
        "bfloat16": (patterns.astype(ml_dtypes.bfloat16), TypeError, "expected real numbers"),
    }
    for array, kind, part in cases.values():
        np.save(tmp_path / "p.npy", array)
        with pytest.raises(kind) as error:
            HopfieldMemory.open_npy(tmp_path / "p.npy")
        sentence(error, tmp_path / "p.npy", part)
    np.save(tmp_path / "p.npy", patterns)
    np.save(tmp_path / "v.npy", patterns[1:])
    with pytest.raises(ValueError) as error:
        HopfieldMemory.open_npy(tmp_path / "p.npy", values=tmp_path / "v.npy")
    sentence(error, "values", "(19, 6)")
    with pytest.raises(ValueError) as error:
        HopfieldMemory.open_npy(tmp_path / "p.npy", ids=[0] * 20)
    sentence(error, "twice")
    with pytest.raises(FileNotFoundError) as error:
        HopfieldMemory.open_npy(tmp_path)
    sentence(error, "patterns.npy")


IN_PLACE = """
import resource, sys
import numpy as np
from recollect.hopfield import HopfieldMemory

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))

HopfieldMemory.from_patterns(np.ones((300, 64), np.float32), beta=1.0).retrieve(np.ones((2, 64)))  # threads start
limit = private() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
path = sys.argv[1]
memory = HopfieldMemory.open_npy(path, beta=1.0) if path.endswith(".npy") else HopfieldMemory.load(path, mmap=True)
assert memory.patterns.nbytes > 2 * 100 * 2**20
print(np.abs(memory.retrieve(np.ones((2, 64)), read="patterns")).max(), memory.energy(np.ones(64)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits private memory as Linux does")
@pytest.mark.parametrize("name", ["big.npy", "big.safetensors"])
def test_patterns_beyond_the_memory_that_may_be_used(tmp_path, name):
    # A sparse file: 256 MiB of zeros that take no disk.
    zeros = np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(2**20, 64))
    del zeros
    if name.endswith("safetensors"):
        HopfieldMemory.open_npy(tmp_path / "big.npy", beta=1.0).save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", IN_PLACE, str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.0", "32.0"]
