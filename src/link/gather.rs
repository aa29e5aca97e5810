//! Gathering: the scattered prompts of one shard of the mixture, sorted, packed and written.

use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::scatter::Run;
use super::{LinkedShard, Totals};
use crate::diag::Result;
use crate::expand::{GROUP_ROWS, GROUP_TOKENS};
use crate::mixture::Profile;
use crate::pack::{Rows, pack};
use crate::plan::{Plan, SplitName};
use crate::shard::pages::PageEncoder;
use crate::shard::provenance::{Origin, OriginNames, ProvenanceForm, ProvenanceRows};
use crate::shard::rows::{MegatronRows, PackedRows, PromptRows};
use crate::shard::writer::{GroupEncoder, RowGroup, ShardWriter};
use crate::template::definition::Kind;

/// Megatron-Bridge keeps a row group in memory for each worker and reads at random: small ones.
const MEGATRON_GROUP_ROWS: usize = 500;

/// What the shards of a split's mixture have in common.
pub(super) struct Gather<'g> {
    plan: &'g Plan<'g>,
    runs: &'g [Run],
    out: &'g Path,
    names: Names,
    metadata: Vec<(String, String)>,
    /// By thread: memory that is used again, as what is returned to the system has to be cleared each time.
    benches: Vec<Mutex<Bench>>,
}

/// What a row group is made with.
#[derive(Default)]
struct Bench {
    ids: Vec<u32>,
    prompts: PromptRows,
    packed: PackedRows,
    megatron: MegatronRows,
    provenance: ProvenanceRows,
    pages: PageEncoder,
}

/// The prompts of a shard in the mixture's order, and the rows they are packed into.
pub(super) struct Sorted {
    /// Key, run, place in it, length.
    prompts: Vec<(u64, u32, usize, u32)>,
    rows: Rows,
}

/// A row group of a shard and of its provenance.
struct Group {
    shard: RowGroup,
    provenance: RowGroup,
    totals: Totals,
}

impl<'g> Gather<'g> {
    pub(super) fn new(plan: &'g Plan<'g>, split: SplitName, runs: &'g [Run], out: &'g Path) -> Gather<'g> {
        let lengths = plan.recipe.lengths;
        let metadata = [
            ("flanc.plan", plan.hash.clone()),
            ("flanc.split", split.name().to_owned()),
            ("flanc.profile", plan.recipe.output.profile.name().to_owned()),
            ("flanc.sequence", plan.recipe.output.sequence.to_string()),
            ("flanc.tokenizer", plan.tokenizer.hash().to_owned()),
            ("flanc.templates", templates_hash(plan)),
            ("flanc.eos_id", plan.eos.id.to_string()),
            ("flanc.pad_id", plan.pad.id.to_string()),
            ("flanc.inputs_length", lengths.inputs.to_string()),
            ("flanc.targets_length", lengths.targets.to_string()),
        ]
        .into_iter()
        .chain(plan.bos.as_ref().map(|bos| ("flanc.bos_id", bos.id.to_string())));
        Gather {
            plan,
            runs,
            out,
            names: names(plan),
            metadata: metadata.map(|(k, v)| (k.to_owned(), v)).collect(),
            benches: (0..rayon::current_num_threads()).map(|_| Mutex::default()).collect(),
        }
    }

    /// Sorts the prompts of a shard and packs them.
    pub(super) fn sort(&self, shard: usize) -> Sorted {
        let of_run = |(r, run): (usize, &'g Run)| {
            run.places(shard).map(move |(at, prompt)| (prompt.key, r as u32, at, prompt.origin.length))
        };
        let mut prompts: Vec<(u64, u32, usize, u32)> = self.runs.par_iter().enumerate().flat_map_iter(of_run).collect();
        // By key; runs and places follow from the plan, so equal keys have an order too.
        prompts.par_sort_unstable();
        let rows = match self.plan.recipe.output.profile {
            Profile::Sft => Rows::single(prompts.len() as u32),
            Profile::Packed | Profile::Megatron => {
                let lengths: Vec<u32> = prompts.iter().map(|&(.., length)| length).collect();
                pack(&lengths, self.plan.recipe.output.sequence as u32)
            }
        };
        Sorted { prompts, rows }
    }

    /// Writes a shard: its row groups are made by all threads, some at a time, and written in their order.
    pub(super) fn write(&self, sorted: &Sorted, stem: &str) -> Result<LinkedShard> {
        let schema = match self.plan.recipe.output.profile {
            Profile::Sft => PromptRows::schema(),
            Profile::Packed => PackedRows::schema(),
            Profile::Megatron => MegatronRows::schema(),
        };
        let create = |name: String, schema| ShardWriter::create(self.out, &name, schema, &self.metadata);
        let (mut shard, groups) = create(format!("{stem}.parquet"), schema)?;
        let (mut provenance, provenance_groups) =
            create(format!("{stem}.provenance.parquet"), ProvenanceRows::schema(self.provenance_form()))?;
        let ranges = self.ranges(sorted);
        let mut totals = Totals::default();
        let mut made: Vec<Group> = Vec::new();
        let mut waves = ranges.chunks(2 * self.benches.len());
        loop {
            let wave = waves.next().unwrap_or_default();
            let write = || -> Result<()> {
                for group in made {
                    totals.add(&group.totals);
                    shard.write(group.shard)?;
                    provenance.write(group.provenance)?;
                }
                Ok(())
            };
            let encode = || -> Result<Vec<Group>> {
                wave.par_iter().map(|rows| self.group(sorted, rows.clone(), &groups, &provenance_groups)).collect()
            };
            let (written, encoded) = rayon::join(write, encode);
            written?;
            made = encoded?;
            if made.is_empty() {
                break;
            }
        }
        shard.tokens = totals.tokens;
        Ok(LinkedShard { shard: shard.finish()?, provenance: provenance.finish()?, totals })
    }

    fn provenance_form(&self) -> ProvenanceForm {
        match self.plan.recipe.output.profile {
            Profile::Sft => ProvenanceForm::Prompts,
            Profile::Packed | Profile::Megatron => ProvenanceForm::Packed,
        }
    }

    /// The rows of each row group.
    fn ranges(&self, sorted: &Sorted) -> Vec<Range<usize>> {
        let output = &self.plan.recipe.output;
        let tokens = |row: &[u32]| match output.profile {
            Profile::Packed => output.sequence,
            Profile::Sft | Profile::Megatron => row.iter().map(|&i| sorted.prompts[i as usize].3 as usize).sum(),
        };
        let most = if output.profile == Profile::Megatron { MEGATRON_GROUP_ROWS } else { GROUP_ROWS };
        let mut ranges = Vec::new();
        let (mut start, mut held) = (0, 0);
        for (i, row) in sorted.rows.iter().enumerate() {
            held += tokens(row);
            if held >= GROUP_TOKENS || i + 1 - start >= most {
                ranges.push(start..i + 1);
                (start, held) = (i + 1, 0);
            }
        }
        if start < sorted.rows.len() {
            ranges.push(start..sorted.rows.len());
        }
        ranges
    }

    /// Makes a row group.
    #[inline(never)] // benches/instructions.sh counts what is spent here
    fn group(
        &self,
        sorted: &Sorted,
        rows: Range<usize>,
        groups: &GroupEncoder,
        provenance_groups: &GroupEncoder,
    ) -> Result<Group> {
        let bench = &self.benches[rayon::current_thread_index().unwrap_or_default()];
        let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
        let Bench { ids, prompts, packed, megatron, provenance, pages } = &mut *bench;
        // What a group that failed left.
        prompts.clear();
        packed.clear();
        megatron.clear();
        provenance.clear();
        let mut totals = Totals { rows: rows.len() as u64, ..Totals::default() };
        for row in rows.map(|row| sorted.rows.get(row)) {
            for &i in row {
                let (_, run, at, _) = sorted.prompts[i as usize];
                let prompt = self.runs[run as usize].prompt(at);
                prompt.read_into(ids);
                let target_start = prompt.origin.target_start as usize;
                match self.plan.recipe.output.profile {
                    Profile::Sft => prompts.push(&ids[..target_start], &ids[target_start..]),
                    Profile::Packed => packed.push(ids, target_start),
                    Profile::Megatron => megatron.push(ids, target_start),
                }
                provenance.push(self.names.of_mixture(prompt.origin), &self.names.names);
                totals.prompts += 1;
                totals.tokens += ids.len() as u64;
                totals.loss_tokens += (ids.len() - target_start.max(1)) as u64;
            }
            match self.plan.recipe.output.profile {
                Profile::Sft => {}
                Profile::Packed => {
                    let padding = packed.close(self.plan.recipe.output.sequence, self.plan.pad.id);
                    totals.padding_tokens += padding as u64;
                }
                Profile::Megatron => megatron.close(),
            }
            provenance.close();
        }
        let columns = match self.plan.recipe.output.profile {
            Profile::Sft => prompts.columns(),
            Profile::Packed => packed.columns(),
            Profile::Megatron => megatron.columns(),
        };
        Ok(Group {
            shard: groups.pages(&columns, pages)?,
            provenance: provenance_groups
                .pages(&provenance.columns(&self.names.names, self.provenance_form()), pages)?,
            totals,
        })
    }
}

/// The names that the provenance of the mixture refers to: templates of all tasks in one table.
struct Names {
    names: OriginNames,
    /// Index of each task's first template in it.
    first_template: Vec<u32>,
    /// Index in it of each split of each task's corpus.
    splits: Vec<Vec<u32>>,
}

impl Names {
    /// A task's origin, in the names of the mixture.
    fn of_mixture(&self, origin: Origin) -> Origin {
        let task = origin.task as usize;
        Origin {
            split: self.splits[task][origin.split as usize],
            template: self.first_template[task] + origin.template,
            ..origin
        }
    }
}

fn names(plan: &Plan<'_>) -> Names {
    let mut names = OriginNames { kinds: Kind::NAMES.map(str::to_owned).into(), ..OriginNames::default() };
    let (mut first_template, mut splits) = (Vec::new(), Vec::new());
    for task in &plan.tasks {
        names.tasks.push(task.task.name().to_owned());
        first_template.push(names.templates.len() as u32);
        for template in &task.task.definition.templates {
            names.templates.push(template.name.text.clone());
            names.kind_of.push(template.kind as u32);
        }
        let of_corpus = plan.corpora[task.corpus].info.splits.iter().map(|split| {
            let index = names.splits.iter().position(|n| *n == split.name).unwrap_or_else(|| {
                names.splits.push(split.name.clone());
                names.splits.len() - 1
            });
            index as u32
        });
        splits.push(of_corpus.collect());
    }
    Names { names, first_template, splits }
}

/// One hash for the templates of all tasks.
fn templates_hash(plan: &Plan<'_>) -> String {
    let mut hasher = blake3::Hasher::new();
    for task in &plan.tasks {
        hasher.update(crate::task::fingerprint(&task.task.definition, &task.templates).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
