//! Libraries of CUDA, found where they usually lie.
//!
//! Nothing of CUDA is linked: the driver comes with the graphics card, NVRTC and cuBLASLt with a toolkit or with
//! PyTorch's packages of Python. A library is first looked up by its name, as any other; then in the directories of a
//! toolkit and of Python environments. Those of Python packages do not find each other, so that what another needs is
//! loaded before it, by its path and for all to see (RTLD_GLOBAL); cudarc's later look-up by name then finds it.

use std::env;
use std::path::{Path, PathBuf};

use cudarc::{cublaslt, driver, nvrtc};
use libloading::Library;

use crate::diag::{Diagnostic, Result};
use crate::storage;

/// Code of the error that a machine without an NVIDIA GPU gives.
pub const NO_DRIVER: &str = "no-cuda-driver";

/// Loads NVRTC, or says that it is not there.
pub fn nvrtc() -> Result<()> {
    // SAFETY: looking for a library runs its initialisers; those of NVIDIA's libraries do nothing but for themselves.
    let present = || unsafe { nvrtc::sys::is_culib_present() };
    if present() || (preload(&["libnvrtc-builtins.so.", "libnvrtc.so."]) && present()) {
        return Ok(());
    }
    Err(missing("no-nvrtc", "NVRTC, which compiles the kernels, was not found", "libnvrtc.so", "nvidia-cuda-nvrtc"))
}

/// Loads cuBLASLt, or says that it is not there.
pub fn cublaslt() -> Result<()> {
    // SAFETY: as above.
    let present = || unsafe { cublaslt::sys::is_culib_present() };
    if present() || (preload(&["libcublasLt.so."]) && present()) {
        return Ok(());
    }
    Err(missing("no-cublaslt", "cuBLASLt, which multiplies matrices, was not found", "libcublasLt.so", "nvidia-cublas"))
}

/// Loads NCCL, or says that it is not there.
pub fn nccl() -> Result<Library> {
    const NAME: &str = "libnccl.so.2";
    let places = directories().into_iter().map(|directory| directory.join(NAME));
    // SAFETY: as above.
    let found = std::iter::once(PathBuf::from(NAME)).chain(places).find_map(|path| unsafe { Library::new(path) }.ok());
    found.ok_or_else(|| {
        missing("no-nccl", "NCCL, which sums over GPUs, was not found", "libnccl.so", "nvidia-nccl-cu13")
    })
}

/// Loads the driver, or says that it is not there.
pub fn driver() -> Result<()> {
    // SAFETY: as above.
    if unsafe { driver::sys::is_culib_present() } {
        return Ok(());
    }
    Err(Diagnostic::error(NO_DRIVER, "CUDA's driver was not found: this machine has no NVIDIA GPU to be used")
        .expected("libcuda.so.1, which NVIDIA's driver installs")
        .help("in a container, give it the GPU (docker run --gpus all)")
        .help("--device cpu trains on the CPU")
        .into())
}

fn missing(code: &'static str, message: &str, file: &str, package: &str) -> Box<Diagnostic> {
    Diagnostic::error(code, message)
        .expected(format!(
            "{file}.13 or .12, where libraries are loaded from, in $CUDA_HOME/lib64, or in a Python environment"
        ))
        .help(format!(
            "`pip install {package}` into the environment that $VIRTUAL_ENV names brings it; so does PyTorch"
        ))
        .into()
}

/// Loads the newest file of each name, all from one directory, and keeps it; false if no directory has them all.
fn preload(names: &[&str]) -> bool {
    directories().iter().any(|directory| {
        let Ok(files) = storage::list(directory) else { return false };
        let newest = |name: &&str| files.iter().rev().find(|(file, _)| file.starts_with(name));
        let Some(found) = names.iter().map(newest).collect::<Option<Vec<_>>>() else { return false };
        found.into_iter().all(|(file, _)| load(&directory.join(file)))
    })
}

#[cfg(unix)]
fn load(path: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: as above.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library); // it stays until the process ends
            true
        }
        Err(_) => false,
    }
}

#[cfg(not(unix))]
fn load(_: &Path) -> bool {
    false // by name only
}

/// Where toolkits and Python packages keep libraries, the likelier first.
fn directories() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut found: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("lib64")).collect();
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(|p| p.join("lib"));
    let of_user = variable("HOME").map(|home| home.join(".local/lib"));
    let of_system = ["/usr/local/lib", "/usr/lib"].map(PathBuf::from);
    let mut libraries: Vec<PathBuf> = environments.chain(of_user).collect();
    let of_toolkit = found.len();
    libraries.extend(of_system);
    for library in libraries {
        let pythons = storage::list(&library).unwrap_or_default();
        for (python, _) in pythons.iter().rev().filter(|(name, _)| name.starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = library.join(python).join(packages).join("nvidia");
                // One directory for everything since CUDA 13, one for each library before.
                found.extend(["cu13/lib", "cuda_nvrtc/lib", "cublas/lib", "nccl/lib"].map(|part| nvidia.join(part)));
            }
        }
    }
    found.insert(of_toolkit, PathBuf::from("/usr/local/cuda/lib64"));
    found
}
