//! CUDA kernels on the CPU: builds them together with `tests/simulator` by a C++ compiler, and launches them.
//!
//! [`Simulator::get`] builds once, into cargo's folder for tests, and again when a source changes. `host.h` says what is
//! checked besides the result.

#![allow(unsafe_code)] // a library made from C++ is loaded, and called with pointers

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use libloading::Library;
use rayon::prelude::*;

/// Seeds of schedules that a kernel has to give the same bytes under: in step, and three drawn orders, asynchronous
/// copies landing late (even seeds) and early (odd ones).
pub const SEEDS: [u32; 4] = [0, 1, 2, 3];

type Entry = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    usize,
    *mut *mut c_void,
    c_uint,
    *mut c_char,
    usize,
) -> c_int;

pub struct Simulator {
    /// The file that was built.
    pub path: PathBuf,
    entry: Entry,
    _library: Library,
}

/// A file of kernels, perhaps with something planted in it.
#[derive(Clone)]
pub struct Source {
    /// Without folder.
    pub name: String,
    pub text: String,
}

/// Every `.cu` and `.cuh` file of the backend.
pub fn sources() -> Vec<Source> {
    let mut files: Vec<PathBuf> = fs::read_dir("src/model/cuda").unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    files.sort();
    let source = |path: &PathBuf| Source {
        name: path.file_name().unwrap().to_str().unwrap().to_owned(),
        text: fs::read_to_string(path).unwrap(),
    };
    files.iter().map(source).collect()
}

impl Simulator {
    /// The kernels as they are; none, and a sentence about it, where there is no C++ compiler.
    pub fn get() -> Option<&'static Simulator> {
        static BUILT: OnceLock<Option<Simulator>> = OnceLock::new();
        let built = BUILT.get_or_init(|| {
            if Command::new(compiler()).arg("--version").output().is_err() {
                return None;
            }
            Some(Simulator::build(&sources(), "-O2").unwrap_or_else(|report| panic!("{report}")))
        });
        if built.is_none() {
            println!("skipped: no C++ compiler (`{}`; $CXX names another) to run the kernels with", compiler());
        }
        built.as_ref()
    }

    /// Compiles the `.cu` files of `sources`, with the simulator and those sources that are headers, and loads the result.
    /// The error is what the compiler said.
    pub fn build(sources: &[Source], optimization: &str) -> Result<Simulator, String> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulator");
        let (kernels, headers): (Vec<&Source>, Vec<&Source>) = sources.iter().partition(|s| s.name.ends_with(".cu"));
        let host = ["host.h", "host.cpp"].map(|name| Source {
            name: name.to_owned(),
            text: fs::read_to_string(Path::new("tests/simulator").join(name)).unwrap(),
        });
        let [header, program] = &host;

        let exact = ["-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"];
        let flags = [&["-std=c++17", optimization, "-fPIC", "-fvisibility=hidden"], exact.as_slice()].concat();
        let shared: Vec<&Source> = headers.into_iter().chain([header]).collect();
        let key = |unit: &Source| {
            let mut hash = blake3::Hasher::new();
            for part in flags.iter().copied().chain(shared.iter().chain([&unit]).flat_map(|s| [&*s.name, &*s.text])) {
                hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
            }
            hash.finalize().to_hex()[..32].to_owned()
        };
        let units: Vec<&Source> = kernels.into_iter().chain([program]).collect();
        let objects: Vec<String> = units.iter().map(|unit| key(unit)).collect();
        let library = folder.join(format!("{}.so", &blake3::hash(objects.concat().as_bytes()).to_hex()[..32]));

        if !library.exists() {
            // A folder that no other build writes to, of this process or another.
            static BUILDS: AtomicU32 = AtomicU32::new(0);
            let scratch = folder.join(format!("{}-{}", id(), BUILDS.fetch_add(1, Ordering::Relaxed)));
            fs::create_dir_all(&scratch).unwrap();
            for source in shared.iter().chain(&units) {
                fs::write(scratch.join(&source.name), &source.text).unwrap();
            }
            units.par_iter().zip(&objects).try_for_each(|(unit, key)| {
                let object = folder.join(format!("{key}.o"));
                if object.exists() {
                    return Ok(());
                }
                let made = scratch.join(format!("{key}.o"));
                // From within, so that reports name files and not our folder.
                let mut command = Command::new(compiler());
                command.current_dir(&scratch).args(&flags).args(["-x", "c++", "-c", &unit.name, "-o"]).arg(&made);
                run(&mut command)?;
                fs::rename(made, object).map_err(|e| e.to_string())
            })?;
            let made = scratch.join("library.so");
            let mut command = Command::new(compiler());
            command.arg("-shared").arg("-o").arg(&made);
            command.args(objects.iter().map(|key| folder.join(format!("{key}.o"))));
            run(&mut command)?;
            fs::rename(made, &library).map_err(|e| e.to_string())?;
            fs::remove_dir_all(&scratch).unwrap();
        }
        // SAFETY: we have just made the library, or one like it before; loading it only registers kernels.
        let loaded = unsafe { Library::new(&library) }.map_err(|e| e.to_string())?;
        // SAFETY: the type is that of the function in host.cpp.
        let entry: Entry = *unsafe { loaded.get(b"flanc_simulator_launch") }.map_err(|e| e.to_string())?;
        Ok(Simulator { path: library, entry, _library: loaded })
    }

    /// Runs a kernel over a grid of blocks, under the schedule of `seed`. `arguments` point to the values of its
    /// arguments, as for `cuLaunchKernel`. The error is the simulator's report.
    ///
    /// # Safety
    /// `arguments` has an entry for each of the kernel's, of its type; what the kernel reads through them is there, and
    /// what it writes to belongs to the caller.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: usize,
        arguments: &mut [*mut c_void],
        seed: u32,
    ) -> Result<(), String> {
        let name = CString::new(kernel).unwrap();
        let mut report = vec![0u8; 8192];
        let (arguments, to) = (arguments.as_mut_ptr(), report.as_mut_ptr().cast());
        // SAFETY: the lengths are those that host.cpp states; the rest is the caller's promise.
        let failed = unsafe {
            (self.entry)(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared_bytes, arguments, seed, to, report.len())
        };
        let end = report.iter().position(|&b| b == 0).unwrap_or(report.len());
        if failed == 0 { Ok(()) } else { Err(String::from_utf8_lossy(&report[..end]).into_owned()) }
    }
}

pub fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} failed:\n{}", said.lines().take(20).collect::<Vec<&str>>().join("\n")))
}

/// Kernels with one mistake each, of a kind that a GPU would not report.
const MISTAKEN: &str = r#"
#include "device.cuh"
#define KERNEL(name, ...)                       \
  extern "C" __global__ void name(float* x) {   \
    DYNAMIC_SHARED(float, shared);              \
    (void)shared, __VA_ARGS__;                  \
  }                                             \
  EXPORT_KERNEL(name)
__device__ void barrier() { __syncthreads(); }
__device__ void another_barrier() { __syncthreads(); }
__device__ int copy(void* to, const void* from) { copy16_async(to, from, true); return 0; }
KERNEL(some_threads_wait, threadIdx.x < 7 ? barrier() : (void)0)
KERNEL(two_barriers, threadIdx.x < 32 ? barrier() : another_barrier())
KERNEL(some_lanes_shuffle, x[0] = threadIdx.x == 5 ? 0 : warp_sum(1.f))
KERNEL(nobody_waits, copy(shared, x))
KERNEL(misaligned_copy, copy(shared + 1, x))
KERNEL(past_the_end, shared[64] = 1)
KERNEL(reads_first, x[threadIdx.x] = shared[threadIdx.x])
"#;

#[test]
fn reports_say_what_is_wrong_and_where() {
    if Simulator::get().is_none() {
        return;
    }
    let mut sources = sources();
    sources.retain(|s| s.name == "device.cuh");
    sources.push(Source { name: "mistaken.cu".to_owned(), text: MISTAKEN.to_owned() });
    let simulator = Simulator::build(&sources, "-O1").unwrap();
    let mut reports = String::new();
    let mut x = vec![0.0f32; 64 + 4];
    let aligned = x.as_ptr().align_offset(16);
    let mut launch = |kernel: &str, threads: u32, shared_bytes: usize| {
        let mut pointer = x[aligned..].as_mut_ptr();
        let arguments = &mut [std::ptr::from_mut(&mut pointer).cast()];
        // SAFETY: each kernel takes one pointer to at least 64 numbers, and has at most 64 threads that write.
        let outcome = unsafe { simulator.launch(kernel, [1; 3], [threads, 1, 1], shared_bytes, arguments, 0) };
        reports += &format!("{}\n\n", outcome.err().unwrap_or_else(|| format!("{kernel}: {}", x[aligned])));
    };
    for line in MISTAKEN.lines().filter_map(|line| line.strip_prefix("KERNEL(")) {
        launch(line.split_once(',').unwrap().0, 64, 256);
    }
    launch("two_barriers", 1025, 0);
    launch("two_barriers", 32, 300_000);
    launch("no_such_kernel", 32, 0);
    insta::assert_snapshot!(reports);
}
