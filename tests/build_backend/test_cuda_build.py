"""_C_cuda: when it is built, and for which GPUs."""

import importlib
from types import SimpleNamespace

import pytest

# nvcc's own list, shortened.
LISTED = "sm_75\nsm_80\nsm_86\nsm_90\nsm_90a\nsm_103\nsm_100\nsm_120\nsm_121\n"


@pytest.fixture
def cuda_build(monkeypatch, source_folder):
    monkeypatch.syspath_prepend(source_folder / "build_backend")
    return importlib.import_module("cuda_build")


def torch_with(cuda):
    return SimpleNamespace(__version__="2.13.0+test", version=SimpleNamespace(cuda=cuda))


def have_nvcc(monkeypatch, cuda_build, version):
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: (version and "/cuda/bin/nvcc", "PATH"))
    monkeypatch.setattr(cuda_build, "cuda_version", lambda nvcc: version)


@pytest.mark.parametrize(
    ("setting", "nvcc", "cuda", "reason"),
    [
        ("0", "13.0", "13.0", "switched off by LORUN_CUDA=0"),
        ("auto", "13.0", None, "torch 2.13.0+test is built without CUDA"),
        ("auto", None, "13.0", "nvcc was not found in PATH"),
        ("auto", "12.6", "13.0", "nvcc is of CUDA 12.6, but torch 2.13.0+test uses CUDA 13.0"),
        ("auto", "13.1", "13.0", None),
        ("1", "13.0", "13.0", None),
        ("1", "13.0", None, None),
    ],
)
def test_when_the_kernels_are_built(monkeypatch, cuda_build, setting, nvcc, cuda, reason):
    have_nvcc(monkeypatch, cuda_build, nvcc)
    expected = (None, reason) if reason else ("/cuda/bin/nvcc", None)
    assert cuda_build.plan(setting, torch_with(cuda)) == expected


@pytest.mark.parametrize(
    ("nvcc", "cuda", "sentence"),
    [
        (None, None, "LORUN_CUDA=1: nvcc was not found in PATH; set CUDA_HOME to"),
        ("12.6", "13.0", "LORUN_CUDA=1: nvcc is of CUDA 12.6, but torch 2.13.0.test uses CUDA 13.0; set"),
    ],
)
def test_required_kernels_that_cannot_be_built_say_why(monkeypatch, cuda_build, nvcc, cuda, sentence):
    have_nvcc(monkeypatch, cuda_build, nvcc)
    with pytest.raises(SystemExit, match=sentence):
        cuda_build.plan("1", torch_with(cuda))


def test_nvcc_is_sought_in_cuda_home_alone_if_that_is_set(monkeypatch, cuda_build, tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_build.find_nvcc() == (str(nvcc), f"CUDA_HOME ({tmp_path})")
    monkeypatch.setenv("CUDA_HOME", str(nvcc))
    assert cuda_build.find_nvcc()[0] is None
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert cuda_build.find_nvcc()[0] == str(nvcc)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("9.0", ["sm_90"]),
        ("8.0;9.0+PTX", ["sm_80", "sm_90", "compute_90"]),
        ("8.6 10.0a, 12.1;", ["sm_86", "sm_100a", "sm_121"]),
        ("9.0;9.0", ["sm_90"]),
    ],
)
def test_an_architecture_list_is_read(cuda_build, text, names):
    assert cuda_build.parse_arch_list(text) == names


@pytest.mark.parametrize("text", ["Hopper", "90", "9.0+ptx", "8.0;sm_90", ";"])
def test_a_wrong_architecture_list_says_what_is_expected(cuda_build, text):
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST must list .* '8\.0;9\.0\+PTX', got"):
        cuda_build.parse_arch_list(text)


def test_the_default_is_the_lowest_gpu_of_each_major_version(cuda_build):
    expected = ["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert cuda_build.default_architectures(LISTED) == expected


def test_present_gpus_come_before_the_default(monkeypatch, cuda_build):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    present = torch_with("13.0")
    capabilities = [(9, 0), (8, 6), (9, 0)]
    present.cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 3, get_device_capability=capabilities.__getitem__
    )
    assert cuda_build.architectures("nvcc", present) == ["sm_86", "sm_90"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert cuda_build.architectures("nvcc", present) == ["sm_80"]


def test_a_failed_compilation_names_the_file(cuda_build, capfd):
    with pytest.raises(SystemExit, match="nvcc failed at row.cu, with the output above; fix"):
        cuda_build.call_nvcc(["sh", "-c", "echo of the compiler >&2; exit 2", "row.cu"])
    assert capfd.readouterr().out.endswith("row.cu\nof the compiler\n")
