//! The integration tests: one program, a module for each part of the library that they go through.

mod suite {
    /// The template checker: what is said about templates and expressions, by fixtures.
    mod check;
    /// ArrayRecord and Parquet files, as their own writers leave them and in every state of disrepair.
    mod containers;
    /// Templates that mean harm.
    mod hostile;
    /// TFDS corpora: headers, TFRecord, `tf.train.Example`, feature trees, rows; and corpora that are not as they should be.
    mod ingest;
}
