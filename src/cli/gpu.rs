//! `flanc gpu`: what a GPU can do, and whether the kernels on it compute what the CPU computes.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::device::MasterWeights;
use super::{Outcome, grouped, print};
use crate::diag::{Diagnostic, Result};
use crate::model::arena::{Precision, megabytes};
use crate::model::cuda::bench::{self, Ceilings, Speed, Timed};
use crate::model::cuda::check::{self, Compared};
use crate::model::cuda::context::{self, Facts};
use crate::model::cuda::device::Device;
use crate::model::cuda::driver::Driver;
use crate::model::cuda::health;
use crate::model::cuda::nvrtc::Compiler;
use crate::model::cuda::source;
use crate::storage;

/// What is there to train on, whether it computes right, and how fast it is
///
/// Without a subcommand: the GPU that is found, its driver and libraries, its memory, and its measured ceilings (bytes
/// copied a second, operations of a product a second). Where something is missing, it is said, and the exit code is 1.
#[derive(Args)]
#[command(after_help = "Examples:\n  flanc gpu\n  flanc gpu all --out gpu\n  flanc gpu compile --arch sm_80 sm_90")]
pub struct GpuCommand {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Compare every kernel with the CPU, and train a small model on both
    Check,
    /// Time every kernel beside its floor, and training steps of models
    Bench {
        /// Only models of these shapes, of Qwen2.5: 0.5B, 1.5B, 3B, 7B; may be given more than once
        #[arg(long = "model", value_name = "NAME", value_parser = bench::MODELS)]
        models: Vec<String>,
        /// What weights are kept in from step to step
        #[arg(long, value_enum, value_name = "DTYPE", default_value_t = MasterWeights::F32)]
        master_weights: MasterWeights,
    },
    /// Compile the kernels with NVRTC; needs no GPU
    Compile {
        /// Architectures, as sm_90
        #[arg(long, value_name = "ARCH", required = true, num_args = 1..)]
        arch: Vec<String>,
    },
    /// Everything, into gpu.json and gpu.md
    All {
        /// Directory for both files
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// What was found out about a GPU.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    gpu: Facts,
    ceilings: Ceilings,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compared: Vec<Compared>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timed: Vec<Timed>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    models: Vec<Speed>,
    /// Models that did not fit, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<(String, String)>,
}

impl GpuCommand {
    pub fn run(self) -> Outcome {
        match self.what {
            None => self.print(&measure()?.1),
            Some(What::Compile { ref arch }) => print(&compile(arch)?),
            Some(What::Check) => {
                let (device, mut report) = measure()?;
                compare(device, &mut report)?;
                self.print(&report)?;
                Ok(wrong(&report)?)
            }
            Some(What::Bench { ref models, master_weights }) => {
                let (device, mut report) = measure()?;
                let all = || bench::MODELS.map(str::to_owned).to_vec();
                let models = if models.is_empty() { all() } else { models.clone() };
                time(device, &mut report, &models, master_weights)?;
                self.print(&report)
            }
            Some(What::All { ref out }) => {
                let (device, mut report) = measure()?;
                let device = compare(device, &mut report)?;
                time(device, &mut report, &bench::MODELS.map(str::to_owned), MasterWeights::F32)?;
                write(out, &report)?;
                self.print(&report)?;
                Ok(wrong(&report)?)
            }
        }
    }

    fn print(&self, report: &Report) -> Outcome {
        print(&if self.json { format!("{}\n", serde_json::json!(report)) } else { text(report) })
    }
}

/// Opens the GPU and measures its ceilings.
fn measure() -> Result<(Driver, Report)> {
    let gpu = context::find()?;
    eprintln!("{} ({})", gpu.name, gpu.architecture());
    let (ceilings, device) = bench::ceilings(Driver::open()?, &bench::FULL)?;
    let version = env!("CARGO_PKG_VERSION");
    let report = Report {
        version,
        gpu,
        ceilings,
        compared: Vec::new(),
        timed: Vec::new(),
        models: Vec::new(),
        left_out: Vec::new(),
    };
    Ok((device, report))
}

/// Steps of the small model.
const STEPS: usize = 20;

fn compare(device: Driver, report: &mut Report) -> Result<Driver> {
    let mut keep = |compared: &Compared| {
        eprintln!("{}", compared_line(compared));
        report.compared.push(compared.clone());
    };
    let device = check::operations(device, &[check::ODD, check::USUAL], &mut keep)?;
    check::training(device, STEPS, &mut keep)
}

/// The error that a comparison which failed is.
fn wrong(report: &Report) -> Result<()> {
    let failed: Vec<&str> = report.compared.iter().filter(|c| !c.passes()).map(|c| c.what.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Diagnostic::error("gpu-check", "the GPU does not compute what the CPU computes")
        .found(failed.join("; "))
        .help("do not train on it; the report says which GPU, driver and NVRTC it was")
        .into())
}

fn time(device: Driver, report: &mut Report, models: &[String], master_weights: MasterWeights) -> Result<()> {
    let (scale, ceilings) = (&bench::FULL, report.ceilings);
    let mut keep = |timed: &Timed| {
        eprintln!("{}", timed_line(timed));
        report.timed.push(timed.clone());
    };
    let device = bench::kernels(device, scale, ceilings, &mut keep)?;
    let mut device = Some(bench::products(device, scale, &mut keep)?);
    for name in models {
        let Some(config) = bench::preset(name) else { continue };
        // What did not fit has taken the device along.
        let open = device.take().map_or_else(Driver::open, Ok)?;
        match bench::model(open, scale, ceilings, name, &config, master_weights.into()) {
            Ok((speed, back)) => {
                eprintln!("{}", speed_line(&speed));
                report.models.push(speed);
                device = Some(back);
            }
            Err(failed) if failed.code == health::FAILED => return Err(failed),
            Err(why) => {
                eprintln!("{name}: {why}");
                report.left_out.push((name.clone(), why.message));
            }
        }
    }
    Ok(())
}

fn compile(architectures: &[String]) -> Result<String> {
    let compiler = Compiler::open()?;
    let mut text = format!("NVRTC {}.{}\n", compiler.version.0, compiler.version.1);
    for architecture in architectures {
        for source in source::all() {
            let code = compiler.compile(&source, architecture)?;
            let _ = writeln!(text, "{architecture} {:<18} {:>9} bytes", source.name, grouped(code.len() as u64));
        }
    }
    Ok(text)
}

/// Leaves a report as `gpu.json` and `gpu.md`.
fn write(out: &Path, report: &Report) -> Result<()> {
    let json = serde_json::to_string_pretty(report).expect("plain data is always JSON") + "\n";
    storage::write(&out.join("gpu.json"), json.as_bytes())?;
    storage::write(&out.join("gpu.md"), markdown(report).as_bytes())
}

fn versions(gpu: &Facts) -> String {
    let two = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    format!(
        "driver for CUDA {}, NVRTC {}, cuBLASLt {}.{}",
        two(gpu.driver),
        two(gpu.nvrtc),
        gpu.cublaslt.0,
        gpu.cublaslt.1
    )
}

fn ceilings_line(ceilings: Ceilings) -> String {
    format!("copies {:.2} TB/s, multiplies {:.0} TFLOP/s in bf16", ceilings.copy / 1e12, ceilings.product / 1e12)
}

fn text(report: &Report) -> String {
    let gpu = &report.gpu;
    let mut text = format!(
        "{} ({}, {} multiprocessors)\n{}\nmemory {}, {} free\n{}\n",
        gpu.name,
        gpu.architecture(),
        gpu.multiprocessors,
        versions(gpu),
        megabytes(gpu.memory as u64),
        megabytes(gpu.memory_free as u64),
        ceilings_line(report.ceilings)
    );
    let mut lines = |lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = write!(text, "\n{}\n", lines.join("\n"));
        }
    };
    lines(report.compared.iter().map(compared_line).collect());
    lines(report.timed.iter().map(timed_line).collect());
    lines(report.models.iter().map(speed_line).collect());
    lines(report.left_out.iter().map(|(model, why)| format!("{model}: {why}")).collect());
    text
}

fn compared_line(compared: &Compared) -> String {
    let Compared { what, error, tolerance } = compared;
    let verdict = if compared.passes() { "" } else { "  WRONG" };
    format!("{what:<44} {error:>8.1e} of at most {tolerance:.0e}{verdict}")
}

fn timed_line(timed: &Timed) -> String {
    format!("{:<44} {:>10.1} µs {:>6.1} % of its floor", timed.what, timed.seconds * 1e6, timed.share() * 100.0)
}

fn speed_line(speed: &Speed) -> String {
    let weights = if speed.master_weights == Precision::Bf16 { ", weights in bf16 alone" } else { "" };
    format!(
        "{:<5} {:>9} tokens/s, MFU {:.1} %, {:.1} ms a step of {} tokens, {}{weights}; \
         answers {} tokens/s, {} texts at a time behind {} tokens each, {:.1} % of the floor",
        speed.model,
        grouped(speed.tokens_per_second as u64),
        speed.mfu * 100.0,
        speed.step_seconds * 1e3,
        grouped(speed.tokens_per_step as u64),
        megabytes(speed.bytes),
        grouped(speed.answers.tokens_per_second as u64),
        speed.answers.texts,
        speed.answers.past,
        speed.answers.share * 100.0
    )
}

fn markdown(report: &Report) -> String {
    let gpu = &report.gpu;
    let mut text = format!(
        "# {}\n\nflanc {}; {}, {} multiprocessors, {}; {}; {}.\n",
        gpu.name,
        report.version,
        gpu.architecture(),
        gpu.multiprocessors,
        megabytes(gpu.memory as u64),
        versions(gpu),
        ceilings_line(report.ceilings)
    );
    text.push_str("\n| model | tokens/s | MFU | ms a step | memory | tokens/s of answers | share of the floor |\n");
    text.push_str("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n");
    for speed in &report.models {
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} % | {:.1} | {} | {} | {:.1} % |",
            speed.model,
            grouped(speed.tokens_per_second as u64),
            speed.mfu * 100.0,
            speed.step_seconds * 1e3,
            megabytes(speed.bytes),
            grouped(speed.answers.tokens_per_second as u64),
            speed.answers.share * 100.0
        );
    }
    for (model, why) in &report.left_out {
        let _ = writeln!(text, "| {model} | {why} | | | | | |");
    }
    text.push_str("\n| kernel | µs | share of its floor |\n| --- | ---: | ---: |\n");
    for timed in &report.timed {
        let _ = writeln!(text, "| {} | {:.1} | {:.1} % |", timed.what, timed.seconds * 1e6, timed.share() * 100.0);
    }
    text.push_str("\n| against the CPU | relative error | at most |\n| --- | ---: | ---: |\n");
    for compared in &report.compared {
        let _ = writeln!(text, "| {} | {:.1e} | {:.0e} |", compared.what, compared.error, compared.tolerance);
    }
    text
}
