pub mod snippet;
