use std::process::ExitCode;

// Rendering and encoding allocate many short strings; mimalloc serves them faster than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Templates are parsed by recursion: the thread that does it needs the stack for it.
    let main = std::thread::Builder::new().stack_size(flanc::template::engine::STACK_BYTES).spawn(flanc::cli::run);
    match main.map(|thread| thread.join()) {
        Ok(Ok(code)) => code,
        Ok(Err(_)) => ExitCode::from(101), // it panicked, and the panic message is on stderr
        Err(error) => {
            eprintln!("flanc: cannot start a thread: {error}");
            ExitCode::FAILURE
        }
    }
}
