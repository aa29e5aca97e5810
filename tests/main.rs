//! The integration tests: one program, a module for each part of the library that they go through.

mod suite {
    /// The audit of templates, by fixtures; and that the project's own pass it.
    mod audit;
    /// What prompts begin with, and recipes in the tokens of a model.
    mod begin;
    /// The template checker: what is said about templates and expressions, by fixtures.
    mod check;
    /// Compiles of the bundled corpora: what is in the output, and that it is the same however it came about.
    mod compile;
    /// ArrayRecord and Parquet files, as their own writers leave them and in every state of disrepair.
    mod containers;
    /// The backend for GPUs, over the simulator.
    mod cuda;
    /// Evaluation: options by rank, answers by generation.
    mod eval;
    /// Exemplars, the mixtures of FLAN v1, contamination.
    mod exemplars;
    /// What a compile does where the system refuses: no space, no permission, a file in the way; and its memory.
    mod faults;
    /// The fields of definitions against FLAN's own.
    mod fields;
    /// Templates that mean harm.
    mod hostile;
    /// Other people's templates: that they print what they are meant to, and what is said about those that cannot.
    mod import;
    /// TFDS corpora: headers, TFRecord, `tf.train.Example`, feature trees, rows; and corpora that are not as they should be.
    mod ingest;
    /// The CUDA kernels against their formulas, on the simulator.
    mod kernels;
    /// The model: against transformers, packed against single segments, saved and loaded.
    mod model;
    /// The audit's report: what is in it, that no row is more than text in it, and its scripts.
    mod preview;
    /// The output as pyarrow, polars and Hugging Face datasets read it.
    mod readers;
    /// What is said about recipes and definitions, by fixtures.
    mod recipe;
    /// The plans of the bundled recipes.
    mod recipes;
    /// The page from a server: who is answered, what is saved, and what hostile templates can do.
    mod serve;
    /// The simulator that runs CUDA kernels.
    mod simulator;
    /// Training: what it learns, how it goes on, what it refuses.
    mod train;
}
