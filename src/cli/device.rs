//! `--device`: what computes; `--master-weights`: in which numbers the optimizer keeps the weights.

use clap::ValueEnum;

use crate::diag::Result;
use crate::model::arena::Precision;
use crate::model::cuda::context;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The GPU, if there is one that can be used
    Auto,
    /// The GPU, or an error
    Cuda,
    Cpu,
}

/// What weights are kept in from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasterWeights {
    /// On a GPU with a copy in bf16: 10 bytes for a trained parameter, its gradient included
    F32,
    /// Alone, rounded by draws that the seed decides: 6 bytes for a trained parameter
    Bf16,
}

impl From<MasterWeights> for Precision {
    fn from(asked: MasterWeights) -> Precision {
        match asked {
            MasterWeights::F32 => Precision::F32,
            MasterWeights::Bf16 => Precision::Bf16,
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    Cpu,
    Cuda,
}

impl Device {
    /// Looks for a GPU unless the CPU is asked for, and says on stderr what computes.
    pub fn choose(self) -> Result<Chosen> {
        let (chosen, said) = self.find()?;
        said.iter().for_each(|said| eprintln!("{said}"));
        Ok(chosen)
    }

    /// Looks for a GPU unless the CPU is asked for: what computes, and what is to be said if that was not.
    pub fn find(self) -> Result<(Chosen, Option<String>)> {
        let found = match self {
            Device::Cpu => return Ok((Chosen::Cpu, None)),
            Device::Cuda => Ok(context::find()?),
            Device::Auto => context::find(),
        };
        Ok(match found {
            Ok(facts) => (Chosen::Cuda, Some(format!("computing on {} ({})", facts.name, facts.architecture()))),
            Err(missing) => {
                let mut said = format!("computing on the CPU: {}", missing.message);
                // A machine that has a GPU ought to be told how to use it.
                if missing.code != context::NO_DRIVER {
                    said.extend(missing.notes.iter().map(|(kind, text)| format!("\n  = {kind}: {text}")));
                }
                (Chosen::Cpu, Some(said))
            }
        })
    }
}
