"""Builds lorun_kernels/_C_cuda.so with nvcc: whether it can be built, for which GPUs, and how.

torch.utils.cpp_extension.CUDAExtension fails beside a CPU torch, so nvcc is called here: it also knows where
its own headers and libraries are.
"""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

USUAL_NVCC = "/usr/local/cuda/bin/nvcc"
# (major, minor); kernels are not written for older GPUs.
MINIMUM_CAPABILITY = (8, 0)
# The stable ABI of torch 2.11: one build serves every later torch.
TORCH_TARGET_VERSION = "0x020b000000000000"


def find_nvcc():
    """(path of nvcc or None, where it was sought). If CUDA_HOME is set, it is the only place."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which(os.path.join(home, "bin", "nvcc")), f"CUDA_HOME ({home})"
    return shutil.which("nvcc") or shutil.which(USUAL_NVCC), f"PATH and {USUAL_NVCC} (CUDA_HOME is not set)"


def cuda_version(nvcc):
    """The "13.0" of `nvcc --version`."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text)[1]


def plan(setting, torch):
    """(nvcc, None) if the kernels are to be built, else (None, why not): with LORUN_CUDA=1, an error."""
    if setting not in ("auto", "0", "1"):
        raise SystemExit(f"LORUN_CUDA must be auto, 0 or 1, got {setting!r}; set it to one of these.")
    if setting == "0":
        return None, "switched off by LORUN_CUDA=0"
    if setting == "auto" and not torch.version.cuda:
        return None, f"torch {torch.__version__} is built without CUDA"
    nvcc, sought = find_nvcc()
    reason = f"nvcc was not found in {sought}" if nvcc is None else mismatch(cuda_version(nvcc), torch)
    if reason and setting == "1":
        raise SystemExit(
            f"LORUN_CUDA=1: {reason}; set CUDA_HOME to a CUDA toolkit that fits torch, or LORUN_CUDA=auto."
        )
    return (None, reason) if reason else (nvcc, None)


def mismatch(version, torch):
    """Why kernels of this CUDA version do not match torch's; None if they do, or if torch has no CUDA."""
    if torch.version.cuda and torch.version.cuda.split(".")[0] != version.split(".")[0]:
        return f"nvcc is of CUDA {version}, but torch {torch.__version__} uses CUDA {torch.version.cuda}"
    return None


def architectures(nvcc, torch):
    """What to compile for, such as ["sm_90", "compute_90"]: as asked, else for the GPUs here, else all."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        return parse_arch_list(asked)
    if torch.version.cuda and torch.cuda.is_available():
        present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return [f"sm_{major}{minor}" for major, minor in sorted(present)]
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return default_architectures(listed)


def parse_arch_list(text):
    """TORCH_CUDA_ARCH_LIST, such as "8.0;9.0a+PTX", in nvcc's names: code for each, and PTX if asked for."""
    names = []
    for word in re.split(r"[;,\s]+", text.strip("; \t")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if not match:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST must list compute capabilities such as '8.0;9.0+PTX', got {text!r}; "
                "correct it, or unset it to build for the GPUs of this machine."
            )
        major, minor, variant, ptx = match.groups()
        names += [f"{kind}_{major}{minor}{variant}" for kind in ("sm", *(["compute"] if ptx else []))]
    return list(dict.fromkeys(names))


def default_architectures(listed):
    """From `nvcc --list-gpu-code`: the lowest GPU of each major version, whose code all GPUs of that version
    run, and PTX of the newest, for future GPUs."""
    lowest = {}
    for number in sorted(int(number) for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE)):
        if divmod(number, 10) >= MINIMUM_CAPABILITY:
            lowest.setdefault(number // 10, number)
    return [f"sm_{number}" for number in lowest.values()] + [f"compute_{max(lowest.values())}"]


def gencode(name):
    return f"-gencode=arch=compute_{name.partition('_')[2]},code={name}"


def call_nvcc(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # In one piece, because several commands run at the same time.
    print(f"{shlex.join(command)}\n{done.stdout}", end="", flush=True)
    if done.returncode:
        raise SystemExit(
            f"nvcc failed at {command[-1]}, with the output above; fix the cause, or set LORUN_CUDA=0 to "
            "build without CUDA kernels."
        )


def build(nvcc, names, torch_folder, objects, library):
    """Compiles csrc/cuda/ for the architectures `names`, and links the library."""
    flags = [nvcc, "-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Icsrc"]
    kernels = [*flags, *map(gencode, names)]
    bindings = [*flags, f"-I{torch_folder}/include", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    sources = sorted(glob("csrc/cuda/**/*.cu", recursive=True) + glob("csrc/cuda/**/*.cpp", recursive=True))
    compiled = [str(objects / f"{source}.o") for source in sources]
    commands = []
    for source, target in zip(sources, compiled, strict=True):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        commands.append([*(kernels if source.endswith(".cu") else bindings), "-c", "-o", target, source])
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        list(pool.map(call_nvcc, commands))
    # libtorch.so brings the symbols of a CUDA torch; a CPU torch to link against does not have them.
    torch_library = [f"-L{torch_folder}/lib", "-Xlinker=--no-as-needed", "-ltorch"]
    call_nvcc([nvcc, "-shared", "-cudart=static", *compiled, *torch_library, "-o", str(library)])
