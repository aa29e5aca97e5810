//! Signals that ask a run to stop: Ctrl-C, and what schedulers send before they take a machine away.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::train::Stop;

/// Ctrl-C.
const INTERRUPT: i32 = 2;
/// What Slurm, Kubernetes and `kill` send.
const TERMINATE: i32 = 15;

/// The name of a signal that a run stops by.
pub fn name(signal: i32) -> &'static str {
    if signal == INTERRUPT { "SIGINT" } else { "SIGTERM" }
}

/// From now on these signals set `stop` in place of ending the process, and `heard` is called at the first of them; Ctrl-C
/// after that ends it. Where signals cannot be heard, they do what they did before.
pub fn heed(stop: &Arc<Stop>, heard: impl Fn(i32) + Send + Sync + 'static) {
    let (stop, heard) = (stop.clone(), Arc::new(heard));
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        for signal in [INTERRUPT, TERMINATE] {
            let (stop, heard) = (stop.clone(), heard.clone());
            runtime.spawn(async move {
                while arrives(signal).await {
                    if stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                        heard(signal);
                    } else if signal == INTERRUPT {
                        std::process::exit(128 + signal);
                    }
                }
            });
        }
        runtime.block_on(std::future::pending::<()>());
    });
}

/// Waits for a signal; false if it cannot be waited for.
async fn arrives(signal: i32) -> bool {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal as listen};
        match listen(SignalKind::from_raw(signal)) {
            Ok(mut signals) => signals.recv().await.is_some(),
            Err(_) => false,
        }
    }
    #[cfg(not(unix))]
    {
        signal == INTERRUPT && tokio::signal::ctrl_c().await.is_ok()
    }
}
