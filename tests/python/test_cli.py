"""``python -m recollect`` as a user runs it: exit status, one sentence for every mistake, nothing half-written."""

import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import recollect as rc

BETA = 4.0


def recollect(*arguments, cwd=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "recollect", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def folder(rng, tmp_path):
    np.save(tmp_path / "p.npy", rng.standard_normal((300, 16)).astype(np.float32))
    np.save(tmp_path / "q.npy", rng.standard_normal((100, 16)).astype(np.float32))
    np.save(tmp_path / "v.npy", rng.standard_normal((300, 5)).astype(np.float32))
    return tmp_path


def load(folder, *names):
    return [np.load(folder / f"{name}.npy") for name in names]


def run(folder, *arguments, status=0):
    done = recollect("retrieve", *arguments, cwd=folder)
    assert done.returncode == status, done.stderr
    return done


def refused(folder, *arguments, parts=(), status=1):
    """Exit status 1, one line on standard error that says all ``parts``, and no new file."""
    before = sorted(os.listdir(folder))
    done = run(folder, *arguments, status=status)
    assert sorted(os.listdir(folder)) == before and not done.stdout
    line = done.stderr.strip()
    assert "\n" not in line and "Traceback" not in line and 20 < len(line) < 400, line
    for part in parts:
        assert part in line, (part, line)


# -- retrieve ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 100, 4096])
def test_writes_what_the_function_returns_in_any_blocks(folder, block):
    done = run(folder, "p.npy", "q.npy", "--beta", BETA, "--block", block, "-o", "out.npy")
    assert done.stdout == "wrote out.npy: 100 x 16, float32\n" and not done.stderr
    p, q, out = load(folder, "p", "q", "out")
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, rc.hopfield.retrieve(q, p, beta=BETA))
    assert sorted(os.listdir(folder)) == ["out.npy", "p.npy", "q.npy", "v.npy"]


def test_values_steps_and_tol(folder):
    p, q, v = load(folder, "p", "q", "v")
    run(folder, "p.npy", "q.npy", "--beta", BETA, "--values", "v.npy", "--steps", 3, "-o", "a.npy")
    run(folder, "p.npy", "q.npy", "--beta", BETA, "--steps", "none", "--tol", "1e-3", "-o", "b.npy")
    a, b = load(folder, "a", "b")
    np.testing.assert_array_equal(a, rc.hopfield.retrieve(q, p, beta=BETA, values=v, steps=3))
    np.testing.assert_array_equal(b, rc.hopfield.retrieve(q, p, beta=BETA, steps=None, tol=1e-3))


def test_number_types(folder):
    p, q = load(folder, "p", "q")
    np.save(folder / "half.npy", p.astype(np.float16))
    np.save(folder / "integers.npy", np.round(p * 4).astype(np.int8))
    np.save(folder / "swapped.npy", q.astype(">f4"))
    np.save(folder / "columns.npy", np.asfortranarray(p))
    cases = {
        ("half.npy", "q.npy"): rc.hopfield.retrieve(q, p.astype(np.float16), beta=BETA),
        ("integers.npy", "q.npy"): rc.hopfield.retrieve(q, np.round(p * 4).astype(float), beta=BETA),
        ("p.npy", "swapped.npy"): rc.hopfield.retrieve(q, p, beta=BETA),
        ("columns.npy", "q.npy"): rc.hopfield.retrieve(q, p, beta=BETA),
        ("p.npy", "q.npy", "--dtype", "float64"): rc.hopfield.retrieve(q.astype(float), p.astype(float), beta=BETA),
    }
    for number, (arguments, expected) in enumerate(cases.items()):
        run(folder, *arguments, "--beta", BETA, "-o", f"{number}.npy")
        (out,) = load(folder, number)
        assert out.dtype == expected.dtype
        np.testing.assert_allclose(out, expected, rtol=1e-5 if out.dtype == np.float32 else 1e-12, atol=1e-6)


def test_no_queries_give_an_empty_file(folder):
    np.save(folder / "none.npy", np.empty((0, 16), np.float32))
    run(folder, "p.npy", "none.npy", "--beta", BETA, "-o", "out.npy")
    assert load(folder, "out")[0].shape == (0, 16)


def test_refuses_to_overwrite_unless_told(folder):
    (folder / "out.npy").write_text("precious")
    refused(folder, "p.npy", "q.npy", "--beta", BETA, "-o", "out.npy", parts=["'out.npy' exists", "overwrite"])
    assert (folder / "out.npy").read_text() == "precious"
    run(folder, "p.npy", "q.npy", "--beta", BETA, "-o", "out.npy", "--overwrite")
    assert load(folder, "out")[0].shape == (100, 16)
    run(folder, "p.npy", "q.npy", "--beta", BETA, "-o", "q.npy", "--overwrite")  # even a file that is being read
    assert (load(folder, "q")[0] == load(folder, "out")[0]).all()


def test_bad_files_are_one_sentence(folder):
    p, q = load(folder, "p", "q")
    whole = (folder / "p.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-100])
    (folder / "header.npy").write_bytes(whole[:50])
    (folder / "nothing.npy").write_bytes(b"")
    (folder / "text.npy").write_text("1 2 3\n4 5 6\n")
    np.save(folder / "deep.npy", p[None])
    np.save(folder / "objects.npy", np.array([["a", 1]], object), allow_pickle=True)
    np.save(folder / "complex.npy", p.astype(complex))
    np.save(folder / "narrow.npy", p[:, :10])
    np.save(folder / "empty.npy", p[:0])
    np.save(folder / "short.npy", p[:10])
    np.save(folder / "huge.npy", q.astype(float) * 1e300)
    np.savez(folder / "archive.npz", p)
    cases = {
        "missing.npy": ["no file 'missing.npy'"],
        "cut.npy": ["'cut.npy' is truncated"],
        "header.npy": ["'header.npy' is truncated"],
        "nothing.npy": ["'nothing.npy' is not a .npy file"],
        "text.npy": ["'text.npy' is not a .npy file"],
        "deep.npy": ["'deep.npy'", "(1, 300, 16)", "two axes"],
        "objects.npy": ["'objects.npy'", "Python objects"],
        "complex.npy": ["'complex.npy'", "complex128", "real numbers"],
        "archive.npz": ["'archive.npz'", "archive"],
        ".": ["'.' is a directory"],
    }
    for name, parts in cases.items():
        refused(folder, name, "q.npy", "--beta", BETA, "-o", "out.npy", parts=parts)
        refused(folder, "p.npy", name, "--beta", BETA, "-o", "out.npy", parts=parts)
        refused(folder, "p.npy", "q.npy", "--beta", BETA, "--values", name, "-o", "out.npy", parts=parts)
    more = {
        ("p.npy", "narrow.npy"): ["'narrow.npy'", "(300, 10)", "d=16", "'p.npy'"],
        ("empty.npy", "q.npy"): ["'empty.npy' holds no patterns"],
        ("p.npy", "q.npy", "--values", "short.npy"): ["'short.npy'", "(10, 16)", "N=300"],
        ("p.npy", "huge.npy", "--dtype", "float32"): ["huge.npy", "too large for float32"],
        ("p.npy", "q.npy", "--tol", "-1"): ["tol is -1.0"],
    }
    for arguments, parts in more.items():
        refused(folder, *arguments, "--beta", BETA, "-o", "out.npy", parts=parts)
    refused(folder, "p.npy", "q.npy", "--beta", BETA, "-o", "no/out.npy", parts=["no directory 'no'"])
    refused(folder, "p.npy", "q.npy", "--beta", BETA, "-o", ".", "--overwrite", parts=["'.' is a directory"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--beta", "0"],
        ["--beta", "nan"],
        ["--beta", "x"],
        [],
        ["--beta", "1", "--steps", "0"],
        ["--beta", "1", "--steps", "some"],
        ["--beta", "1", "--block", "0"],
        ["--beta", "1", "--dtype", "int8"],
    ],
)
def test_wrong_usage_is_status_2(folder, arguments):
    done = run(folder, "p.npy", "q.npy", "-o", "out.npy", *arguments, status=2)
    assert done.stderr.startswith("usage: ") and not (folder / "out.npy").exists()


def test_traceback_only_when_asked_for(folder):
    done = recollect("--traceback", "retrieve", "no.npy", "q.npy", "--beta", 1, "-o", "out.npy", cwd=folder)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(folder, rng, sent, status):
    np.save(folder / "many.npy", rng.standard_normal((200_000, 64)).astype(np.float32))
    np.save(folder / "wide.npy", rng.standard_normal((20_000, 64)).astype(np.float32))
    before = sorted(os.listdir(folder))
    command = [sys.executable, "-m", "recollect", "retrieve", "wide.npy", "many.npy", "--beta", "1", "-o", "out.npy"]
    # Whoever runs the tests in the background may have them ignore SIGINT, and a process inherits that.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        [*command, "--steps", "50", "--block", "256"], cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    ) as process:
        deadline = time.monotonic() + 60
        while not any(name.endswith(".tmp") for name in os.listdir(folder)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        assert "out.npy" not in os.listdir(folder)
        process.send_signal(sent)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert "Traceback" not in said and ("interrupted" in said) == (sent == signal.SIGINT)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder):
    script = (
        "import builtins, sys\n"
        "from recollect import _blocks, _cli\n"
        "_blocks.open = lambda path, mode: builtins.open(path, mode).close() or builtins.open('/dev/full', 'wb')\n"
        "sys.exit(_cli.main(['retrieve', 'p.npy', 'q.npy', '--beta', '1', '-o', 'out.npy']))"
    )
    before = sorted(os.listdir(folder))
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr
    assert sorted(os.listdir(folder)) == before


IN_PLACE = """
import resource, sys
from recollect._cli import main

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))

small = ["retrieve", "p.npy", "q.npy", "--beta", "1", "-o", "small.npy"]
assert main(small) == 0  # threads start, buffers of a fixed size are there
limit = private() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(["retrieve", "big.npy", "q.npy", "--beta", "1", "-o", "out.npy"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits private memory as Linux does")
def test_big_files_are_mapped(folder):
    # A sparse file: 256 MiB of zeros that take no disk.
    zeros = np.lib.format.open_memmap(folder / "big.npy", mode="w+", dtype=np.float32, shape=(2**22, 16))
    zeros.flush()
    del zeros
    done = subprocess.run([sys.executable, "-c", IN_PLACE], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not load(folder, "out")[0].any()


def test_works_without_tqdm(folder):
    script = (
        "import sys; sys.modules['tqdm'] = None\n"
        "from recollect._cli import main\n"
        "sys.exit(main(['retrieve', 'p.npy', 'q.npy', '--beta', '1', '-o', 'out.npy']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr and (folder / "out.npy").exists()


# -- the rest ----------------------------------------------------------------------------------------------------


def test_info_version_and_help():
    done = recollect("info")
    assert done.returncode == 0 and rc.__version__ in done.stdout and "isa" in done.stdout
    assert recollect("--version").stdout == f"recollect {rc.__version__}\n"
    for arguments in (["--help"], ["demo", "--help"], ["retrieve", "--help"]):
        assert recollect(*arguments).returncode == 0
    nothing = recollect()
    assert nothing.returncode == 2 and "demo, retrieve or info" in nothing.stderr


def test_cmake_and_include_directories():
    for option, file in (("--cmake-dir", "recollectConfig.cmake"), ("--include-dir", "recollect/version.hpp")):
        done = recollect(option)
        if done.returncode:  # a source tree on PYTHONPATH has neither
            assert "missing" in done.stderr and done.stderr.count("\n") == 1
        else:
            assert os.path.isfile(os.path.join(done.stdout.strip(), file))


def test_demo_prints_its_table_and_draws_its_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)
    done = recollect("demo", "--quick", "--out", "picture.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "The picture is in picture.png" and os.listdir(tmp_path) == ["picture.png"]
    with image.open(tmp_path / "picture.png") as picture:
        assert min(picture.size) > 1000
    methods = [line.split("%")[0][13:] for line in lines if line.startswith(" " * 13) and "%" in line]
    for method, count in {
        "memory, one step": 7,
        "memory, until it settles": 7,
        "memory, known pixels held": 2,
        "nearest by dot product": 7,
        "nearest by distance": 7,
        "nearest over known pixels only": 2,
    }.items():
        assert sum(found.startswith(method) for found in methods) == count, done.stdout
    assert {"noise", "occlusion", "erasure"} <= {line.split()[0] for line in lines if line.strip()}
    (rise,) = [line for line in lines if "largest rise" in line]
    assert float(rise.split()[-1].rstrip(".")) < 1e-4


def test_demo_is_the_same_for_the_same_seed_and_another_for_another():
    pytest.importorskip("sklearn")
    from recollect._demo_data import DAMAGES, damage, digits

    images, _ = digits(quick=True)
    for name in DAMAGES:
        a, b, other = (damage(images, name, np.random.default_rng(seed)).cues for seed in (0, 0, 1))
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all() and (a != other).any()


def test_demo_without_its_packages_says_what_to_install(tmp_path):
    script = "import sys; sys.modules['sklearn'] = None\nfrom recollect._cli import main\nsys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'pip install "recollect[demo]"' in done.stderr and "sklearn" in done.stderr
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path)


def test_demo_tells_a_bad_name_before_it_computes(tmp_path):
    done = recollect("demo", "--quick", "--out", "no/picture.png", cwd=tmp_path)
    assert done.returncode == 1 and "no directory 'no'" in done.stderr and not done.stdout
