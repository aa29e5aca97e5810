//! Rows of provenance: where each prompt came from, beside the prompts themselves.

use arrow::datatypes::{DataType, SchemaRef};

use super::columns::{lists_of, schema};
use super::pages::{Column, Shape, Values};
use super::rows::Offsets;

/// Where a prompt came from. Names are indices into [`OriginNames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub task: u32,
    /// The split of the corpus, not the task's.
    pub split: u32,
    pub row: u64,
    pub template: u32,
    pub repeat: u32,
    pub target_start: u32,
    pub length: u32,
}

/// The names that origins refer to.
#[derive(Clone, Debug, Default)]
pub struct OriginNames {
    pub tasks: Vec<String>,
    pub splits: Vec<String>,
    pub templates: Vec<String>,
    pub kinds: Vec<String>,
    /// By template.
    pub kind_of: Vec<u32>,
}

/// What a row of provenance is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenanceForm {
    /// One prompt.
    Prompts,
    /// One prompt and the exemplars before it.
    WithExemplars,
    /// The prompts of a packed row.
    Packed,
}

/// Rows of provenance under construction.
#[derive(Debug, Default)]
pub struct ProvenanceRows {
    tasks: Vec<u32>,
    splits: Vec<u32>,
    rows: Vec<u64>,
    templates: Vec<u32>,
    kinds: Vec<u32>,
    repeats: Vec<u32>,
    target_starts: Vec<u32>,
    lengths: Vec<u32>,
    /// Of packed rows.
    packed: Offsets,
    exemplar_splits: Vec<u32>,
    exemplar_rows: Vec<u64>,
    exemplar_templates: Vec<u32>,
    /// Of the exemplars of each prompt.
    exemplars: Offsets,
}

impl ProvenanceRows {
    pub fn schema(form: ProvenanceForm) -> SchemaRef {
        let columns = [
            ("task", DataType::Utf8),
            ("split", DataType::Utf8),
            ("row", DataType::UInt64),
            ("template", DataType::Utf8),
            ("kind", DataType::Utf8),
            ("repeat", DataType::UInt32),
            ("target_start", DataType::UInt32),
            ("length", DataType::UInt32),
        ];
        let packed = form == ProvenanceForm::Packed;
        let mut columns: Vec<_> = columns.map(|(name, ty)| (name, if packed { lists_of(ty) } else { ty })).into();
        if form == ProvenanceForm::WithExemplars {
            columns.extend([
                ("exemplar_splits", lists_of(DataType::Utf8)),
                ("exemplar_rows", lists_of(DataType::UInt64)),
                ("exemplar_templates", lists_of(DataType::Utf8)),
            ]);
        }
        schema(&columns)
    }

    /// Adds a prompt.
    pub fn push(&mut self, origin: Origin, names: &OriginNames) {
        self.tasks.push(origin.task);
        self.splits.push(origin.split);
        self.rows.push(origin.row);
        self.templates.push(origin.template);
        self.kinds.push(names.kind_of[origin.template as usize]);
        self.repeats.push(origin.repeat);
        self.target_starts.push(origin.target_start);
        self.lengths.push(origin.length);
    }

    /// The exemplars of the prompt that was added last: split, row and template of each.
    pub fn exemplars(&mut self, exemplars: impl Iterator<Item = (u32, u64, u32)>) {
        for (split, row, template) in exemplars {
            self.exemplar_splits.push(split);
            self.exemplar_rows.push(row);
            self.exemplar_templates.push(template);
        }
        self.exemplars.close(self.exemplar_rows.len());
    }

    /// Ends a packed row.
    pub fn close(&mut self) {
        self.packed.close(self.rows.len());
    }

    pub fn columns<'r>(&'r self, names: &'r OriginNames, form: ProvenanceForm) -> Vec<Column<'r>> {
        let named = |names, keys| Values::Names { names, keys };
        let shape = match form {
            ProvenanceForm::Packed => self.packed.shape(),
            ProvenanceForm::Prompts | ProvenanceForm::WithExemplars => Shape::Flat(self.rows.len()),
        };
        let columns = [
            named(&names.tasks, &self.tasks),
            named(&names.splits, &self.splits),
            Values::Rows(&self.rows),
            named(&names.templates, &self.templates),
            named(&names.kinds, &self.kinds),
            Values::Numbers(&self.repeats),
            Values::Numbers(&self.target_starts),
            Values::Numbers(&self.lengths),
        ];
        let mut columns: Vec<_> = columns.map(|values| Column { shape, values }).into();
        if form == ProvenanceForm::WithExemplars {
            let shape = self.exemplars.shape();
            let exemplars = [
                named(&names.splits, &self.exemplar_splits),
                Values::Rows(&self.exemplar_rows),
                named(&names.templates, &self.exemplar_templates),
            ];
            columns.extend(exemplars.map(|values| Column { shape, values }));
        }
        columns
    }

    /// As [`super::rows::PromptRows::clear`].
    pub fn clear(&mut self) {
        let ProvenanceRows { rows, exemplar_rows, packed, exemplars, .. } = self;
        rows.clear();
        exemplar_rows.clear();
        packed.clear();
        exemplars.clear();
        let numbers = [
            &mut self.tasks,
            &mut self.splits,
            &mut self.templates,
            &mut self.kinds,
            &mut self.repeats,
            &mut self.target_starts,
            &mut self.lengths,
            &mut self.exemplar_splits,
            &mut self.exemplar_templates,
        ];
        numbers.into_iter().for_each(Vec::clear);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::inspect::{NamedExemplar, NamedOrigin, Provenance, provenance};
    use super::super::pages::PageEncoder;
    use super::super::reader::open;
    use super::super::writer::ShardWriter;
    use super::*;

    /// What is read back from a shard with these prompts, in row groups and packed rows.
    fn check(groups: &[Vec<Vec<Origin>>], form: ProvenanceForm) {
        static SHARDS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = SHARDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("flanc-provenance-{number}-{}", std::process::id()));
        let list = |prefix: &str, n: u32| (0..n).map(|i| format!("{prefix} {i}")).collect::<Vec<_>>();
        let names = OriginNames {
            tasks: list("task", 3),
            splits: list("split", 2),
            templates: list("template é", 700),
            kinds: list("kind", 2),
            kind_of: (0..700).map(|template| template / 400).collect(),
        };
        let (mut writer, encoder) =
            ShardWriter::create(&directory, "a.parquet", ProvenanceRows::schema(form), &[]).unwrap();
        let (mut rows, mut pages) = (ProvenanceRows::default(), PageEncoder::default());
        let exemplars = |o: &Origin| {
            let (row, template) = (o.row, o.template);
            (0..o.repeat % 3)
                .map(move |i| (i % 2, row.wrapping_add(i.into()), (template + i) % 700))
                .collect::<Vec<_>>()
        };
        for group in groups {
            rows.clear();
            for row in group {
                for origin in row {
                    rows.push(*origin, &names);
                    rows.exemplars(exemplars(origin).into_iter());
                }
                rows.close();
            }
            writer.write(encoder.pages(&rows.columns(&names, form), &mut pages).unwrap()).unwrap();
        }
        writer.finish().unwrap();
        let named = |o: &Origin| {
            let of_exemplar = |(split, row, template): (u32, u64, u32)| NamedExemplar {
                split: names.splits[split as usize].clone(),
                row,
                template: names.templates[template as usize].clone(),
            };
            let shown = form == ProvenanceForm::WithExemplars;
            let named = NamedOrigin {
                task: names.tasks[o.task as usize].clone(),
                split: names.splits[o.split as usize].clone(),
                row: o.row,
                template: names.templates[o.template as usize].clone(),
                kind: names.kinds[names.kind_of[o.template as usize] as usize].clone(),
                repeat: o.repeat,
                exemplars: exemplars(o).into_iter().filter(|_| shown).map(of_exemplar).collect(),
            };
            (named, o.target_start as usize, o.length as usize)
        };
        let wanted: Vec<Provenance> = groups.concat().iter().map(|row| row.iter().map(named).collect()).collect();
        let mut found = Vec::new();
        for batch in open(&directory, "a.parquet", 100).unwrap() {
            found.extend(provenance(&batch.unwrap(), "a.parquet").unwrap());
        }
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(found == wanted);
    }

    fn origins() -> impl Strategy<Value = Origin> {
        let numbers = (0..4u32, prop_oneof![0..9u32, any::<u32>()], any::<u32>());
        (0..3u32, 0..2u32, prop_oneof![0..20u64, any::<u64>()], prop_oneof![0..9u32, 0..700u32], numbers).prop_map(
            |(task, split, row, template, (repeat, target_start, length))| Origin {
                task,
                split,
                row,
                template,
                repeat,
                target_start,
                length,
            },
        )
    }

    #[test]
    fn runs_of_names_and_names_between_them() {
        let origin = |n: u32| Origin {
            task: n / 70 % 3,
            split: n / 9 % 2,
            row: n.into(),
            template: if n % 50 < 20 { 7 } else { n % 700 },
            repeat: 0,
            target_start: n,
            length: n,
        };
        check(&[(0..3000).map(|n| vec![origin(n)]).collect(), vec![vec![origin(5)]]], ProvenanceForm::Prompts);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(
            groups in prop::collection::vec(prop::collection::vec(prop::collection::vec(origins(), 0..6), 1..40), 1..4)
        ) {
            check(&groups, ProvenanceForm::Packed);
            let single: Vec<_> = groups.iter().map(|g| g.concat().into_iter().map(|o| vec![o]).collect()).collect();
            check(&single, ProvenanceForm::Prompts);
            check(&single, ProvenanceForm::WithExemplars);
        }
    }
}
