//! A web service whose heavy work runs in a pool: a request that crashes or hangs, or whose client goes away, affects no
//! other request.
//!
//!     cargo run --release --example service -- --port 8080
//!     curl -i http://127.0.0.1:8080/primes/1000000
//!     curl -i http://127.0.0.1:8080/abort

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use std::{process, thread};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use pool_core::{Pool, Task, pool_task};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

/// Answers requests over HTTP, with a pool of worker processes.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0: any free port
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How many workers; by default one for each CPU
    #[arg(long)]
    processes: Option<usize>,
    /// How long the work for one request may take
    #[arg(long, default_value = "10s")]
    time_limit: humantime::Duration,
    /// How long requests may still run after SIGTERM or Ctrl-C
    #[arg(long, default_value = "30s")]
    grace: humantime::Duration,
}

// The tasks, which run in workers.

#[pool_task]
fn square(x: u32) -> u64 {
    u64::from(x).pow(2)
}

#[pool_task]
fn count_primes(below: u64) -> usize {
    let is_prime = |n: &u64| !(2..=n.isqrt()).any(|d| n.is_multiple_of(d));
    (2..below).filter(is_prime).count()
}

#[pool_task]
fn sleep(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

#[pool_task]
fn give_up(why: &str) {
    panic!("{why}");
}

#[pool_task]
fn abort() {
    process::abort();
}

// The service, which uses them.

struct App {
    pool: Pool,
    time_limit: Duration,
}

type AppState = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failed>;

impl App {
    /// Runs a task in a worker. When the client goes away, axum drops this future, and that frees the worker. The time limit
    /// is for clients that wait, and for those that vanish unnoticed; it counts from when a worker begins.
    async fn run<T: Task>(&self, task: T, args: T::Args) -> Answer<T::Output> {
        let call = self.pool.task(task).time_limit(self.time_limit);
        let result = call.apply_async(args).cancel_on_drop().await;
        result.map(Json).map_err(Failed)
    }
}

async fn get_square(State(app): AppState, Path(x): Path<u32>) -> Answer<u64> {
    app.run(square, (x,)).await
}

async fn get_primes(State(app): AppState, Path(below): Path<u64>) -> Answer<usize> {
    app.run(count_primes, (below,)).await
}

async fn get_sleep(State(app): AppState, Path(ms): Path<u64>) -> Answer<()> {
    app.run(sleep, (ms,)).await
}

async fn get_panic(State(app): AppState, Path(why): Path<String>) -> Answer<()> {
    app.run(give_up, (why,)).await
}

async fn get_abort(State(app): AppState) -> Answer<()> {
    app.run(abort, ()).await
}

async fn get_pids(State(app): AppState) -> Json<Vec<u32>> {
    Json(app.pool.worker_pids())
}

/// The response to an error. It contains the text of the error, which may name files and processes of the server.
struct Failed(pool_core::Error);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        use pool_core::Error;
        let status = match &self.0 {
            Error::TimeLimit(_) => StatusCode::GATEWAY_TIMEOUT,
            Error::WorkerLost(_) => StatusCode::BAD_GATEWAY,
            Error::Closed | Error::Terminated | Error::Broken(_) => StatusCode::SERVICE_UNAVAILABLE,
            // Mostly panics.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let pool = match options.processes {
        Some(processes) => Pool::with_processes(processes)?,
        None => Pool::new()?,
    };
    let app = Arc::new(App {
        pool,
        time_limit: options.time_limit.into(),
    });
    let router = Router::new()
        .route("/square/{x}", get(get_square))
        .route("/primes/{below}", get(get_primes))
        .route("/sleep/{ms}", get(get_sleep))
        .route("/panic/{why}", get(get_panic))
        .route("/abort", get(get_abort))
        .route("/pids", get(get_pids))
        .with_state(Arc::clone(&app));

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    let (told_to_end, told_too) = (told_to_end()?, told_to_end()?);
    println!("http://{}", listener.local_addr()?);
    let served = axum::serve(listener, router).with_graceful_shutdown(told_to_end);
    let too_late = async {
        told_too.await;
        time::sleep(options.grace.into()).await;
    };
    tokio::select! {
        // The service was asked to end, and every request has been answered.
        result = served.into_future() => result?,
        // Some requests are not finished: for example, a client may never send its whole request.
        () = too_late => app.pool.terminate(),
    }
    app.pool.close();
    Ok(app.pool.join_async().await?)
}

/// Returns a future that completes on SIGTERM or Ctrl-C, which no longer kill the program once this has returned.
fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
