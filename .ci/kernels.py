"""Compiles src/model/cuda/*.cu for the architectures named, by nvcc and by NVRTC, and reports what each kernel takes.

Run by `.ci/kernels`, in the environment that it makes. Fails if a kernel does not compile, or spills registers.
"""

import ctypes
import pathlib
import re
import subprocess
import sys
import sysconfig

SOURCES = sorted(pathlib.Path("src/model/cuda").glob("*.cu"))
HEADERS = sorted(pathlib.Path("src/model/cuda").glob("*.cuh"))
NVIDIA = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia"
CODE = ["--std=c++17"]


def nvcc(source, architecture):
    """What ptxas says, by way of nvcc: the whole toolkit."""
    [compiler] = NVIDIA.glob("*/bin/nvcc")
    generate = f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}"
    command = [compiler, *CODE, generate, "-Xptxas", "-v", "-cubin", "-o", "/dev/null", source]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode == 0, run.stderr


def nvrtc(library, source, architecture):
    """What ptxas says, by way of NVRTC: one library and our headers, as on a user's machine."""

    def checked(status):
        if status:
            raise RuntimeError(library.nvrtcGetErrorString(status).decode())

    def text(size_of, get):
        size = ctypes.c_size_t()
        checked(size_of(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        checked(get(program, buffer))
        return buffer.raw

    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()
    texts = ctypes.c_char_p * len(HEADERS)
    headers, names = texts(*(h.read_bytes() for h in HEADERS)), texts(*(h.name.encode() for h in HEADERS))
    checked(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.read_bytes(), source.name.encode(), len(HEADERS), headers, names
        )
    )
    options = [o.encode() for o in [*CODE, f"--gpu-architecture={architecture}", "--ptxas-options=-v"]]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).rstrip(b"\0").decode()
    if status == 0 and len(text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)) == 0:
        return False, "no code came out"
    checked(library.nvrtcDestroyProgram(ctypes.byref(program)))
    return status == 0, log


def kernels(log):
    """Name, registers, bytes of static shared memory, and bytes spilled of each kernel that a log tells of."""
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        yield name, registers, int(shared[1]) if shared else 0, spills


def main():
    [builtins] = NVIDIA.glob("*/lib/libnvrtc-builtins.so*")
    [library] = NVIDIA.glob("*/lib/libnvrtc.so*")
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(library))
    wrong = []
    for architecture in sys.argv[1:]:
        for compiler, compile in [("nvcc", nvcc), ("NVRTC", lambda *a: nvrtc(library, *a))]:
            count = 0
            for source in SOURCES:
                compiled, log = compile(source, architecture)
                found = list(kernels(log))
                if not compiled or "warning" in log or not found:
                    said = "\n".join(line for line in log.splitlines() if "ptxas" not in line)
                    wrong.append(f"{source.name}, {architecture}, {compiler}: {len(found)} kernels\n{said}")
                for name, registers, shared, spills in found:
                    if compiler == "nvcc":
                        print(f"{architecture}  {name:24} {registers:4} registers {shared:6} bytes shared")
                    if spills:
                        wrong.append(f"{name}, {architecture}, {compiler}: {spills} bytes of registers are spilled")
                count += len(found)
            print(f"{architecture}  {count} kernels by {compiler}")
    if wrong:
        sys.exit("\n".join(wrong))


main()
