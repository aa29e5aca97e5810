//! Kernels from source to machine code: compiled for the device that is there, and kept.
//!
//! NVRTC takes some seconds for all of them, so that the code is kept in the user's cache directory, under a name that
//! is a hash of everything it depends on: source, architecture, version of NVRTC. A file carries the hash of its own
//! bytes; one that is damaged, or that another process is just writing, counts as none.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

use super::libraries;
use super::source::Source;
use crate::diag::{Diagnostic, Result};
use crate::storage;

/// What NVRTC is asked for besides the architecture. Flags that change results are not among them: division and square
/// roots are rounded to nearest, small numbers are kept.
const OPTIONS: [&str; 1] = ["--std=c++17"];

/// NVRTC, loaded.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    pub version: (i32, i32),
}

impl Compiler {
    pub fn open() -> Result<Compiler> {
        libraries::nvrtc()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and both are places for an int.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|e| failed("say its version", &e))?;
        Ok(Compiler { version: (major, minor) })
    }

    /// Machine code (a CUBIN) for `architecture` (`sm_90`), from the cache or compiled now.
    pub fn code(self, source: &Source, architecture: &str) -> Result<Vec<u8>> {
        let Some(path) = self.cached(source, architecture) else { return self.compile(source, architecture) };
        if let Ok(bytes) = storage::map(&path)
            && let Some((hash, code)) = bytes.split_first_chunk::<{ blake3::OUT_LEN }>()
            && blake3::hash(code) == *hash
        {
            return Ok(code.to_vec());
        }
        let code = self.compile(source, architecture)?;
        // A cache that cannot be written costs time at the next start, and nothing else.
        let _ = storage::write(&path, &[blake3::hash(&code).as_bytes(), &code[..]].concat());
        Ok(code)
    }

    /// Where code is kept; nowhere if the user has no cache directory.
    fn cached(self, source: &Source, architecture: &str) -> Option<PathBuf> {
        let (major, minor) = self.version;
        let depends_on = format!("{major}.{minor} {architecture} {}\n{}", OPTIONS.join(" "), source.text);
        let name = source.name.trim_end_matches(".cu");
        let hash = blake3::hash(depends_on.as_bytes()).to_hex();
        Some(storage::cache()?.join(format!("{name}-{architecture}-{}.cubin", &hash[..32])))
    }

    /// Compiles one file of kernels.
    pub fn compile(self, source: &Source, architecture: &str) -> Result<Vec<u8>> {
        let no_nul = |text: &str| CString::new(text).expect("our own sources have no NUL");
        let program = result::create_program(&no_nul(&source.text), Some(&no_nul(source.name)))
            .map_err(|e| failed("begin", &e))?;
        let mut options: Vec<String> = OPTIONS.map(str::to_owned).to_vec();
        options.push(format!("--gpu-architecture={architecture}"));
        // SAFETY: `program` is alive until the last line of the block, which is reached on every way.
        unsafe {
            let compiled = result::compile_program(program, &options);
            let code = match compiled {
                Ok(()) => take_code(program).map_err(|e| failed("hand out its code", &e)),
                Err(e) => Err(self.refused(source, architecture, &e, &log(program))),
            };
            let _ = result::destroy_program(program); // it has given what it had
            code
        }
    }

    fn refused(self, source: &Source, architecture: &str, error: &result::NvrtcError, log: &str) -> Box<Diagnostic> {
        let (major, minor) = self.version;
        let message = format!("NVRTC {major}.{minor} cannot compile {} for {architecture}", source.name);
        Diagnostic::error("nvrtc", message)
            .found(format!("{:?}\n{}", error.0, log.trim()))
            .help("a device that is newer than NVRTC needs a newer NVRTC")
            .into()
    }
}

fn failed(what: &str, error: &result::NvrtcError) -> Box<Diagnostic> {
    Diagnostic::error("nvrtc", format!("NVRTC could not {what}")).found(format!("{:?}", error.0)).into()
}

/// # Safety
///
/// `program` has been compiled, and is not destroyed.
unsafe fn take_code(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the second call writes the number of bytes that the first one said.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
        Ok(code)
    }
}

/// What NVRTC says about a program.
///
/// # Safety
///
/// `program` is not destroyed.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the log ends with a NUL, as NVRTC documents.
    unsafe { result::get_program_log(program) }
        .map(|log| unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned())
        .unwrap_or_default()
}
