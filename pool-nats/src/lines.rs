//! Carries the lines that workers write from a node to the parent.
//!
//! They are sent once and not repeated, so a server that fails may lose some. What waits is bounded: if workers write faster than the node
//! sends, the oldest lines are dropped. The lines of an input are sent before its outcome.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use pool_core::WorkerLine;
use pool_core::backend::{News, Observer, Settings, Streams};
use tokio::sync::Notify;
use tokio::time;

use crate::wire::{ToParent, to_bytes};

/// How long to collect lines before they are sent.
const PAUSE: Duration = Duration::from_millis(20);

/// Lines are combined into messages of about this many bytes.
const TOGETHER: usize = 128 << 10;

/// At most this many bytes of text wait, and this many lines.
const WAITING_MAX: usize = 1 << 20;
const LINES_MAX: usize = 1 << 14;

/// The lines that wait to be sent.
#[derive(Debug)]
pub(crate) struct Lines {
    host: String,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<WorkerLine>,
    /// How many bytes of text they have.
    size: usize,
}

impl Lines {
    /// Has the workers with these settings report their lines here, if the parent wants lines.
    pub(crate) fn wanted_by(settings: &mut Settings, host: &str) -> Option<Arc<Lines>> {
        let lines = (settings.streams == Streams::Lines).then(|| {
            Arc::new(Lines {
                host: host.to_owned(),
                waiting: Mutex::default(),
                came: Notify::new(),
            })
        })?;
        settings.observer = Some(Arc::clone(&lines) as Arc<dyn Observer>);
        Some(lines)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all that wait.
    pub(crate) async fn flush(&self, client: &Client, subject: &str, node: &str) {
        while self.send(client, subject, node).await {}
    }

    /// Sends some of them. False: there are none.
    async fn send(&self, client: &Client, subject: &str, node: &str) -> bool {
        let lines = self.lock().take(TOGETHER);
        if lines.is_empty() {
            return false;
        }
        let node = node.to_owned();
        let message = to_bytes(&ToParent::Lines { node, lines });
        // A message that the server does not take is lost.
        let _ = client.publish(subject.to_owned(), message.into()).await;
        true
    }

    /// Sends what comes, for as long as the node lives.
    pub(crate) async fn send_all(self: Arc<Self>, client: Client, subject: String, node: String) {
        loop {
            self.came.notified().await;
            time::sleep(PAUSE).await;
            if self.send(&client, &subject, &node).await {
                // There may be more.
                self.came.notify_one();
            }
        }
    }
}

impl Waiting {
    fn push(&mut self, line: WorkerLine) {
        self.size += line.text.len();
        self.lines.push_back(line);
        while self.size > WAITING_MAX || self.lines.len() > LINES_MAX {
            let oldest = self.lines.pop_front();
            self.size -= oldest.map_or(0, |line| line.text.len());
        }
    }

    /// Takes away the oldest, with so many bytes of text or a line more.
    fn take(&mut self, most: usize) -> Vec<WorkerLine> {
        let mut size = 0;
        let mut lines = Vec::new();
        while size < most
            && let Some(line) = self.lines.pop_front()
        {
            // The rest of a line is at least as long as an empty one.
            size += line.text.len() + size_of::<WorkerLine>();
            self.size -= line.text.len();
            lines.push(line);
        }
        lines
    }
}

impl Observer for Lines {
    fn observe(&self, news: Vec<News>) {
        let mut waiting = self.lock();
        for news in news {
            if let News::Line(mut line) = news {
                line.host = Some(self.host.clone());
                waiting.push(line);
            }
        }
        drop(waiting);
        self.came.notify_one();
    }
}
