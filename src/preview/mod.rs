//! The page that shows prompts: what is on it, and the file it is.
//!
//! [`view`] is one prompt as a page shows it, with the origin of its words and the place of its tokens; [`report`] is
//! all that the audit's report shows; [`page`] puts that into one file that opens from disk. The page itself, under
//! `assets`, is plain HTML, CSS and JavaScript modules, the same for a report and for a server.
//!
//! Like the audit, this knows nothing of how shards are made.

pub mod page;
pub mod rates;
pub mod report;
pub mod view;
