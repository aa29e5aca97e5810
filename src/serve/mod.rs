//! `flanc serve`: the report and an editor of templates, for the browser of whoever started it.
//!
//! Requests are checked ([`access`]) and answered by one thread that does nothing slow: files of the page it has in
//! memory, and what needs a row or a template goes to a few workers with stack enough for any template. A worker can
//! be kept busy for as long as the engine's budget lasts, and no longer; when all are busy and the queue is full, the
//! page is told so. [`api`] lists what can be asked, [`mod@bench`] answers it, [`drafts`] makes definitions out of edits,
//! [`checks`] runs the audit in the background.

pub mod access;
pub mod api;
pub mod bench;
pub mod checks;
pub mod drafts;
pub mod flags;
pub mod literal;
pub mod messages;
pub mod rows;
pub mod site;

use std::future::Future;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::oneshot;

use self::access::{Access, Refusal, headers};
use self::api::{Answer, Ask, answer, refused};
use self::bench::Bench;
use self::checks::Checks;
use self::site::Site;
use crate::diag::{Diagnostic, Result};
use crate::template::engine::STACK_BYTES;

/// Threads that answer. A page asks for a prompt and for findings at the same time, and one is left for another page.
const WORKERS: usize = 3;
/// Requests that wait for a worker.
const QUEUE: usize = 32;
/// Bytes of a request.
const LARGEST_BODY: usize = 1 << 20;

/// Something for a worker.
struct Job {
    ask: Ask,
    body: Bytes,
    reply: oneshot::Sender<Answer>,
}

/// What the thread that listens knows.
struct Front {
    access: Access,
    site: Site,
    jobs: mpsc::SyncSender<Job>,
}

/// Serves until `stop` is done. `pool` is for checks over many rows.
pub fn serve(
    listener: TcpListener,
    access: Access,
    site: Site,
    bench: &Bench<'_>,
    pool: &rayon::ThreadPool,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let failed = |e: std::io::Error| Diagnostic::error("serve", format!("cannot serve: {e}"));
    let (jobs, waiting) = mpsc::sync_channel(QUEUE);
    let (waiting, checks) = (Mutex::new(waiting), Checks::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    thread::scope(|scope| {
        let _closing = Closing(&checks);
        let worker = || thread::Builder::new().stack_size(STACK_BYTES);
        for _ in 0..WORKERS {
            worker().spawn_scoped(scope, || work(&waiting, bench, &checks)).map_err(failed)?;
        }
        worker().spawn_scoped(scope, || checks.work(bench, pool)).map_err(failed)?;
        let served = runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let router = router(Arc::new(Front { access, site, jobs }));
            tokio::spawn(async { axum::serve(listener, router).await });
            stop.await;
            Ok(())
        });
        // With the connections, which are not waited for, goes the way to the workers, and they end.
        drop(runtime);
        served.map_err(|e| failed(e).into())
    })
}

/// Ends the thread that runs checks, however the rest ends.
struct Closing<'c>(&'c Checks);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/api/{name}", get(asked).post(posted))
        .route("/{token}/", get(|State(front): State<Arc<Front>>| async move { front.site.page() }))
        .route("/{token}/edit", get(|| async { site::editor() }))
        .route(
            "/{token}/assets/{name}",
            get(|Path((_, name)): Path<(String, String)>| async move { site::asset(&name) }),
        )
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn_with_state(front.clone(), guarded))
        .with_state(front)
}

/// Lets through who may ask, and puts the headers on what is answered.
async fn guarded(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let token =
        (!path.starts_with("/api/")).then(|| path.trim_start_matches('/').split('/').next().unwrap_or_default());
    let mut response = match front.access.check(request.method(), request.headers(), token) {
        Ok(()) => next.run(request).await,
        Err(Refusal { status, code, message }) => {
            let (_, body) = refused(&[Diagnostic::error(code, message)]);
            (status, Json(body)).into_response()
        }
    };
    response.headers_mut().extend(headers());
    response
}

async fn asked(State(front): State<Arc<Front>>, Path(name): Path<String>) -> Response {
    front.answer(Ask::get(&name), &Method::GET, Ask::post(&name).is_some(), Bytes::new()).await
}

async fn posted(State(front): State<Arc<Front>>, Path(name): Path<String>, body: Bytes) -> Response {
    front.answer(Ask::post(&name), &Method::POST, Ask::get(&name).is_some(), body).await
}

impl Front {
    /// Has something answered; `otherwise` says whether it could be asked by another method.
    async fn answer(&self, ask: Option<Ask>, method: &Method, otherwise: bool, body: Bytes) -> Response {
        let Some(ask) = ask else {
            let status = if otherwise { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND };
            let (_, body) = refused(&[Diagnostic::error("unknown-request", format!("there is no such {method}"))]);
            return (status, Json(body)).into_response();
        };
        let (reply, answered) = oneshot::channel();
        let busy = || refused(&[Diagnostic::error("busy", "too much is asked at once").help("ask again in a moment")]);
        let crashed = || refused(&[Diagnostic::error("crashed", "this could not be answered: flanc has a bug")]);
        let (status, body) = match self.jobs.try_send(Job { ask, body, reply }) {
            Ok(()) => answered.await.unwrap_or_else(|_| crashed()),
            Err(_) => busy(),
        };
        // Values that JSON has been made of are written without failing.
        (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body.to_string())).into_response()
    }
}

/// Answers what comes, until nothing can come any more.
fn work(waiting: &Mutex<mpsc::Receiver<Job>>, bench: &Bench<'_>, checks: &Checks) {
    loop {
        let next = waiting.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(Job { ask, body, reply }) = next else { return };
        // A bug costs one answer, not the server; the message of the panic is on stderr. Whoever waits finds that the
        // way back is gone.
        if let Ok(answer) = catch_unwind(AssertUnwindSafe(|| answer(bench, checks, ask, &body))) {
            let _ = reply.send(answer); // nobody waits any more
        }
    }
}
