//! A GPU behind CUDA's driver: one context, one arena, a stream for all work and one for what comes from the host meanwhile.
//!
//! A call that fails here after the device was opened (no memory for a graph, memory errors, a driver that was reset) leaves
//! a run nothing to do but end, with what the driver said: see [`super::health`]. What a run leaves is whole at any time,
//! so that the same command goes on at the last checkpoint.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys;
use rayon::prelude::*;

use super::context::{Context, Facts, said};
use super::device::{Arg, Buffer, Device, Launch, Product, Recording};
use super::health::Health;
use super::nccl::Nccl;
use super::nvrtc::Compiler;
use super::products::Products;
use super::source;
use crate::diag::{Diagnostic, Result};
use crate::model::ranks::Ranks;

/// Bytes of an upload that go through memory of the host that the device reads by itself.
const STAGED: usize = 4 << 20;
/// Uploads that may be under way at once.
const STAGES: usize = 8;
/// Least memory that is pinned for what is sent to the host.
const SMALLEST: usize = 64 << 10;
/// Dynamic shared memory that a kernel gets without asking.
const PLAIN_SHARED: usize = 48 << 10;

/// A kernel, and the dynamic shared memory that it may have.
struct Kernel {
    function: sys::CUfunction,
    shared: usize,
}

/// Memory of the host that the device reads or writes by itself, and when it has done so.
struct Stage {
    memory: *mut c_void,
    bytes: usize,
    done: sys::CUevent,
}

impl Stage {
    /// A context has to be current.
    fn new(bytes: usize, health: &Health) -> Option<Stage> {
        let pin = format_args!("pin {bytes} bytes that the GPU copies by itself");
        // SAFETY: freed in `free`. The flags ask for nothing special.
        let memory = health.ask_host(pin, || unsafe { result::malloc_host(bytes, 0) })?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let done = health.ask("make an event", || result::event::create(flags))?;
        Some(Stage { memory, bytes, done })
    }

    /// Waits until the last copy is done, none if it cannot be; an event that was never recorded counts as done.
    fn wait(&self, health: &Health) -> Option<()> {
        // SAFETY: the event lives until `free`.
        health.ask("copy what it was given", || unsafe { result::event::synchronize(self.done) })
    }

    /// # Safety
    ///
    /// No copy is under way, and a context is current.
    unsafe fn free(&self) {
        // SAFETY: both were made in `new`. What cannot be freed now goes with the process.
        unsafe {
            let _ = result::event::destroy(self.done);
            let _ = result::free_host(self.memory);
        }
    }
}

/// A place on the device for bytes that come from the host by the second stream.
#[derive(Clone, Copy)]
struct Landing {
    /// They are there.
    came: sys::CUevent,
    /// They have gone on to where they are used.
    left: sys::CUevent,
}

impl Landing {
    /// A context has to be current.
    fn new() -> Result<Landing> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(broken);
        Ok(Landing { came: event()?, left: event()? })
    }
}

/// Bytes on their way to the host: a stage that they are copied to, unless the device has failed, and how many they are.
pub struct Sent {
    stage: Option<Stage>,
    bytes: usize,
}

// SAFETY: as for `Driver`; it is only read once it is handed back to a driver.
unsafe impl Send for Sent {}

/// A GPU, ready to compute.
pub struct Driver {
    pub facts: Facts,
    stream: sys::CUstream,
    /// Copies from the host, beside the work.
    copies: sys::CUstream,
    /// Used in turn.
    landings: [Landing; 2],
    turn: usize,
    modules: Vec<sys::CUmodule>,
    kernels: HashMap<String, Kernel>,
    products: Products,
    /// Connected when ranks are first summed.
    nccl: Option<Nccl>,
    /// First address and length.
    arena: (u64, u64),
    /// For uploads, used in turn.
    stages: Vec<Stage>,
    next: usize,
    /// For bytes that are sent to the host, those that are free.
    parcels: Vec<Stage>,
    /// What was recorded for this arena.
    graphs: Vec<sys::CUgraphExec>,
    recording: bool,
    health: Health,
    context: Context, // dropped last
}

// SAFETY: the driver's handles belong to a context, not to a thread, and every method makes the context current on the
// thread that it runs on before anything else. `&Driver` gives access to downloads, waiting and facts only, each of
// which the driver allows from several threads.
unsafe impl Send for Driver {}

impl Driver {
    fn here(&self) {
        self.health.ask("make its context current", || self.context.make_current());
    }

    fn address(&self, at: u64) -> u64 {
        self.arena.0 + at
    }

    /// Has bytes, of which there are at most [`STAGED`], copied to an address when `stream` comes to it; they may be
    /// overwritten as soon as this returns.
    ///
    /// # Safety
    ///
    /// At the address is as much memory of the device until the stream has come to it, and the stream is alive.
    unsafe fn stage(&mut self, bytes: &[u8], address: u64, stream: sys::CUstream) {
        if self.stages.len() < STAGES {
            let Some(stage) = Stage::new(STAGED, &self.health) else { return };
            self.stages.push(stage);
            self.next = self.stages.len() - 1;
        }
        let stage = &self.stages[self.next];
        self.next = (self.next + 1) % STAGES;
        if stage.wait(&self.health).is_none() {
            return;
        }
        // SAFETY: the stage is no shorter than `bytes`, and nobody reads it any more; the copy reads it before its event. The
        // rest is the caller's part.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), stage.memory.cast(), bytes.len());
            let staged = std::slice::from_raw_parts(stage.memory.cast::<u8>(), bytes.len());
            self.health.ask("copy to its memory", || result::memcpy_htod_async(address, staged, stream));
            self.health.ask("record an event", || result::event::record(stage.done, stream));
        }
    }

    /// Gives up what was recorded; the stream is idle.
    fn forget(&mut self) {
        for graph in self.graphs.drain(..) {
            // SAFETY: made in `recorded`, and used no more. What cannot be freed now goes with the process.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }

    /// The kernel of a name, with so much dynamic shared memory allowed.
    fn kernel(&mut self, name: &str, shared: usize) -> Option<sys::CUfunction> {
        if !self.kernels.contains_key(name) {
            let symbol = CString::new(name).expect("names of kernels have no NUL");
            // SAFETY: the modules are loaded as long as `self`.
            let find = |&module: &sys::CUmodule| unsafe { result::module::get_function(module, symbol.clone()) };
            let missing = Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND));
            let search = || self.modules.iter().map(find).find(|found| *found != missing).unwrap_or(missing);
            let function = self.health.ask(format_args!("find the kernel `{name}`"), search)?;
            self.kernels.insert(name.to_owned(), Kernel { function, shared: PLAIN_SHARED });
        }
        let kernel = self.kernels.get_mut(name).expect("it was just put there");
        if shared > kernel.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let what = format_args!("give `{name}` {shared} bytes of shared memory");
            // SAFETY: the function belongs to a loaded module.
            self.health.ask(what, || unsafe {
                result::function::set_function_attribute(
                    kernel.function,
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
            })?;
            kernel.shared = shared;
        }
        Some(kernel.function)
    }
}

impl Device for Driver {
    type Sent = Sent;

    fn open() -> Result<Driver> {
        let (context, facts) = Context::open()?;
        let compiler = Compiler { version: facts.nvrtc };
        let architecture = facts.architecture();
        let codes: Vec<Vec<u8>> =
            source::all().par_iter().map(|source| compiler.code(source, &architecture)).collect::<Result<_>>()?;
        context.make_current().map_err(broken)?; // of this thread, whoever compiled
        let load = |code: &Vec<u8>| -> Result<sys::CUmodule> {
            // SAFETY: a CUBIN that NVRTC made; the driver copies it.
            unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(|e| {
                Diagnostic::error("kernels", "the driver does not take the kernels that NVRTC compiled")
                    .found(format!("{}; driver for CUDA {:?}, NVRTC {:?}", said(e), facts.driver, facts.nvrtc))
                    .help("an NVRTC that is newer than the driver: update the driver, or install an older NVRTC")
                    .into()
            })
        };
        let modules = codes.iter().map(load).collect::<Result<_>>()?;
        let stream = || result::stream::create(StreamKind::NonBlocking).map_err(broken);
        let (stream, copies) = (stream()?, stream()?);
        let products = Products::new()
            .map_err(|e| Diagnostic::error("cublaslt", "cuBLASLt does not start").found(format!("{:?}", e.0)))?;
        Ok(Driver {
            facts,
            stream,
            copies,
            landings: [Landing::new()?, Landing::new()?],
            turn: 0,
            modules,
            kernels: HashMap::new(),
            products,
            nccl: None,
            arena: (0, 0),
            stages: Vec::new(),
            next: 0,
            parcels: Vec::new(),
            graphs: Vec::new(),
            recording: false,
            health: Health::default(),
            context,
        })
    }

    fn name(&self) -> String {
        format!("{} ({})", self.facts.name, self.facts.architecture())
    }

    fn take(&mut self, bytes: u64) -> Result<(), u64> {
        self.here();
        if self.arena.0 != 0 {
            self.synchronize();
            self.forget();
            // SAFETY: nothing uses the old arena any more.
            let _ = unsafe { result::free_sync(self.arena.0) };
            self.arena = (0, 0);
        }
        let free = result::mem_get_info().map_or(0, |(free, _)| free as u64);
        // SAFETY: no argument that could be wrong; the memory is set below.
        let taken = || match unsafe { result::malloc_sync(bytes as usize) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            other => other.map(Some),
        };
        match self.health.ask("take memory", taken) {
            Some(Some(address)) => self.arena = (address, bytes),
            Some(None) => return Err(free),
            None => return Ok(()),
        }
        self.zero(Buffer { at: 0, bytes });
        self.synchronize(); // the second stream does not wait for zeros
        Ok(())
    }

    fn upload(&mut self, to: Buffer, bytes: &[u8]) {
        self.here();
        assert!(!self.recording, "what the host gives is given before work is recorded");
        assert!(bytes.len() as u64 <= to.bytes, "what is uploaded fits");
        let address = self.address(to.at);
        if bytes.len() > STAGED {
            let stream = self.stream;
            // SAFETY: the buffer lies in the arena; `bytes` lives until the copy is done, which is waited for.
            self.health.ask("copy to its memory", || unsafe { result::memcpy_htod_async(address, bytes, stream) });
            return self.synchronize();
        }
        // SAFETY: the buffer lies in the arena, and the stream is ours.
        unsafe { self.stage(bytes, address, self.stream) };
    }

    fn bring(&mut self, to: Buffer, by: [Buffer; 2], bytes: &[u8]) {
        self.here();
        assert!(!self.recording, "what the host gives is given before work is recorded");
        if bytes.len() > STAGED {
            return self.upload(to, bytes);
        }
        let (Landing { came, left }, by, length) = (self.landings[self.turn], by[self.turn], bytes.len());
        self.turn = 1 - self.turn;
        assert!(length as u64 <= to.bytes.min(by.bytes), "what is brought fits");
        let (to, by) = (self.address(to.at), self.address(by.at));
        let no_flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: streams and events are ours, and the buffers lie in the arena. A landing is written to when what came
        // there last has left, and read from when all of it has come.
        unsafe {
            self.health.ask("wait for an event", || result::stream::wait_event(self.copies, left, no_flags));
            self.stage(bytes, by, self.copies);
            self.health.ask("record an event", || result::event::record(came, self.copies));
            self.health.ask("wait for an event", || result::stream::wait_event(self.stream, came, no_flags));
            self.health.ask("copy memory", || result::memcpy_dtod_async(to, by, length, self.stream));
            self.health.ask("record an event", || result::event::record(left, self.stream));
        }
    }

    fn download(&self, from: Buffer, bytes: &mut [u8]) {
        self.here();
        assert!(bytes.len() as u64 <= from.bytes, "no more is downloaded than is there");
        let from = self.address(from.at);
        // SAFETY: the buffer lies in the arena; `bytes` lives until the copy is done, which is waited for.
        self.health.ask("copy from its memory", || unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) });
        self.synchronize();
    }

    fn send(&mut self, from: Buffer, bytes: usize) -> Sent {
        self.here();
        assert!(!self.recording, "what the host is given is sent after work was recorded");
        assert!(bytes as u64 <= from.bytes, "no more is sent than is there");
        let free = self.parcels.iter().position(|stage| stage.bytes >= bytes);
        let stage = match free {
            Some(free) => Some(self.parcels.swap_remove(free)),
            None => Stage::new(bytes.next_power_of_two().max(SMALLEST), &self.health),
        };
        if let Some(stage) = &stage {
            let from = self.address(from.at);
            // SAFETY: the stage is long enough, and nobody else has it until its event; the arena holds the buffer.
            unsafe {
                let memory = std::slice::from_raw_parts_mut(stage.memory.cast::<u8>(), bytes);
                self.health.ask("copy from its memory", || result::memcpy_dtoh_async(memory, from, self.stream));
                self.health.ask("record an event", || result::event::record(stage.done, self.stream));
            }
        }
        Sent { stage, bytes }
    }

    fn arrived(&mut self, sent: Sent) -> Vec<u8> {
        self.here();
        let Sent { stage, bytes } = sent;
        let Some(stage) = stage else { return vec![0; bytes] };
        let arrived = match stage.wait(&self.health) {
            // SAFETY: the copy has written as many bytes, and is done.
            Some(()) => unsafe { std::slice::from_raw_parts(stage.memory.cast::<u8>(), bytes) }.to_vec(),
            None => vec![0; bytes],
        };
        self.parcels.push(stage);
        arrived
    }

    fn zero(&mut self, buffer: Buffer) {
        self.here();
        let (at, bytes) = (self.address(buffer.at), buffer.bytes as usize);
        // SAFETY: the buffer lies in the arena.
        self.health.ask("clear memory", || unsafe { result::memset_d8_async(at, 0, bytes, self.stream) });
    }

    fn copy(&mut self, to: Buffer, from: Buffer) {
        self.here();
        assert!(from.bytes <= to.bytes, "what is copied fits");
        let (to, from, bytes) = (self.address(to.at), self.address(from.at), from.bytes as usize);
        // SAFETY: both buffers lie in the arena.
        self.health.ask("copy memory", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) });
    }

    fn sum_over_ranks(&mut self, buffer: Buffer, numbers: usize, ranks: &mut Ranks) -> Result<()> {
        self.here();
        assert!(!self.recording, "ranks are summed between recordings");
        buffer.f32(numbers); // long enough
        self.health.check()?; // other ranks would wait for sums of nothing
        if self.nccl.is_none() {
            self.nccl = Some(Nccl::connect(ranks)?);
        }
        let nccl = self.nccl.as_ref().expect("it was just connected");
        // SAFETY: the buffer lies in the arena and holds as many numbers; the stream is ours.
        unsafe { nccl.sum(self.address(buffer.at), numbers, self.stream) }
    }

    fn launch(&mut self, launch: Launch<'_>, arguments: &[Arg]) {
        let Launch { kernel, grid, block, shared } = launch;
        if grid.contains(&0) {
            return;
        }
        self.here();
        let Some(function) = self.kernel(kernel, shared) else { return };
        let mut words: Vec<u64> = arguments.iter().map(|argument| argument.word(self.arena.0)).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
        let grid = grid.map(|blocks| u32::try_from(blocks).expect("a grid has fewer than 2³² blocks"));
        let what = format_args!("launch `{kernel}` with {grid:?} blocks of {block} threads");
        // SAFETY: the arguments are those of the kernel's signature (the simulator runs the same launches against the
        // same signatures), and buffers are as long as their launcher says that the kernel touches. The driver copies
        // the arguments before it returns.
        self.health.ask(what, || unsafe {
            result::launch_kernel(
                function,
                (grid[0], grid[1], grid[2]),
                (block as u32, 1, 1),
                shared as u32,
                self.stream,
                &mut pointers,
            )
        });
    }

    fn multiply(&mut self, product: &Product, workspace: Buffer) {
        if product.m == 0 || product.n == 0 {
            return;
        }
        self.here();
        product.operands(); // long enough
        let Product { form, m, n, k, .. } = *product;
        let workspace = (workspace.at, workspace.bytes as usize);
        // SAFETY: the buffers lie in the arena and are as long as the shapes say; the stream is ours.
        self.health.ask(format_args!("multiply matrices ({form:?} {m} {n} {k})"), || unsafe {
            self.products.multiply(product, self.arena.0, workspace, self.stream.cast())
        });
    }

    fn record(&mut self) {
        self.here();
        // Other threads may go on calling the driver. What is recorded was done once before, so that nothing is left in it
        // that a capture does not allow: functions are loaded, and products planned.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        self.health.ask("record work", || unsafe { result::stream::begin_capture(self.stream, mode) });
        self.recording = true;
    }

    fn recorded(&mut self) -> Recording {
        self.here();
        self.recording = false;
        let nothing_special = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the stream is ours and was being captured; the graph is used only here.
        let ready = |graph| unsafe {
            let executable = result::graph::instantiate(graph, nothing_special);
            result::graph::destroy(graph).and(executable)
        };
        // SAFETY: as above.
        let graph = self.health.ask("record work", || unsafe { result::stream::end_capture(self.stream) });
        let executable = graph.and_then(|graph| self.health.ask("keep the graph of a pass", || ready(graph)));
        self.graphs.extend(executable);
        Recording(self.graphs.len().saturating_sub(1))
    }

    fn replay(&mut self, recording: Recording) {
        self.here();
        // SAFETY: the graph is there until the arena is given up that its launches are about. Those were checked when they
        // were recorded, and their arguments are copied in it.
        self.health
            .ask("do what was recorded", || unsafe { result::graph::launch(self.graphs[recording.0], self.stream) });
    }

    fn synchronize(&self) {
        self.here();
        // SAFETY: the stream is ours.
        self.health.ask("do what it was asked for", || unsafe { result::stream::synchronize(self.stream) });
    }

    fn healthy(&self) -> Result<()> {
        self.health.check()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.context.make_current().is_err() {
            return; // the driver is already going down, and takes all of it along
        }
        // SAFETY: all of these were made by this value, and are used no more once the stream is idle.
        unsafe {
            let _ = result::stream::synchronize(self.copies);
            let _ = result::stream::synchronize(self.stream);
            self.nccl = None;
            self.forget();
            for stage in self.stages.iter().chain(&self.parcels) {
                stage.free();
            }
            if self.arena.0 != 0 {
                let _ = result::free_sync(self.arena.0);
            }
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
            for event in self.landings.iter().flat_map(|landing| [landing.came, landing.left]) {
                let _ = result::event::destroy(event);
            }
            let _ = result::stream::destroy(self.copies);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

fn broken(error: DriverError) -> Box<Diagnostic> {
    Diagnostic::error("gpu", "the GPU does not do what it is asked for").found(said(error)).into()
}
