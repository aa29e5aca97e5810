//! The output as others read it: `tests/readers.py` goes through all profiles with pyarrow, polars and datasets.

use std::process::Command;

use super::compile::{Scratch, run};

/// Where Python has these three. A Python of a virtual environment is named by `FLANC_PYTHON`.
#[test]
fn pyarrow_polars_and_datasets_read_the_same_rows() {
    let python = std::env::var("FLANC_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import pyarrow, polars, datasets"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} cannot import pyarrow, polars and datasets");
        return;
    }
    let scratch = Scratch::new();
    for profile in ["packed", "sft", "megatron"] {
        let keys = format!("tasks = ['wic', 'trec']\nhold_out = ['cb']\noutput.profile = '{profile}'");
        let keys = keys + "\noutput.shard_tokens = 30_000";
        run(&keys, &scratch.join(profile));
    }
    let outs = ["packed", "sft", "megatron"].map(|profile| scratch.join(profile));
    let mut readers = Command::new(&python);
    readers.arg("tests/readers.py").args(outs).env("HF_HOME", scratch.join("cache")).env("HF_HUB_OFFLINE", "1");
    let output = readers.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    println!("{said}");
}
