use std::process::ExitCode;

// Rendering and encoding allocate many short strings; mimalloc serves them faster than the system's allocator
// (docs/performance.md has the figures).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    flanc::cli::run()
}
