//! `flanc serve`: the audit's report and an editor of templates, in the browser.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use clap::Args;

use super::audit::{audited, recipe_of, tokenized};
use super::{DataDirs, Definitions, Outcome, print, report, threads};
use crate::audit::Sample;
use crate::diag::{Diagnostic, one};
use crate::plan::{Data, Plan, Sources, sources_of_all_splits};
use crate::preview::report::report as report_of;
use crate::serve::access::Access;
use crate::serve::bench::Bench;
use crate::serve::drafts;
use crate::serve::flags::Flags;
use crate::serve::serve;
use crate::serve::site::Site;

/// Show prompts in the browser, and edit templates while looking at them
///
/// Audits the recipe's tasks as `flanc audit` does, and serves the report with an editor: any row of a corpus, any
/// template or field, and what becomes of the prompt while you type. The address goes to stdout. It holds a token, and
/// nobody without it gets an answer. What is saved goes to the files below --templates; the bundled definitions are
/// part of the program and can be edited, but not saved.
#[derive(Args)]
#[command(after_help = "Examples:
  flanc serve
  flanc serve on-disk --data-dir ~/tensorflow_datasets --templates my-defs --open")]
pub struct Serve {
    /// Recipe that selects tasks, rows, templates, lengths and tokenizer [default: the bundled sample, or every task of
    /// --templates that is on disk]
    recipe: Option<String>,
    /// Port to listen at [default: any that is free]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Address to listen at: any but a loopback address lets other machines in that know the token
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
    /// Only this task; may be given more than once
    #[arg(long = "task", value_name = "NAME")]
    tasks: Vec<String>,
    /// Rows of each split that the report looks at
    #[arg(long, value_name = "N", default_value_t = 100)]
    rows: u64,
    /// Rows of each task whose prompts the report shows; the editor shows any
    #[arg(long, value_name = "N", default_value_t = 5)]
    report_rows: u64,
    /// Threads for checks over many rows [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    data: DataDirs,
    #[command(flatten)]
    definitions: Definitions,
}

impl Serve {
    pub fn run(self) -> Outcome {
        let (catalogue, warnings) = self.definitions.load()?;
        report(&warnings);
        let recipe = recipe_of(self.recipe.as_deref(), &self.tasks, &catalogue)?;
        let sources = sources_of_all_splits(recipe, &catalogue, Data::OnDisk(&self.data.data_dirs))?;
        tokenized(sources, &self.data.data_dirs, |sources, plan| self.serve(sources, plan))
    }

    fn serve(&self, sources: &Sources<'_>, plan: Option<&Plan<'_>>) -> Outcome {
        let (pool, quick) = (threads(self.threads)?, threads(Some(2))?);
        let definitions = drafts::Definitions::new(self.definitions.templates(), self.definitions.schemas())?;
        let listener = self.listen()?;
        let found = pool.install(|| audited(sources, plan, Sample::Some(self.rows)))?;
        let data = pool.install(|| report_of(sources, plan, &found, self.report_rows, None))?;
        let address = listener.local_addr().map_err(|e| Diagnostic::error("serve", e.to_string())).map_err(Box::new)?;
        let access = Access::new(address)?;
        let url = access.url();
        print(&format!("{url}\n"))?;
        if self.open {
            report(open(&url).as_slice());
        }
        let bench = Bench { sources, plan, definitions, pool: &quick, flags: Flags::default() };
        let interrupted = async {
            // Where there is no such signal, the process is ended in some other way.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        Ok(serve(listener, access, Site::new(&data), &bench, &pool, interrupted)?)
    }

    fn listen(&self) -> Result<TcpListener, Vec<Diagnostic>> {
        if !self.host.is_loopback() {
            let message = format!("{} can be reached from other machines", self.host);
            let open = Diagnostic::warning("open-to-others", message)
                .note("note", "whoever has the address with its token can read the corpora and write the definitions")
                .help("leave --host out, and reach the port through `ssh -L` from elsewhere");
            report(&[open]);
        }
        let address = SocketAddr::new(self.host, self.port);
        TcpListener::bind(address).map_err(|e| {
            let refused = Diagnostic::error("serve", format!("cannot listen at {address}: {e}"));
            one(refused.help("name another --port, or none").into())
        })
    }
}

/// Opens a page in the browser; what is wrong if that fails.
fn open(url: &str) -> Option<Diagnostic> {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let error = Command::new(program).arg(url).spawn().err()?;
    let warning = Diagnostic::warning("no-browser", format!("cannot start `{program}`: {error}"));
    Some(warning.help("open the address yourself"))
}
